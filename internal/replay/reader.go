package replay

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"bridge/internal/follow"
	"bridge/lockstep"
)

// Reader is one client's way through a relation: a place in the stream, and no resource
// of the broker. It is for one goroutine.
type Reader struct {
	// Static after construction.
	hub      *Hub
	relation *relation
	follow   bool
	// incomplete bounds the wait of a finite request for its heartbeat.
	incomplete time.Duration
	// end is where the stream ended when the client came, and floor its floor then.
	end, floor uint64

	at state
	// page bounds what is returned, nil for nothing: see Page.
	page *page
	// lastData is when something was last returned.
	lastData time.Time
	// wanted is what it waits for, nil for nothing.
	wanted *want
	// part is what Next returns. While the reader waits, it is empty: it holds no block.
	part Part
}

// state is how far a client is.
type state struct {
	// next is the sequence to go on with. What has a lower High than seek is not sent.
	next, seek uint64
	// hold is the sequence from which heartbeats pass. While open is set, none do: the
	// client was sent what follows a hole, and it is not yet known where that ends.
	hold uint64
	open bool
	// holds is the position from which on the client must be told of every delete.
	holds uint64
	// completed says that a heartbeat has passed, done that the request is answered.
	completed, done bool
}

// Part is what a client gets next: documents of one block. It is the reader's, until that
// is asked for more.
type Part struct {
	view     view
	from, to int
	rows     int
	first    bool
	// before is where the reader was, and holds its state's before the documents.
	before state
	holds  uint64
}

// Empty says that there are no documents.
func (p *Part) Empty() bool { return p.to == 0 }

// Rows returns how many of the documents are rows.
func (p *Part) Rows() int { return p.rows }

// Completed says that with the first document, a heartbeat, the client has the whole
// state for the first time.
func (p *Part) Completed() bool { return p.first }

// Row says whether the nth document, counted from 0, is a row.
func (p *Part) Row(n int) bool {
	_, beat := slices.BinarySearch(p.view.beats, p.from+n)
	return !beat
}

// Position returns the place of a client that got the first n documents, at least one.
func (p *Part) Position(n int) lockstep.Cursor {
	i := p.from + n - 1
	c := lockstep.Cursor{
		Incarnation: p.view.relation.info.Meta.Incarnation, Epoch: p.view.epoch, Seq: p.view.documents[i].seq,
		Holds: p.holds, Since: lockstep.Since(p.view.document(i)),
	}
	if beats := p.view.passed(p.from, i+1); len(beats) > 0 {
		c.Holds = p.view.documents[beats[len(beats)-1]].high
	}
	return c
}

// Len returns how many documents there are.
func (p *Part) Len() int { return p.to - p.from }

// Size returns how many bytes the nth document, counted from 0, has as it is.
func (p *Part) Size(n int) int { return len(p.view.document(p.from + n)) }

// Render returns the first documents in the form, at least one: data[begin:ends[len(ends)-1]].
// ends has where each document's piece ends. All stay as they are. If the part begins or
// ends within a piece, what it has of that is rendered for it alone, and is all that is
// returned, or is left out.
func (p *Part) Render(f Form) (data []byte, begin int, ends []uint32, err error) {
	r, grew, err := p.view.render(f, p.to)
	if err != nil {
		return nil, 0, nil, err
	}
	if grew { // most clients get what another's rendering made
		cache := p.view.relation.hub.cache
		cache.grew(p.view.Block)
		cache.trim()
	}
	to := p.to
	if r.within(p.from) {
		return p.alone(f, min(to, r.next(p.from)))
	}
	if r.within(to) {
		if to = r.previous(to); to <= p.from {
			return p.alone(f, p.to)
		}
	}
	return r.data, r.begin(p.from), r.ends[p.from:to], nil
}

// alone renders the documents before to as a piece that nobody else gets.
func (p *Part) alone(f Form, to int) (data []byte, begin int, ends []uint32, err error) {
	data, err = f.Append(nil, (&run{&p.view, p.from, to}).each)
	return data, 0, slices.Repeat([]uint32{uint32(len(data))}, to-p.from), err
}

// Incarnation returns the stream's incarnation, and Floor its floor when the client came.
func (r *Reader) Incarnation() string { return r.relation.info.Meta.Incarnation }

// Floor is described with Incarnation.
func (r *Reader) Floor() uint64 { return r.floor }

// Close releases what the reader holds.
func (r *Reader) Close() {
	if r.wanted != nil {
		r.relation.unwant(r.wanted)
	}
	r.relation.leave()
}

