package replay

import (
	"fmt"

	"bridge/internal/stream"
	"bridge/lockstep"
)

// place is how far a reader has read, as a cursor: with the epoch in which the
// message was stored, as far as it is known.
type place struct {
	incarnation string
	epoch       string
	seq         uint64
}

// follow takes note of a message, and returns ErrReset where it shows that
// the stream is not the one that was read until now.
func (p *place) follow(m message) error {
	if m.seq <= p.seq {
		return fmt.Errorf("%w: sequence %d came after %d", ErrReset, m.seq, p.seq)
	}
	var epochs stream.Epochs
	incarnation, epoch := p.incarnation, p.epoch
	switch m.kind {
	case stream.KindFence:
		incarnation = m.msg.Headers().Get(stream.IncarnationHeader)
	case stream.KindHeartbeat:
		d, err := lockstep.Decode(m.data)
		if err != nil || d.Control == nil {
			return fmt.Errorf("heartbeat %d: %w", m.seq, stream.ErrLayout)
		}
		c, err := lockstep.ParseCursor(d.Control.Cursor)
		if err != nil {
			return fmt.Errorf("heartbeat %d: %w", m.seq, err)
		}
		incarnation = c.Incarnation
	default:
		p.seq = m.seq
		return nil
	}
	epochs, err := stream.ParseEpochs(m.msg.Headers().Get(stream.EpochsHeader))
	if err != nil || len(epochs) == 0 {
		return fmt.Errorf("message %d: %w", m.seq, stream.ErrLayout)
	}
	epoch = epochs[len(epochs)-1].ID
	if incarnation != p.incarnation {
		return fmt.Errorf("%w: another incarnation began", ErrReset)
	}
	if p.seq != 0 && p.epoch != "" && !epochs.Holds(p.epoch, p.seq, m.seq) {
		return fmt.Errorf("%w: the broker lost what was read", ErrReset)
	}
	p.epoch, p.seq = epoch, m.seq
	return nil
}
