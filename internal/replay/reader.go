package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"
)

// Reader is one client's way through a relation. It is for one goroutine.
type Reader struct {
	// Static after construction.
	hub  *Hub
	tail *tail
	req  Request
	// deadline bounds the wait of a finite request for its heartbeat.
	incomplete time.Duration

	// next is the sequence to go on with, hold the one from which heartbeats
	// pass, completed whether one did.
	next, hold uint64
	completed  bool
	// holds is the position of what the client had when it came: it must be
	// told of every delete from there on.
	holds uint64
	// lastData is when something was last returned.
	lastData time.Time
	done     bool
	catchup  *catchup
	// catchups counts how often it was behind the ring.
	catchups int
	buf      []byte
}

// Chunk is what to write next: whole HTTP chunks.
type Chunk struct {
	Data []byte
	Rows int
}

func newReader(h *Hub, t *tail, req Request, start, end uint64) *Reader {
	return &Reader{hub: h, tail: t, req: req, incomplete: h.opt.Wait, next: max(1, start), hold: max(1, end), lastData: time.Now()}
}

// Close releases what the reader holds.
func (r *Reader) Close() {
	r.endCatchup()
	r.tail.leave()
}

// Next returns the next chunks, which stay as they are until the call after. It waits
// for up to wait, and returns an empty Chunk where nothing came. At the end of
// a finite request it returns io.EOF, with the last chunks. Every other error
// cuts the stream; the client comes back.
func (r *Reader) Next(ctx context.Context, wait time.Duration) (Chunk, error) {
	if r.done {
		return Chunk{}, io.EOF
	}
	deadline := time.Now().Add(wait)
	for {
		if !r.req.Follow && time.Since(r.lastData) > r.incomplete {
			return Chunk{}, ErrIncomplete
		}
		c, changed, err := r.step(ctx)
		if err != nil || len(c.Data) > 0 {
			r.lastData = time.Now()
			return c, err
		}
		if changed == nil {
			if err := ctx.Err(); err != nil {
				return Chunk{}, err
			}
			if time.Now().After(deadline) {
				return Chunk{}, nil
			}
			continue
		}
		t := time.NewTimer(min(time.Until(deadline), r.untilIncomplete()))
		select {
		case <-ctx.Done():
			t.Stop()
			return Chunk{}, ctx.Err()
		case <-changed:
			t.Stop()
		case <-t.C:
			if !time.Now().Before(deadline) {
				return Chunk{}, nil
			}
		}
	}
}

func (r *Reader) untilIncomplete() time.Duration {
	if r.req.Follow {
		return time.Hour
	}
	return max(time.Millisecond, time.Until(r.lastData.Add(r.incomplete))+time.Millisecond)
}

// step returns what is there now; or, where that is nothing, a channel to wait
// on, or nil to try again at once.
func (r *Reader) step(ctx context.Context) (Chunk, <-chan struct{}, error) {
	v, changed, ok, err := r.tail.at(r.next)
	if err != nil {
		return Chunk{}, nil, err
	}
	if !ok {
		c, err := r.catchUp(ctx)
		return c, nil, err
	}
	if r.catchup != nil {
		if err := r.handOver(ctx); err != nil {
			return Chunk{}, nil, err
		}
	}
	if len(v.entries) == 0 {
		return Chunk{}, changed, nil
	}
	r.hub.metrics.ringReads.Inc()
	c, err := r.take(v)
	return c, nil, err
}

