package replay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
)

// coldReaders bounds the cold readers of one relation.
const coldReaders = 2

const (
	// near is how many sequences a cold reader reads that nobody wants, rather than begin
	// again after them. On a large stream with holes, each new consumer costs the broker
	// 50 to 100 ms (measured).
	near = 20_000
	// turnBlocks is after how many blocks a cold reader looks after those who wait
	// elsewhere, aheadBlocks how many it fills that nobody has asked for yet.
	turnBlocks, aheadBlocks = 8, 2
	// lingering is how long it keeps its consumer when nobody waits.
	lingering = time.Second
	// readOnBytes bounds the blocks after the first, which comes soon. throughBytes bounds
	// a block of those who fell behind.
	readOnBytes, throughBytes = 8 * blockBytes, 1 << 20
)

// want is a client that waits for what no block covers.
type want struct {
	from uint64
	// through is set if the client fell behind. It wants what the stream has by now, up to
	// its end and a heartbeat that counts. Blocks would show it versions of rows that were
	// replaced since, and it would never get through them.
	through bool
	since   time.Time
	// done is closed when block or err is set, or the relation is over.
	done  chan struct{}
	block *Block
	err   error
}

// want begins to wait for the sequence from.
func (r *relation) want(from uint64, through bool) *want {
	w := &want{from: from, through: through, since: time.Now(), done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		close(w.done)
		return w
	}
	r.wants = append(r.wants, w)
	r.serve()
	return w
}

// unwant ends the wait.
func (r *relation) unwant(w *want) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wants = slices.DeleteFunc(r.wants, func(o *want) bool { return o == w })
}

// serve has cold readers look after those who wait. The caller holds mu.
func (r *relation) serve() {
	r.notify()
	c := &coldReader{relation: r, woken: make(chan struct{}, 1)}
	if r.ended == nil && len(r.readers) < coldReaders && r.pick(c) != nil && r.hub.spawn(c.run) {
		r.readers = append(r.readers, c)
	}
}

// demand takes note that a client reads a block for the first time: more may be filled
// ahead of it.
func (r *relation) demand() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notify()
}

// notify has the cold readers look whether there is something to do. The caller holds mu.
func (r *relation) notify() {
	for _, c := range r.readers {
		c.notify()
	}
}

// deliver gives a block to those who wait for it. If share is set, it becomes one of the
// relation's blocks, without what another one has got meanwhile.
func (r *relation) deliver(b *Block, share bool) {
	r.mu.Lock()
	if share && r.ended == nil && r.covering(b.first) == nil {
		i := r.after(b.first)
		if i < len(r.blocks) {
			b.cut(r.blocks[i].first)
		}
		r.blocks = slices.Insert(r.blocks, i, b)
		r.hub.cache.add(b)
	}
	last := b.covers()
	r.answer(func(w *want) bool {
		if w.from < b.first || w.from > last {
			return false
		}
		w.block = b
		return true
	})
	r.mu.Unlock()
	r.hub.cache.trim()
}

// answer ends the wait of those for whom done returns true. The caller holds mu.
func (r *relation) answer(done func(*want) bool) {
	r.wants = slices.DeleteFunc(r.wants, func(w *want) bool {
		if !done(w) {
			return false
		}
		close(w.done)
		return true
	})
}

// lost ends the wait of those who need what a log has forgotten: what was between from
// and to.
func (r *relation) lost(from, to uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer(func(w *want) bool {
		if w.from < from || w.from >= to {
			return false
		}
		w.err = fmt.Errorf("%w: it lost what was between %d and %d", follow.ErrReset, w.from, to)
		return true
	})
}

// pick returns for whom the cold reader should fill a block next, nil for nobody. The
// caller holds mu.
func (r *relation) pick(c *coldReader) *want {
	var next, oldest *want
	for _, w := range r.wants {
		if slices.ContainsFunc(r.readers, func(o *coldReader) bool { return o != c && o.reaches(w) }) {
			continue
		}
		if c.reaches(w) && (next == nil || w.from < next.from) {
			next = w
		}
		if oldest == nil || w.since.Before(oldest.since) {
			oldest = w
		}
	}
	if next != nil && (c.turn < turnBlocks || c.reaches(oldest)) || oldest == nil {
		return next
	}
	// Who waits a little before it is served on the way.
	first := oldest
	for _, w := range r.wants {
		if w.from < first.from && oldest.from-w.from < near {
			first = w
		}
	}
	return first
}

