package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// tombstoneRounds is how many rounds there are in Options.Tombstones. A round
	// takes at least a second and at most an hour.
	tombstoneRounds = 10
	// tombstonePage bounds how many deleted rows one round looks at.
	tombstonePage = 10_000
)

// keepTombstones removes deleted rows that are older than Options.Tombstones,
// until ctx ends. It raises the floor first. When a heartbeat with that floor is
// stored, and one round later, it removes the deleted rows below it. A client that
// resumes below the floor would miss these deletes. It is refused, and must read
// everything again. A client that began just before the floor rose has one round in
// which it can still read them. By then a reader of the stream has read the floor.
func (p *Publisher) keepTombstones(ctx context.Context) {
	pause := min(max(p.opt.Tombstones/tombstoneRounds, time.Second), time.Hour)
	var r tombstoneRound
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause): // not a ticker: the pause after a slow round is a whole one, too
		}
		n, next, err := p.removeTombstones(ctx, time.Now().Add(-p.opt.Tombstones), r)
		// A lost connection ends the epoch, and the capture reports that.
		if err = orLost(ctx, err); err != nil && !errors.Is(err, errLost) && ctx.Err() == nil {
			p.log.Warn().Err(err).Msg("removing old deleted rows failed, trying again")
		}
		if n > 0 {
			p.log.Info().Int("rows", n).Uint64("floor", r.floor).Msg("old deleted rows removed")
		}
		r = next
	}
}

// tombstoneRound is what a round leaves to the next.
type tombstoneRound struct {
	epoch *epoch
	// floor is the highest floor that was said in the stream at the round's end, 0 if
	// that is not known.
	floor uint64
	// from is the sequence before which no deleted row is left.
	from uint64
}

// removeTombstones looks at up to tombstonePage deleted rows that were stored
// before the given time. It raises the floor above all of them, and removes those
// whose High is below the last round's floor. It returns how many it removed.
func (p *Publisher) removeTombstones(ctx context.Context, before time.Time, last tombstoneRound) (removed int, next tombstoneRound, err error) {
	p.mu.Lock()
	e := p.epoch
	p.mu.Unlock()
	if e == nil || e.fault() != nil {
		return 0, tombstoneRound{}, nil // not ours to tidy
	}
	if last.epoch != e {
		last = tombstoneRound{epoch: e, from: 1}
	}
	old, from, err := p.oldTombstones(ctx, e, last.from, before)
	if err != nil {
		return 0, tombstoneRound{}, err
	}
	said, err := p.saidFloor(ctx, e)
	if err != nil {
		return 0, tombstoneRound{}, err
	}
	next = tombstoneRound{epoch: e, floor: said, from: from}
	if len(old) == 0 {
		return 0, next, nil
	}
	if err := p.raiseFloor(ctx, e, old[len(old)-1].high+1); err != nil {
		return 0, tombstoneRound{}, err
	}
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return 0, tombstoneRound{}, fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	for _, t := range old {
		if t.high >= last.floor {
			next.from = t.seq
			break
		}
		// If it is gone already, a later version replaced it.
		if err := s.DeleteMsg(ctx, t.seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return removed, tombstoneRound{}, fmt.Errorf("delete message %d of stream %s: %w", t.seq, p.layout.Stream, err)
		}
		removed++
	}
	return removed, next, nil
}

// tombstone is a deleted row's place in the stream.
type tombstone struct{ seq, high uint64 }

// oldTombstones returns, in order, the deleted rows from the sequence from on
// that were stored before the given time, at most tombstonePage. next is the
// sequence before which there are no others.
func (p *Publisher) oldTombstones(ctx context.Context, e *epoch, from uint64, before time.Time) (old []tombstone, next uint64, err error) {
	err = p.read(ctx, e, from, func(m follow.Message) (more bool, err error) {
		if next = m.Seq; !m.Time.Before(before) {
			return false, nil // all later messages are newer
		}
		if deleted, _, _ := lockstep.Parts(m.Data); deleted && m.Kind == stream.KindRow {
			h, err := stream.High(m.Header)
			if err != nil {
				return false, fmt.Errorf("read High of message %d: %w", next, err)
			}
			old = append(old, tombstone{seq: next, high: h})
		}
		next++
		return m.Pending > 0 && len(old) < tombstonePage, nil
	})
	return old, next, err
}

// saidFloor returns the highest floor that a stored fence or heartbeat has.
func (p *Publisher) saidFloor(ctx context.Context, e *epoch) (uint64, error) {
	p.mu.Lock()
	sent, unsaid := e.seq, e.floor > e.storedFloor
	p.mu.Unlock()
	if unsaid {
		if err := p.awaitStored(ctx, e, sent); err != nil {
			return 0, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return e.storedFloor, nil
}

// raiseFloor writes the floor to the stream's configuration, unless the stream's
// floor is higher already, and that deleted rows are removed. The epoch's heartbeats have it from then on. It returns an
// error if another incarnation has begun.
func (p *Publisher) raiseFloor(ctx context.Context, e *epoch, floor uint64) error {
	other := false
	err := p.changeConfig(ctx, p.unchanged(), func(meta *stream.Meta, _ jetstream.StreamConfig, _ stream.Settings) bool {
		other = meta.Incarnation != e.incarnation
		raise := !other && (meta.Floor < floor || !meta.Tidied)
		floor = max(floor, meta.Floor)
		meta.Floor, meta.Tidied = floor, true
		return raise
	})
	if err == nil && other {
		err = errors.New("another incarnation began")
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e.floor = max(e.floor, floor)
	return nil
}
