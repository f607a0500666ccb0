package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// relation is what a hub has of one relation: its blocks, the tail that reads what is
// new, and the cold readers.
type relation struct {
	// Static after construction.
	hub   *Hub
	info  stream.Relation
	log   zerolog.Logger
	bytes prometheus.Gauge

	// Owned by run: the tail's.
	gate   follow.Gate
	place  follow.Place
	high   uint64
	epochs string

	mu sync.Mutex
	// Guarded by mu. promised is the furthest place that the stream must still have: what
	// the tail took last, or an end of the stream that clients were told to wait for.
	// promisedEpochs are the stream's epochs that were known of then.
	promised       follow.Place
	promisedEpochs stream.Epochs
	// floor is the highest that is known.
	floor uint64
	// blocks are in the order of the stream, and none overlaps another. There may be gaps
	// between them. The tail writes into the last one.
	blocks []*Block
	// changed is closed and replaced when something was appended while clients waited.
	changed chan struct{}
	waiting int
	wants   []*want
	readers []*coldReader
	// ended is set when the relation is over; clients get the error.
	ended   error
	clients int
	// idleSince is when the last client left.
	idleSince time.Time
}

// newRelation returns one whose tail begins at the sequence from: see Hub.join.
func newRelation(h *Hub, now *answer, epochs stream.Epochs, from uint64) *relation {
	r := &relation{
		hub: h, info: now.Relation, changed: make(chan struct{}), idleSince: time.Now(),
		log: h.log.With().Str("stream", now.Layout.Stream).Logger(), high: now.highest(), floor: now.Meta.Floor,
	}
	r.bytes = h.metrics.cacheBytes.WithLabelValues(r.name())
	r.gate = follow.NewGate(from, follow.EndNow(h.js, r.info.Layout))
	r.place = follow.NewPlace(r.info, from-1, epochs)
	r.promised, r.promisedEpochs = follow.NewPlace(r.info, now.Last, epochs), epochs
	r.blocks = h.disk.takeUp(r, now, epochs, from)
	r.begin(from)
	return r
}

// begin adds the block that the tail writes into from now on.
func (r *relation) begin(first uint64) {
	b := newBlock(r, first, r.high)
	b.marks.floorAfter = r.floor
	r.blocks = append(r.blocks, b)
	r.hub.cache.add(b)
}

// name is the relation's, for metrics.
func (r *relation) name() string {
	return lockstep.QualifiedName(r.info.Layout.Schema, r.info.Layout.Table)
}

// Backoff between tries to read.
const (
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// run reads what is new until ctx ends or the stream is not the one that it began with;
// it heals everything else by reading on from where it was.
func (r *relation) run(ctx context.Context) {
	backoff := retryMin
	for {
		before := r.place.Seq
		err := r.read(ctx)
		if errors.Is(err, follow.ErrReset) || ctx.Err() != nil {
			r.end(err)
			return
		}
		if r.place.Seq != before {
			backoff = retryMin
		}
		r.log.Debug().Err(err).Msg("reading the stream again")
		select {
		case <-ctx.Done():
			r.end(ctx.Err())
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, retryMax)
	}
}

// end cuts every client, and forgets the blocks. Those on disk stay there, if the stream
// is still the same.
func (r *relation) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return
	}
	r.ended = err
	for _, b := range r.blocks {
		r.hub.cache.drop(b)
		if errors.Is(err, follow.ErrReset) {
			r.hub.disk.drop(b)
		} else {
			r.hub.disk.leave(b)
		}
	}
	r.hub.metrics.cacheBytes.DeleteLabelValues(r.name())
	for _, w := range r.wants {
		close(w.done)
	}
	r.blocks, r.wants = nil, nil
	r.notify()
	r.wake()
}

// wake wakes the clients that wait for the tail. The caller holds mu.
func (r *relation) wake() {
	r.waiting = 0
	close(r.changed)
	r.changed = make(chan struct{})
}

