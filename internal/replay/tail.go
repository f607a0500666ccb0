package replay

import (
	"context"
	"errors"
	"sync"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/rs/zerolog"
)

// tail reads what is new in one relation's stream for all its clients, into a
// ring of blocks.
type tail struct {
	// Static after construction.
	hub  *Hub
	info stream.Relation
	log  zerolog.Logger
	gate follow.Gate

	// Owned by run.
	place follow.Place

	mu sync.Mutex
	// Guarded by mu. seen is the place of the last message taken.
	seen   follow.Place
	blocks []*block
	bytes  int
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

func newTail(h *Hub, info stream.Relation, from uint64, epochs stream.Epochs) *tail {
	t := &tail{
		hub: h, info: info, changed: make(chan struct{}), idleSince: time.Now(),
		log: h.log.With().Str("stream", info.Layout.Stream).Logger(),
	}
	t.gate = follow.NewGate(from, follow.EndNow(h.nc, h.js, info.Layout))
	t.place = follow.NewPlace(info, from-1, epochs)
	t.seen = t.place
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
		before := t.place.Seq
		err := t.read(ctx)
		if errors.Is(err, follow.ErrReset) || ctx.Err() != nil {
			t.end(err)
			return
		}
		if t.place.Seq != before {
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
	t.hub.metrics.cacheBytes.DeleteLabelValues(t.name())
	close(t.changed)
	t.changed = make(chan struct{})
}

// name is the relation's, for metrics.
func (t *tail) name() string {
	return lockstep.QualifiedName(t.info.Layout.Schema, t.info.Layout.Table)
}

// read opens a consumer behind the last message and appends what it brings,
// until the connection to the broker is lost: the stream that is there
// afterwards may be another.
func (t *tail) read(ctx context.Context) error {
	ctx, cancel := t.hub.untilLost(ctx)
	defer cancel()
	if err := t.hub.verify(ctx, t.info, t.place); err != nil {
		return err
	}
	c, err := follow.Open(ctx, t.hub.nc, t.hub.js, t.info.Layout, t.place.Seq+1)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		m, err := c.Next(ctx)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := t.append(ctx, m); err != nil {
			return err
		}
	}
}

// append takes one message.
func (t *tail) append(ctx context.Context, m follow.Message) error {
	if err := t.place.Follow(m); err != nil {
		return err
	}
	t.gate.Read(m.Seq)
	heartbeat := m.Kind == stream.KindHeartbeat
	show := forwarded(m.Kind)
	if heartbeat {
		pass, err := t.gate.Pass(ctx, m.Seq)
		if err != nil {
			return err
		}
		show = pass
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = t.place
	if !show {
		return nil
	}
	b := t.blocks[len(t.blocks)-1]
	if len(b.data) >= blockBytes {
		b = &block{first: m.Seq, data: make([]byte, 0, blockBytes+len(m.Data)+32)}
		t.blocks = append(t.blocks, b)
	}
	b.data = appendChunk(b.data, m.Data)
	b.entries = append(b.entries, entry{seq: m.Seq, end: len(b.data), heartbeat: heartbeat})
	t.bytes += b.recount()
	t.evict()
	if t.waiting > 0 {
		t.waiting = 0
		close(t.changed)
		t.changed = make(chan struct{})
	}
	return nil
}

// evict drops the oldest blocks past the ring's limit. Clients that hold one
// still can read it.
func (t *tail) evict() {
	for t.bytes > t.hub.opt.CacheBytes && len(t.blocks) > 1 {
		t.bytes -= t.blocks[0].size
		t.blocks[0] = nil
		t.blocks = t.blocks[1:]
	}
	t.hub.metrics.cacheBytes.WithLabelValues(t.name()).Set(float64(t.bytes))
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

// over says whether the tail has ended.
func (t *tail) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended != nil
}

// last returns the place of the last message taken.
func (t *tail) last() follow.Place {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
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