// coldReader reads blocks from the broker for those who wait for them. It owns a
// consumer; no client does.
type coldReader struct {
	relation *relation
	woken    chan struct{}

	// Guarded by relation.mu: the sequence at which it reads on, 0 for nowhere, and how
	// many blocks it has filled since it began there.
	pos  uint64
	turn int

	// Owned by run, of the present consumer: it brings what is at or after the sequence
	// reads next, lost is closed if the connection was lost since it began, and high is the
	// stream's High before that. early is a message that was read and not used.
	reader *follow.Reader
	reads  uint64
	lost   <-chan struct{}
	place  follow.Place
	high   uint64
	early  *follow.Message
	// ahead are blocks that no client has read yet.
	ahead []*Block
}

func (c *coldReader) notify() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// reaches says whether the reader comes to the want by reading on. The caller holds the
// relation's mu.
func (c *coldReader) reaches(w *want) bool {
	return c.pos != 0 && c.pos <= w.from && w.from-c.pos < near
}

// run fills blocks until nobody has waited for a while, or it is others' turn.
func (c *coldReader) run(ctx context.Context) {
	r := c.relation
	defer c.leave()
	if !r.hub.enter(ctx) {
		return
	}
	defer r.hub.exit()
	defer c.end() // before another reader begins in its place
	for backoff := retryMin; ; {
		from, through, ok := c.next(ctx)
		if !ok {
			return
		}
		err := c.fill(ctx, from, through)
		if err == nil {
			backoff = retryMin
			if c.turn >= turnBlocks && r.hub.queued.Load() > 0 {
				return
			}
			continue
		}
		if errors.Is(err, follow.ErrReset) || errors.Is(err, stream.ErrLayout) {
			r.end(err)
		}
		r.log.Debug().Err(err).Msg("reading the stream again")
		c.forget()
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, retryMax)
	}
}

// leave ends the reader. Others look after those who still wait.
func (c *coldReader) leave() {
	c.forget()
	r := c.relation
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readers = slices.DeleteFunc(r.readers, func(o *coldReader) bool { return o == c })
	r.serve()
}

// next waits until there is something to fill, and returns where. It returns false if
// there was nothing for a while, or the relation is over.
func (c *coldReader) next(ctx context.Context) (from uint64, through, ok bool) {
	idle := time.NewTimer(lingering)
	defer idle.Stop()
	for {
		from, through, ok = c.choose()
		if !ok || from != 0 {
			return from, through, ok
		}
		if c.relation.hub.queued.Load() > 0 {
			return 0, false, false
		}
		select {
		case <-ctx.Done():
			return 0, false, false
		case <-c.woken:
		case <-idle.C:
			return 0, false, false
		}
	}
}

// choose returns where to fill now, 0 for nowhere.
func (c *coldReader) choose() (from uint64, through, ok bool) {
	r := c.relation
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return 0, false, false
	}
	c.ahead = slices.DeleteFunc(c.ahead, func(b *Block) bool { return b.read.Load() })
	switch w := r.pick(c); {
	case w != nil && c.reaches(w) && (w.through || r.covering(c.pos) == nil):
		from, through = c.pos, w.through
	case w != nil:
		from, through, c.turn = w.from, w.through, 0
	case c.pos != 0 && len(c.ahead) > 0 && len(c.ahead) < aheadBlocks && r.covering(c.pos) == nil:
		from = c.pos
	default:
		return 0, false, true
	}
	c.pos, c.turn = from, c.turn+1
	return from, through, true
}

// covered returns the first sequence after seq from which on a block covers the stream.
func (r *relation) covered(seq uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.after(seq); i < len(r.blocks) {
		return r.blocks[i].first
	}
	return math.MaxUint64
}

// open makes the consumer one that brings what is at or after the sequence from next.
func (c *coldReader) open(ctx context.Context, from uint64) error {
	r := c.relation
	if c.reader != nil && c.reads == from && !isClosed(c.lost) {
		return nil
	}
	c.end()
	lost := r.hub.reconnected()
	now, err := r.ask(ctx)
	if err != nil {
		return err
	}
	reader, err := follow.Open(ctx, r.hub.opt.Past, r.info.Layout, from)
	if err != nil {
		return err
	}
	c.reader, c.reads, c.lost = reader, from, lost
	c.high, c.place = now.highest(), follow.NewPlace(r.info, from-1, now.epochs)
	return nil
}

// end ends the consumer.
func (c *coldReader) end() {
	if c.reader != nil {
		c.reader.Close()
	}
	c.reader, c.early = nil, nil
}