// read opens a consumer after the last message and appends what it brings,
// until the connection to the broker is lost: the stream that is there
// afterwards may be another.
func (r *relation) read(ctx context.Context) error {
	if err := r.over(); err != nil {
		return err
	}
	ctx, cancel := r.hub.untilLost(ctx)
	defer cancel()
	if _, err := r.ask(ctx); err != nil {
		return err
	}
	c, err := follow.Open(ctx, r.hub.js, r.info.Layout, r.place.Seq+1)
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
		if err := r.append(ctx, m); err != nil {
			return err
		}
		if err := r.over(); err != nil {
			return err
		}
	}
}

// append takes one message of the tail.
func (r *relation) append(ctx context.Context, m follow.Message) error {
	place := r.place // it moves when the message is in a block; else the message is read again
	if err := place.Follow(m); err != nil {
		return err
	}
	if err := r.keepsPromise(m); err != nil {
		return err
	}
	r.gate.Read(m.Seq)
	if m.Kind == stream.KindHeartbeat {
		if _, err := r.gate.Pass(ctx, m.Seq); err != nil {
			return err
		}
	}
	high, floor, err := marksOf(m)
	if err != nil {
		return err
	}
	b, known, err := r.last()
	if err != nil {
		return err
	}
	floor = max(floor, known)
	next := forwarded(m.Kind) && (b.full() || floor > b.highBefore)
	if next && r.gate.Holes() {
		if _, err := r.gate.Until(ctx, m.Seq); err != nil {
			return err
		}
	}
	until := r.gate.From()
	r.mu.Lock()
	if r.ended != nil {
		r.mu.Unlock()
		return r.ended
	}
	r.place = place
	if place.Seq >= r.promised.Seq {
		r.promised = place
	}
	r.raiseFloor(floor)
	b.note(until, r.floor, r.gate.Holes(), place.Newest())
	if next {
		b.seal(m.Seq - 1)
		r.begin(m.Seq)
		r.forgetVoid()
		b = r.blocks[len(r.blocks)-1]
		b.note(until, r.floor, false, place.Newest())
	}
	if forwarded(m.Kind) {
		b.append(m.Seq, high, m.Kind == stream.KindHeartbeat, m.Data)
	}
	if forwarded(m.Kind) && r.waiting > 0 {
		r.wake()
	}
	r.mu.Unlock()
	r.high = max(r.high, high)
	r.hub.cache.grew(b)
	r.hub.cache.trim()
	return nil
}

// marksOf returns a message's High, and the floor that it tells, 0 for none.
func marksOf(m follow.Message) (high, floor uint64, err error) {
	if m.Kind == stream.KindUnknown {
		return 0, 0, nil
	}
	if high, err = stream.High(m.Header); err != nil {
		return 0, 0, fmt.Errorf("message %d: %w", m.Seq, err)
	}
	if text := m.Header.Get(stream.FloorHeader); text != "" {
		if floor, err = strconv.ParseUint(text, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("message %d: %w: header %s: %q", m.Seq, stream.ErrLayout, stream.FloorHeader, text)
		}
	}
	return high, floor, nil
}

// keepsPromise returns an error that wraps follow.ErrReset if the message shows that the
// stream lost the end that clients wait for.
func (r *relation) keepsPromise(m follow.Message) error {
	text := m.Header.Get(stream.EpochsHeader)
	if text == "" || text == r.epochs {
		return nil
	}
	epochs, err := stream.ParseEpochs(text)
	if err != nil {
		return err
	}
	r.mu.Lock()
	promised, known := r.promised, r.promisedEpochs
	r.mu.Unlock()
	newest := epochs.Newest()
	older := slices.ContainsFunc(known, func(e stream.Epoch) bool { return e.ID == newest }) // than the promise
	if !older {
		if err := promised.Held(promised.Incarnation, epochs, max(m.Seq, promised.Seq)); err != nil {
			return err
		}
	}
	r.epochs = text
	return nil
}

// ask asks the stream's leader, who must still have all that was read or promised. If
// not, it returns an error that wraps follow.ErrReset, and the relation is over. Clients
// may be told to wait for the stream's end in the answer.
func (r *relation) ask(ctx context.Context) (*answer, error) {
	known := r.known()
	now, err := r.hub.ask(ctx, r.info.Layout)
	if errors.Is(err, ErrUnknownRelation) {
		err = fmt.Errorf("%w: it was deleted", follow.ErrReset)
	} else if err == nil {
		err = r.check(now, known)
	}
	if errors.Is(err, follow.ErrReset) {
		r.end(err)
	}
	return now, err
}