// take turns a view into what this client gets of it. Where that is all, it is
// the block's own memory.
func (r *Reader) take(v view) (Chunk, error) {
	begin := v.begin
	var out Chunk
	r.buf = r.buf[:0]
	whole := !r.req.Flat
	for i := range v.entries {
		e := &v.entries[i]
		chunk := v.data[begin:e.end]
		begin = e.end
		r.next = e.seq + 1
		switch {
		case e.heartbeat && e.seq < r.hold:
			// Not passed on: copy the rest of the view around it.
			if whole {
				r.buf, whole = append(r.buf, v.data[v.begin:begin-len(chunk)]...), false
			}
			continue
		case e.heartbeat && !r.completed:
			if whole {
				r.buf, whole = append(r.buf, v.data[v.begin:begin-len(chunk)]...), false
			}
			r.completed = true
			r.buf = appendChunk(r.buf, lockstep.AppendSnapshotCompleted(nil, time.Now().Unix()))
			r.buf = append(r.buf, chunk...)
			if !r.req.Follow {
				r.done = true
				out.Data = r.buf
				return out, io.EOF
			}
			continue
		case !e.heartbeat:
			out.Rows++
		}
		if whole {
			continue
		}
		if !r.req.Flat {
			r.buf = append(r.buf, chunk...)
			continue
		}
		var err error
		if r.buf, err = appendFlatChunk(r.buf, document(chunk)); err != nil {
			return Chunk{}, err
		}
	}
	out.Data = r.buf
	if whole {
		out.Data = v.data[v.begin:begin]
	}
	return out, nil
}

// catchupTurn is how long a client may hold its place among those that catch up
// while others wait for one.
const catchupTurn = 2 * time.Second

// catchup reads from the broker what is no longer in the ring.
type catchup struct {
	hub    *Hub
	since  time.Time
	reader *follow.Reader
	gate   follow.Gate
	place  follow.Place
	block  block
	// silent counts waits in vain.
	silent int
	// passed is set when it read a message of the ring: it can't go on.
	passed bool
}

// catchUp returns the next documents that the ring does not hold, or nothing
// where they did not come soon.
func (r *Reader) catchUp(ctx context.Context) (Chunk, error) {
	out, err := r.readOn(ctx)
	if err == nil || errors.Is(err, io.EOF) || ctx.Err() != nil || errors.Is(err, follow.ErrReset) || errors.Is(err, stream.ErrLayout) || errors.Is(err, lockstep.ErrMalformed) {
		return out, err
	}
	// The broker is away, or was: read again from r.next on. If the stream is
	// another afterwards the tail says so.
	r.tail.log.Debug().Err(err).Msg("catching up again")
	select {
	case <-ctx.Done():
		return Chunk{}, ctx.Err()
	case <-time.After(retryMin):
		return Chunk{}, nil
	}
}

// catchupStep bounds the wait for one of the places, and for a message.
const catchupStep = 500 * time.Millisecond

// rejoinBytes bounds what a client that was behind the ring before reads at once,
// to come to the stream's end and a heartbeat.
const rejoinBytes = 1 << 20

// catchupSilence is after how many such waits the broker may have forgotten
// the consumer.
const catchupSilence = 20