// forget ends the consumer, and leaves to others what it was to fill.
func (c *coldReader) forget() {
	c.end()
	c.moveTo(0)
}

// moveTo says where the reader reads on.
func (c *coldReader) moveTo(seq uint64) {
	c.relation.mu.Lock()
	defer c.relation.mu.Unlock()
	c.reads, c.pos = seq, seq
}

// read returns the next message.
func (c *coldReader) read(ctx context.Context) (follow.Message, error) {
	if m := c.early; m != nil {
		c.early = nil
		return *m, nil
	}
	return c.reader.Next(ctx)
}

// errForgotten says that a log no longer has what was to be read. Who waited for it
// knows.
var errForgotten = errors.New("the log has forgotten it")

// How long filling a block may wait for messages: as long as the broker may be slow, and
// through the stream's end not for long.
const (
	fillWait    = 10 * time.Second
	throughWait = 500 * time.Millisecond
)

// fill fills a block from the sequence from on, up to where another begins, and delivers
// it. What is asked of the stream's leader afterwards is true for all of it.
func (c *coldReader) fill(ctx context.Context, from uint64, through bool) error {
	r := c.relation
	ctx, cancel := r.hub.untilLost(ctx)
	defer cancel()
	if err := c.open(ctx, from); err != nil {
		return err
	}
	b := newBlock(r, from, c.high)
	b.cold = true
	limit, most, wait := r.covered(from), blockBytes, fillWait
	switch {
	case through:
		limit, most, wait = math.MaxUint64, throughBytes, throughWait
	case c.turn > 1: // it reads on: the leader need not be asked so often
		most = min(readOnBytes, max(blockBytes, r.hub.opt.CacheBytes/16)) // many fit into the cache
	}
	until, holes, err := c.take(ctx, b, limit, most, wait, through)
	if errors.Is(err, errForgotten) {
		return nil
	}
	if err != nil {
		return err
	}
	last := c.reads - 1
	now, err := r.ask(ctx)
	if err != nil {
		return err
	}
	if err := now.holds(c.place); err != nil {
		return err
	}
	if now.Meta.Floor > c.high {
		return errors.New("the floor rose above what the stream's High was when the consumer began")
	}
	if holes {
		until = now.end
	}
	b.mark(func(k *marks) {
		k.until, k.end, k.floorAfter, k.epoch = until, now.end, now.Meta.Floor, now.epochs.Newest()
	})
	b.seal(last)
	r.hub.metrics.fills.Inc()
	r.hub.filled.Store(time.Now().UnixNano())
	c.ahead = append(c.ahead, b)
	c.moveTo(last + 1)
	r.deliver(b, !through)
	return nil
}

// take reads documents into the block, up to the sequence limit or about most bytes. If
// through is set, it goes on to a heartbeat that counts. It returns from where on
// heartbeats count, and whether there are holes for which that was not yet asked.
func (c *coldReader) take(ctx context.Context, b *Block, limit uint64, most int, wait time.Duration, through bool) (until uint64, holes bool, err error) {
	r := c.relation
	step, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for size := 0; size < most; {
		m, err := c.read(step)
		if err != nil {
			if step.Err() != nil && ctx.Err() == nil && c.reads > b.first { // what there is will do
				return until, holes, nil
			}
			return 0, false, err
		}
		if r.info.Meta.Log && m.Seq != c.reads {
			c.early = &m
			if c.reads == b.first {
				r.lost(b.first, m.Seq)
				c.place.Seq = m.Seq - 1
				c.moveTo(m.Seq)
				return 0, false, errForgotten
			}
			return 0, false, nil
		}
		if m.Seq >= limit {
			c.early = &m
			holes = holes || c.reads < limit
			c.reads = limit
			return until, holes, nil
		}
		if err := c.place.Follow(m); err != nil {
			return 0, false, err
		}
		holes = holes || m.Seq != c.reads
		c.reads = m.Seq + 1
		if !forwarded(m.Kind) {
			continue
		}
		high, _, err := marksOf(m)
		if err != nil {
			return 0, false, err
		}
		b.append(m.Seq, high, m.Kind == stream.KindHeartbeat, m.Data)
		size += len(m.Data)
		if !through || m.Kind != stream.KindHeartbeat {
			continue
		}
		if holes {
			now, err := r.ask(ctx)
			if err != nil {
				return 0, false, err
			}
			until, holes = now.end, false
		}
		if m.Seq >= until {
			return until, false, nil
		}
	}
	return until, holes, nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