// known returns the furthest place that the stream must still have.
func (r *relation) known() follow.Place {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.promised
}

// last returns the block that the tail writes into, and the known floor, or why the
// relation has ended.
func (r *relation) last() (b *Block, floor uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return nil, 0, r.ended
	}
	return r.blocks[len(r.blocks)-1], r.floor, nil
}

// check checks an answer that was asked for when the place was known.
func (r *relation) check(now *answer, known follow.Place) error {
	if err := r.hub.check(now, known); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Last > r.promised.Seq {
		r.promised, r.promisedEpochs = now.place(), now.epochs
	}
	r.raiseFloor(now.Meta.Floor)
	if r.info.Meta.Log {
		r.forget(func(v view) bool { return v.last < now.First })
	}
	return nil
}

// raiseFloor takes note of a floor. The caller holds mu.
func (r *relation) raiseFloor(floor uint64) {
	if floor > r.floor {
		r.floor = floor
		r.forgetVoid()
	}
}

// forgetVoid drops the blocks that are void, because the floor is above what the
// stream's High was before they were filled: their clients would be cut for ever. The
// caller holds mu.
func (r *relation) forgetVoid() {
	r.forget(func(v view) bool { return v.highBefore < r.floor })
}

// forget drops the sealed blocks for which void says so. The caller holds mu.
func (r *relation) forget(void func(view) bool) {
	r.blocks = slices.DeleteFunc(r.blocks, func(b *Block) bool {
		if v, _ := b.view(); v.last == 0 || !void(v) {
			return false
		}
		r.hub.drop(b)
		return true
	})
}

// remove takes a block out that there is no room for, or whose file is bad.
func (r *relation) remove(b *Block) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocks = slices.DeleteFunc(r.blocks, func(o *Block) bool { return o == b })
	r.hub.drop(b)
}

// has says whether the block is one of the relation's.
func (r *relation) has(b *Block) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.blocks, b)
}

// at returns the block that covers the sequence. If that is the tail's, and has nothing
// from there on yet, it returns a channel to wait on, and if no block covers it, neither.
func (r *relation) at(seq uint64) (b *Block, wait <-chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return nil, nil, r.ended
	}
	if b = r.covering(seq); b == nil {
		return nil, nil, nil
	}
	if v, _ := b.view(); v.last == 0 && v.from(seq) == len(v.documents) {
		r.waiting++
		return nil, r.changed, nil
	}
	return b, nil, nil
}

// covering returns the block that covers the sequence, nil if none does. The caller
// holds mu.
func (r *relation) covering(seq uint64) *Block {
	i := r.after(seq)
	if i == 0 {
		return nil
	}
	b := r.blocks[i-1]
	if last := b.covers(); last != 0 && last < seq {
		return nil
	}
	return b
}

// after returns the place in blocks of the first that begins after the sequence. The
// caller holds mu.
func (r *relation) after(seq uint64) int {
	return sort.Search(len(r.blocks), func(i int) bool { return r.blocks[i].first > seq })
}

// bracket returns a part [lo, hi) of the stream in which the first message with a High
// of at least since is, as far as blocks show that: the whole [lo, hi) given, at worst.
func (r *relation) bracket(since, lo, hi uint64) (uint64, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.blocks {
		v, _ := b.view()
		if len(v.documents) == 0 {
			continue // or they are on disk, and others bound the place
		}
		n := v.fromHigh(since)
		if n > 0 {
			lo = max(lo, v.documents[n-1].seq+1)
		}
		if n < len(v.documents) {
			hi = min(hi, v.documents[n].seq)
			break
		}
		if v.last != 0 {
			lo = max(lo, v.last+1)
		}
	}
	return lo, max(lo, hi)
}

// over returns why the relation has ended, nil if it has not.
func (r *relation) over() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// join and leave count clients, so that a tail that nobody reads can end.
func (r *relation) join() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients++
}

func (r *relation) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients--
	r.idleSince = time.Now()
}