// openCatchup begins to read from the broker, if one of the places is free.
func (r *Reader) openCatchup(ctx context.Context) error {
	r.hub.queued.Add(1)
	defer r.hub.queued.Add(-1)
	select {
	case r.hub.catchups <- struct{}{}:
	case <-time.After(catchupStep):
		r.lastData = time.Now() // waiting for its turn is no fault of the stream
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	info := r.tail.info
	c, err := follow.Open(ctx, r.hub.nc, r.hub.js, info.Layout, r.next)
	if err != nil {
		<-r.hub.catchups
		return err
	}
	r.catchups++
	r.catchup = &catchup{hub: r.hub, since: time.Now(), reader: c, gate: follow.NewGate(r.next, follow.EndNow(r.hub.nc, r.hub.js, info.Layout))}
	// The stream must still be the one that this client has read from; all of
	// that lies before the tail's place.
	err = r.hub.verify(ctx, info, r.tail.last())
	var epochs stream.Epochs
	if err == nil {
		epochs, err = follow.ReadEpochs(ctx, r.hub.nc, info.Layout)
	}
	if err != nil {
		r.endCatchup()
		return err
	}
	r.catchup.place = follow.NewPlace(info, r.next-1, epochs)
	r.hub.metrics.catchups.Inc()
	return nil
}

func (r *Reader) readOn(ctx context.Context) (Chunk, error) {
	if r.catchup != nil && (r.catchup.passed || r.catchup.mustYield()) { // passed: the ring moved on
		if err := r.handOver(ctx); err != nil {
			return Chunk{}, err
		}
	}
	if r.catchup == nil {
		if err := r.openCatchup(ctx); err != nil || r.catchup == nil {
			return Chunk{}, err
		}
	}
	c, from := r.catchup, r.next
	c.block.data, c.block.entries = c.block.data[:0], c.block.entries[:0]
	// Whoever falls out of the ring again, because it is slower than the ring,
	// would do so again where the ring begins. It reads on to the end, and to a
	// heartbeat that it may have: of rows that change all the time only the last
	// versions are left, and those it can take.
	again := r.catchups > 1
	limit, most := r.tail.first(), blockBytes
	if again {
		limit, most = r.tail.last().Seq+1, rejoinBytes
	}
	step, cancel := context.WithTimeout(ctx, catchupStep)
	defer cancel()
	var failed error
	for len(c.block.data) < most && !c.passed {
		m, err := c.reader.Next(step)
		if err != nil {
			if ctx.Err() != nil {
				return Chunk{}, ctx.Err()
			}
			if c.silent++; step.Err() == nil || c.silent > catchupSilence {
				c.passed, failed = true, err // read again from r.next on
			}
			break
		}
		c.silent = 0
		if err := c.place.Follow(m); err != nil {
			return Chunk{}, err
		}
		c.gate.Read(m.Seq)
		if !again && m.Seq >= limit {
			r.next, c.passed = limit, true
			break
		}
		if err := c.take(ctx, m, again); err != nil {
			return Chunk{}, r.unread(from, err)
		}
		r.next = m.Seq + 1
		c.passed = r.next >= limit && (!again || m.Kind == stream.KindHeartbeat && !c.gate.Holes())
	}
	if c.passed && failed == nil {
		// Now, not when the client has taken all this: the stream's end moves on.
		if err := r.handOver(ctx); err != nil {
			return Chunk{}, r.unread(from, err)
		}
	}
	if len(c.block.entries) == 0 {
		return Chunk{}, failed
	}
	next := r.next
	out, err := r.take(view{data: c.block.data, entries: c.block.entries})
	r.next = next
	return out, err
}

// unread has what was read from a sequence on, and not handed out, read again.
func (r *Reader) unread(from uint64, err error) error {
	r.next, r.catchup.passed = from, true
	return err
}

// take adds a message to the block. Heartbeats are passed on near the stream's
// end only; further behind they stand for nothing any more.
func (c *catchup) take(ctx context.Context, m follow.Message, heartbeats bool) error {
	switch m.Kind {
	case stream.KindRow:
	case stream.KindHeartbeat:
		if !heartbeats {
			return nil
		}
		if pass, err := c.gate.Pass(ctx, m.Seq); err != nil || !pass {
			return err
		}
	default:
		return nil
	}
	c.block.data = appendChunk(c.block.data, m.Data)
	c.block.entries = append(c.block.entries, entry{seq: m.Seq, end: len(c.block.data), heartbeat: m.Kind == stream.KindHeartbeat})
	return nil
}

// mustYield says whether it is another client's turn: a slow one must not keep
// others from the stream (I10).
func (c *catchup) mustYield() bool {
	return time.Since(c.since) > catchupTurn && c.hub.queued.Load() > 0
}

// handOver ends the catching up: holes met on the way hold heartbeats back up
// to the stream's end as it is now. A client that took so long that deletes it
// had to be told of were removed begins again, and is told that instead.
func (r *Reader) handOver(ctx context.Context) error {
	now, err := r.hub.lookup(ctx, r.tail.info.Layout)
	if err != nil {
		return err
	}
	if now.Meta.Floor > r.holds {
		return fmt.Errorf("%w: deletes from %d on are no longer in it", follow.ErrReset, r.holds)
	}
	until, err := r.catchup.gate.Until(ctx, r.next-1)
	if err != nil {
		return err
	}
	r.hold = max(r.hold, until)
	r.endCatchup()
	return nil
}

func (r *Reader) endCatchup() {
	if r.catchup == nil {
		return
	}
	r.catchup.reader.Close()
	r.catchup = nil
	<-r.hub.catchups
}
