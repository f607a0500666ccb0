package replay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bridge/internal/stream"

	"github.com/rs/zerolog"
)

// tail reads what is new in one relation's stream for all its clients, into a
// ring of blocks.
type tail struct {
	// Static after construction.
	hub  *Hub
	info Relation
	log  zerolog.Logger
	gate gate

	// Owned by run.
	place place

	mu sync.Mutex
	// Guarded by mu.
	blocks []*block
	bytes  int
	// next is the sequence behind the last one read; the ring holds
	// everything from blocks[0].first up to it.
	next uint64
	// changed is closed and replaced when something was appended while
	// clients waited.
	changed chan struct{}
	waiting int
	// ended is set when the tail is over; clients get the error.
	ended   error
	clients int
	// idleSince is when the last client left.
	idleSince time.Time
}

func newTail(h *Hub, info Relation, from uint64) *tail {
	t := &tail{
		hub: h, info: info, next: from, changed: make(chan struct{}), idleSince: time.Now(),
		log: h.log.With().Str("stream", info.Layout.Stream).Logger(),
	}
	t.gate = gate{last: from - 1, end: func(ctx context.Context) (uint64, error) { return h.lastSeq(ctx, info.Layout.Stream) }}
	// verify finds out the place's epoch.
	t.place = place{incarnation: info.Meta.Incarnation, seq: from - 1}
	t.blocks = []*block{{first: from}}
	return t
}

// Backoff between tries to read.
const (
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// run reads until ctx ends or the stream is not the one that it began with;
// it heals everything else by reading on from where it was.
func (t *tail) run(ctx context.Context) {
	backoff := retryMin
	for {
		before := t.place.seq
		err := t.read(ctx)
		if errors.Is(err, ErrReset) || ctx.Err() != nil {
			t.end(err)
			return
		}
		if t.place.seq != before {
			backoff = retryMin
		}
		t.log.Debug().Err(err).Msg("reading the stream again")
		select {
		case <-ctx.Done():
			t.end(ctx.Err())
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, retryMax)
	}
}

func (t *tail) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = err
	close(t.changed)
	t.changed = make(chan struct{})
}

// read opens a consumer behind the last message and appends what it brings.
func (t *tail) read(ctx context.Context) error {
	if err := t.verify(ctx); err != nil {
		return err
	}
	c, err := openConsumer(ctx, t.hub.nc, t.hub.js, t.info.Layout, t.place.seq+1)
	if err != nil {
		return err
	}
	defer c.close()
	lost := t.hub.reconnected()
	for {
		m, err := c.next(ctx)
		if err != nil {
			return err
		}
		select {
		case <-lost:
			return errors.New("the connection to the broker was lost")
		default:
		}
		if err := t.append(ctx, m); err != nil {
			return err
		}
	}
}

// verify asks the broker whether the stream is still the one that was read up
// to the tail's place.
func (t *tail) verify(ctx context.Context) error {
	info, last, err := t.hub.lookup(ctx, t.info.Layout)
	if errors.Is(err, ErrUnknownRelation) {
		return fmt.Errorf("%w: it was deleted", ErrReset)
	}
	if err != nil {
		return err
	}
	if info.Meta.Incarnation != t.place.incarnation {
		return fmt.Errorf("%w: another incarnation began", ErrReset)
	}
	if last < t.place.seq {
		return fmt.Errorf("%w: it ends at %d, %d was read", ErrReset, last, t.place.seq)
	}
	epochs, err := t.hub.epochs(ctx, t.info.Layout)
	if err != nil {
		return err
	}
	if t.place.epoch == "" {
		t.place.epoch = epochs.At(t.place.seq)
	} else if !epochs.Holds(t.place.epoch, t.place.seq, last) {
		return fmt.Errorf("%w: the broker lost what was read", ErrReset)
	}
	return nil
}

// append takes one message.
func (t *tail) append(ctx context.Context, m message) error {
	if err := t.place.follow(m); err != nil {
		return err
	}
	t.gate.read(m.seq)
	heartbeat := m.kind == stream.KindHeartbeat
	show := forwarded(m.kind)
	if heartbeat {
		pass, err := t.gate.pass(ctx, m.seq)
		if err != nil {
			return err
		}
		show = pass
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = m.seq + 1
	if !show {
		return nil
	}
	b := t.blocks[len(t.blocks)-1]
	if len(b.data) >= blockBytes {
		b = &block{first: m.seq, data: make([]byte, 0, blockBytes+len(m.data)+32)}
		t.blocks = append(t.blocks, b)
	}
	before := cap(b.data)
	b.data = appendChunk(b.data, m.data)
	b.entries = append(b.entries, entry{seq: m.seq, end: len(b.data), heartbeat: heartbeat})
	t.bytes += cap(b.data) - before
	if before == 0 || len(b.entries) == 1 {
		t.bytes += blockOverhead
	}
	t.evict()
	if t.waiting > 0 {
		t.waiting = 0
		close(t.changed)
		t.changed = make(chan struct{})
	}
	return nil
}

// blockOverhead is what a block costs besides its data.
const blockOverhead = 4 << 10

// evict drops the oldest blocks past the ring's limit. Clients that hold one
// still can read it.
func (t *tail) evict() {
	for t.bytes > t.hub.opt.CacheBytes && len(t.blocks) > 1 {
		t.bytes -= cap(t.blocks[0].data) + blockOverhead
		t.blocks[0] = nil
		t.blocks = t.blocks[1:]
	}
	t.hub.metrics.cacheBytes.WithLabelValues(t.info.Layout.Schema + "." + t.info.Layout.Table).Set(float64(t.bytes))
}

// view is what a client may read of a block.
type view struct {
	data    []byte
	entries []entry
	// begin is where entries[0]'s chunk begins in data.
	begin int
}

// at returns what the ring holds from the sequence on, at most one block. It
// returns an empty view and a channel to wait on where nothing is there yet,
// and false where the ring does not reach back so far.
func (t *tail) at(seq uint64) (v view, wait <-chan struct{}, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		return view{}, nil, false, t.ended
	}
	if seq < t.blocks[0].first {
		return view{}, nil, false, nil
	}
	i := len(t.blocks) - 1
	for i > 0 && t.blocks[i].first > seq {
		i--
	}
	for ; i < len(t.blocks); i++ {
		b := t.blocks[i]
		n := firstEntry(b.entries, seq)
		if n == len(b.entries) {
			continue
		}
		begin := 0
		if n > 0 {
			begin = b.entries[n-1].end
		}
		return view{data: b.data, entries: b.entries[n:], begin: begin}, nil, true, nil
	}
	t.waiting++
	return view{}, t.changed, true, nil
}

// firstEntry returns the place of the first entry at or behind seq.
func firstEntry(entries []entry, seq uint64) int {
	lo, hi := 0, len(entries)
	for lo < hi {
		mid := (lo + hi) / 2
		if entries[mid].seq < seq {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// join and leave count clients, so that a tail that nobody reads can end.
func (t *tail) join() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clients++
}

func (t *tail) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clients--
	t.idleSince = time.Now()
}

// first returns the sequence from which on the ring holds everything.
func (t *tail) first() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.blocks[0].first
}
