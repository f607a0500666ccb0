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
	// known are the epochs behind seq that were known when the place was
	// chosen: of most fences nothing is left in a stream.
	known stream.Epochs
	// log is true in a stream that forgets messages only from its beginning:
	// there a hole is a loss.
	log bool
}

// newPlace returns the place at seq of a stream with the epochs.
func newPlace(info Relation, seq uint64, epochs stream.Epochs) place {
	p := place{incarnation: info.Meta.Incarnation, log: info.Meta.Log, known: epochs}
	p.advance(seq)
	return p
}

// advance sets seq and what is known of its epoch.
func (p *place) advance(seq uint64) {
	p.seq = seq
	for len(p.known) > 0 && p.known[0].First <= seq {
		p.epoch, p.known = p.known[0].ID, p.known[1:]
	}
}

// held says whether the place is one of a stream that has the epochs and ends
// at last.
func (p *place) held(epochs stream.Epochs, last uint64) error {
	switch {
	case last < p.seq:
		return fmt.Errorf("%w: it ends at %d, but %d was read", ErrReset, last, p.seq)
	case p.seq != 0 && p.epoch != "" && !epochs.Holds(p.epoch, p.seq, last):
		return fmt.Errorf("%w: the broker lost what was read", ErrReset)
	}
	return nil
}

// follow takes note of a message, and returns ErrReset where it shows that
// the stream is not the one that was read until now.
func (p *place) follow(m message) error {
	if m.seq <= p.seq {
		return fmt.Errorf("%w: sequence %d came after %d", ErrReset, m.seq, p.seq)
	}
	if p.log && m.seq != p.seq+1 {
		return fmt.Errorf("%w: it lost what was between %d and %d", ErrReset, p.seq, m.seq)
	}
	var incarnation string
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
		p.advance(m.seq)
		return nil
	}
	epochs, err := stream.ParseEpochs(m.msg.Headers().Get(stream.EpochsHeader))
	if err != nil || len(epochs) == 0 {
		return fmt.Errorf("message %d: %w", m.seq, stream.ErrLayout)
	}
	if incarnation != p.incarnation {
		return fmt.Errorf("%w: another incarnation began", ErrReset)
	}
	if err := p.held(epochs, m.seq); err != nil {
		return err
	}
	p.advance(m.seq)
	p.epoch = epochs[len(epochs)-1].ID
	return nil
}