// Next returns what comes next. It waits for up to wait, and returns an empty Part if
// nothing came. At the end of a finite request it returns io.EOF, with the last
// documents. Every other error cuts the stream; the client comes back.
func (r *Reader) Next(ctx context.Context, wait time.Duration) (*Part, error) {
	deadline := time.Now().Add(wait)
	for {
		r.part = Part{}
		if r.at.done {
			return &r.part, io.EOF
		}
		left := r.patience()
		if left < 0 {
			return &r.part, ErrIncomplete
		}
		changed, err := r.step()
		if err == nil && r.page != nil {
			if r.page.rows -= r.part.rows; r.page.rows < 0 {
				err = errPageGrew
			}
		}
		switch {
		case err != nil:
			r.part = Part{}
			return &r.part, err
		case !r.part.Empty():
			r.lastData = time.Now()
			if r.at.done {
				err = io.EOF
			}
			return &r.part, err
		}
		r.part = Part{}
		if changed == nil {
			if err := ctx.Err(); err != nil {
				return &r.part, err
			}
			continue
		}
		t := time.NewTimer(min(time.Until(deadline), left+time.Millisecond))
		select {
		case <-ctx.Done():
			t.Stop()
			return &r.part, ctx.Err()
		case <-changed:
			t.Stop()
		case <-t.C:
			if !time.Now().Before(deadline) {
				return &r.part, nil
			}
		}
	}
}

// patience returns how much longer the reader waits for documents; it is negative if it
// has waited long enough. Waiting for its turn is no fault of the stream.
func (r *Reader) patience() time.Duration {
	if r.follow {
		return time.Hour
	}
	since := r.lastData
	if filled := time.Unix(0, r.hub.filled.Load()); r.wanted != nil && filled.After(since) {
		since = filled
	}
	return time.Until(since.Add(r.incomplete))
}

// step makes what is there now the reader's part. If there is nothing, it returns a
// channel to wait on, or nil if the reader got further without.
func (r *Reader) step() (<-chan struct{}, error) {
	b, changed, err := r.relation.at(r.at.next)
	if err != nil {
		return nil, err
	}
	if w := r.wanted; w != nil {
		if b == nil && changed == nil && !isClosed(w.done) {
			return w.done, nil
		}
		r.wanted = nil
		r.relation.unwant(w)
		if w.err != nil {
			return nil, w.err
		}
		if w.block != nil && (w.through || b == nil) {
			b, changed = w.block, nil
		}
	}
	if changed != nil {
		return changed, nil
	}
	if b == nil {
		// What came after its request was in the tail's blocks: it fell behind.
		r.wanted = r.relation.want(r.at.next, r.at.next > r.end)
		return r.wanted.done, nil
	}
	r.hub.cache.use(b)
	if r.part.view, err = r.hub.load(b); err != nil {
		return nil, nil // it is read from the broker again
	}
	if b.cold && b.read.CompareAndSwap(false, true) {
		r.relation.demand()
	}
	r.hub.metrics.cacheReads.Inc()
	return nil, r.take(math.MaxInt)
}

// take makes the part what the client gets of the block in it, or of its first most
// documents, and moves the client's state past that. TestModel_Blocks_I2 has the rules.
func (r *Reader) take(most int) error {
	s, p, v := &r.at, &r.part, &r.part.view
	p.before, p.from, p.to, p.rows, p.first = *s, 0, 0, 0, false
	n := v.from(s.next)
	if s.seek > 0 {
		n = max(n, v.fromHigh(s.seek))
	}
	if s.holds = min(s.holds, v.highFrom(n)); v.floorAfter > s.holds {
		return fmt.Errorf("%w: deletes from %d on are no longer in it", follow.ErrReset, s.holds)
	}
	p.holds = s.holds
	s.hold = max(s.hold, v.until)
	if v.cold && s.open { // it was filled after the hole was met
		s.hold = max(s.hold, v.end)
	}
	s.open = s.open && v.open
	end := len(v.documents) // of what the client may get
	until := r.page.end()
	if until != 0 {
		end = v.from(until + 1)
	}
	to := min(end, most)
	beat, _ := slices.BinarySearch(v.beats, n) // the next heartbeat
	heartbeats := 0
loop:
	for ; beat < len(v.beats) && v.beats[beat] < to; beat++ {
		i := v.beats[beat]
		switch d := &v.documents[i]; {
		case s.open || d.seq < s.hold || v.open && i >= v.openAt:
			if i > n {
				to = i
				break loop
			}
			n++ // it is not passed on
			continue
		case !s.completed && i > n:
			to = i
			break loop
		case !s.completed:
			s.completed, p.first = true, true
			if !r.follow {
				s.done, to = true, i+1
			}
		}
		s.holds = v.documents[i].high
		heartbeats++
	}
	if n < to {
		s.open = s.open || v.open && to > v.openAt
		s.seek = 0
		p.from, p.to, p.rows = n, to, to-n-heartbeats
	}
	switch {
	case to < len(v.documents):
		if to > 0 {
			s.next = max(s.next, v.documents[to-1].seq+1)
		}
	case v.last != 0:
		s.next = v.last + 1
	case len(v.documents) > 0:
		s.next = max(s.next, v.documents[len(v.documents)-1].seq+1)
	}
	if until != 0 && (s.next > until || to == end && end < len(v.documents)) {
		s.done = true
	}
	return nil
}

// Return gives the last part back but for its first n documents, and returns how many of
// these are rows. The rest comes again. The reader holds nothing of the part from then on.
func (r *Reader) Return(n int) (rows int, err error) {
	all := r.part.rows
	r.at = r.part.before
	err = r.take(r.part.from + n)
	if rows = r.part.rows; r.page != nil {
		r.page.rows += all - rows
	}
	r.part = Part{}
	return rows, err
}
