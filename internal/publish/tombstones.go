package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// tombstoneRounds is how many times in their life tombstones are looked
	// for, at most once a second and at least once an hour.
	tombstoneRounds = 10
	// tombstonePage bounds what one round removes before it looks again.
	tombstonePage = 10_000
)

// keepTombstones removes deleted rows that are older than Options.Tombstones,
// until ctx ends. The floor is raised first, and a round later what lies below
// it is removed: a client that resumes below it would not hear of those
// deletes, and is told to begin anew; one that has just begun still does.
func (p *Publisher) keepTombstones(ctx context.Context) {
	t := time.NewTicker(min(max(p.opt.Tombstones/tombstoneRounds, time.Second), time.Hour))
	defer t.Stop()
	var r tombstoneRound
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		n, next, err := p.removeTombstones(ctx, time.Now().Add(-p.opt.Tombstones), r)
		if err != nil && ctx.Err() == nil {
			p.log.Warn().Err(err).Msg("old deleted rows could not be removed, trying again")
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
	// floor is the one in force at the round's end, 0 where that is not known.
	floor uint64
	// from is the sequence before which no deleted row is left.
	from uint64
}

// removeTombstones removes deleted rows stored before the time whose High is
// below the last round's floor, and raises the floor above the others that
// old; it looks at up to tombstonePage of them. It returns how many it removed.
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
	next = tombstoneRound{epoch: e, floor: last.floor, from: from}
	if len(old) == 0 {
		return 0, next, nil
	}
	if next.floor, err = p.raiseFloor(ctx, e, old[len(old)-1].high+1); err != nil {
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
		// One that is gone already was replaced by a later version.
		if err := s.DeleteMsg(ctx, t.seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return removed, tombstoneRound{}, fmt.Errorf("delete message %d of stream %s: %w", t.seq, p.layout.Stream, err)
		}
		removed++
	}
	return removed, next, nil
}

// tombstone is a deleted row's place in the stream.
type tombstone struct{ seq, high uint64 }

// oldTombstones returns the deleted rows from a sequence on that were stored
// before the time, in order, and the sequence before which there are no others.
func (p *Publisher) oldTombstones(ctx context.Context, e *epoch, from uint64, before time.Time) (old []tombstone, next uint64, err error) {
	err = p.read(ctx, e, from, func(msg jetstream.Msg, md *jetstream.MsgMetadata) (more bool, err error) {
		if next = md.Sequence.Stream; !md.Timestamp.Before(before) {
			return false, nil // as will be all that follow
		}
		if deleted, _, _ := lockstep.Parts(msg.Data()); deleted && p.layout.KindOf(msg.Subject()) == stream.KindRow {
			h, err := stream.High(msg.Headers())
			if err != nil {
				return false, fmt.Errorf("message %d: %w", next, err)
			}
			old = append(old, tombstone{seq: next, high: h})
		}
		next++
		return md.NumPending > 0 && len(old) < tombstonePage, nil
	})
	return old, next, err
}

// raiseFloor writes the floor to the stream's configuration, unless it is
// higher, or another incarnation began; it returns the one in force.
func (p *Publisher) raiseFloor(ctx context.Context, e *epoch, floor uint64) (uint64, error) {
	other := false
	err := p.changeConfig(ctx, p.unchanged(), func(meta *stream.Meta, _ jetstream.StreamConfig, _ stream.Limits) bool {
		other = meta.Incarnation != e.incarnation
		raise := !other && meta.Floor < floor
		floor = max(floor, meta.Floor)
		meta.Floor = floor
		return raise
	})
	if err == nil && other {
		err = errors.New("another incarnation began")
	}
	return floor, err
}
