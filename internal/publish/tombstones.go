package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/stream"

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
// until ctx ends. The floor is raised first: a client that resumes below it
// would not hear of those deletes, and is told to begin anew.
func (p *Publisher) keepTombstones(ctx context.Context) {
	t := time.NewTicker(min(max(p.opt.Tombstones/tombstoneRounds, time.Second), time.Hour))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		n, floor, err := p.removeTombstones(ctx, time.Now().Add(-p.opt.Tombstones))
		if err != nil && ctx.Err() == nil {
			p.log.Warn().Err(err).Msg("old deleted rows could not be removed, trying again")
		}
		if n > 0 {
			p.log.Info().Int("rows", n).Uint64("floor", floor).Msg("old deleted rows removed")
		}
	}
}

// removeTombstones removes up to tombstonePage deleted rows stored before the
// time, and returns how many, and the floor.
func (p *Publisher) removeTombstones(ctx context.Context, before time.Time) (removed int, floor uint64, err error) {
	p.mu.Lock()
	e := p.epoch
	p.mu.Unlock()
	if e == nil || e.fault() != nil {
		return 0, 0, nil // not ours to tidy
	}
	old, high, err := p.oldTombstones(ctx, e, before)
	if err != nil || len(old) == 0 {
		return 0, 0, err
	}
	if err := p.raiseFloor(ctx, e, high+1); err != nil {
		return 0, 0, err
	}
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return 0, 0, fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	for _, seq := range old {
		// One that is gone already was replaced by a later version.
		if err := s.DeleteMsg(ctx, seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return removed, high + 1, fmt.Errorf("delete message %d of stream %s: %w", seq, p.layout.Stream, err)
		}
		removed++
	}
	return removed, high + 1, nil
}

// deletedMark is how a deleted row's document goes on behind its positions.
var deletedMark = []byte(`,"deleted":true,"data":`)

// oldTombstones returns the sequences of deleted rows stored before the time,
// and the highest High among them.
func (p *Publisher) oldTombstones(ctx context.Context, e *epoch, before time.Time) (old []uint64, high uint64, err error) {
	c, err := p.js.OrderedConsumer(ctx, p.layout.Stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, 0, fmt.Errorf("read stream %s: %w", p.layout.Stream, err)
	}
	it, err := c.Messages(jetstream.PullMaxBytes(max(pullBytes, 2*int(p.nc.MaxPayload()))))
	if err != nil {
		return nil, 0, fmt.Errorf("read stream %s: %w", p.layout.Stream, err)
	}
	defer it.Stop()
	for len(old) < tombstonePage {
		msg, err := nextOf(ctx, it, e)
		if err != nil {
			return nil, 0, fmt.Errorf("read stream %s: %w", p.layout.Stream, err)
		}
		md, err := msg.Metadata()
		if err != nil {
			return nil, 0, fmt.Errorf("read stream %s: %w", p.layout.Stream, err)
		}
		if !md.Timestamp.Before(before) {
			break // as will be all that follow
		}
		head := msg.Data()[:min(len(msg.Data()), 200)]
		if p.layout.KindOf(msg.Subject()) == stream.KindRow && bytes.Contains(head, deletedMark) {
			h, err := stream.High(msg.Headers())
			if err != nil {
				return nil, 0, fmt.Errorf("message %d of stream %s: %w", md.Sequence.Stream, p.layout.Stream, err)
			}
			old, high = append(old, md.Sequence.Stream), max(high, h)
		}
		if md.NumPending == 0 {
			break
		}
	}
	return old, high, nil
}

// raiseFloor writes the floor to the stream's configuration, unless another
// incarnation began.
func (p *Publisher) raiseFloor(ctx context.Context, e *epoch, floor uint64) error {
	other := false
	err := p.changeConfig(ctx, func(meta *stream.Meta, _ jetstream.StreamConfig, _ stream.Limits) bool {
		other = meta.Incarnation != e.incarnation
		if other || meta.Floor >= floor {
			return false
		}
		meta.Floor = floor
		return true
	})
	if err == nil && other {
		err = errors.New("another incarnation began")
	}
	return err
}
