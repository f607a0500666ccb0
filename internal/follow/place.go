package follow

import (
	"cmp"
	"errors"
	"fmt"

	"bridge/internal/stream"
)

// ErrReset says that the stream is not the one that was read until now: what was read
// is void, also as a position in it.
var ErrReset = errors.New("the stream was replaced")

// Place is how far a reader has read, as a cursor: with the epoch in which the message
// was stored, as far as it is known. Copies of a Place are independent.
type Place struct {
	Incarnation string
	Epoch       string
	Seq         uint64
	// known are the epochs after Seq that were known when the place was chosen: of
	// most fences nothing is left in a stream.
	known stream.Epochs
	// log is true in a stream that forgets messages only from its beginning: there a
	// hole is a loss.
	log bool
}

// NewPlace returns the place at seq of a stream with the epochs.
func NewPlace(info stream.Relation, seq uint64, epochs stream.Epochs) Place {
	p := Place{Incarnation: info.Meta.Incarnation, log: info.Meta.Log, known: epochs}
	p.advance(seq)
	return p
}

// advance sets Seq and what is known of its epoch.
func (p *Place) advance(seq uint64) {
	p.Seq = seq
	for len(p.known) > 0 && p.known[0].First <= seq {
		p.Epoch, p.known = p.known[0].ID, p.known[1:]
	}
}

// Newest returns the newest epoch of the stream that is known: all that was read is of a
// stream that has this epoch. So a cursor may name it: see stream.Epochs.Holds. It is
// empty if none is known.
func (p *Place) Newest() string {
	return cmp.Or(p.known.Newest(), p.Epoch)
}

// Held returns nil if the place is one of a stream that has the incarnation and the
// epochs and ends at last, else an error that wraps ErrReset.
func (p *Place) Held(incarnation string, epochs stream.Epochs, last uint64) error {
	switch {
	case incarnation != p.Incarnation: // a new one, or one of before
		return fmt.Errorf("%w: another incarnation began", ErrReset)
	case last < p.Seq:
		return fmt.Errorf("%w: it ends at %d, but %d was read", ErrReset, last, p.Seq)
	case p.Seq != 0 && p.Epoch != "" && !epochs.Holds(p.Epoch, p.Seq, last):
		return fmt.Errorf("%w: the broker lost what was read", ErrReset)
	}
	return nil
}

// Follow moves the place to a message. It returns an error that wraps ErrReset if the
// message shows that the stream is not the one that was read until now.
func (p *Place) Follow(m Message) error {
	if m.Seq <= p.Seq {
		return fmt.Errorf("%w: sequence %d came after %d", ErrReset, m.Seq, p.Seq)
	}
	if p.log && m.Seq != p.Seq+1 {
		return fmt.Errorf("%w: it lost what was between %d and %d", ErrReset, p.Seq, m.Seq)
	}
	var incarnation string
	switch m.Kind {
	case stream.KindFence:
		incarnation = m.Header.Get(stream.IncarnationHeader)
	case stream.KindHeartbeat:
		var err error
		if incarnation, err = stream.Incarnation(m.Data); err != nil {
			return fmt.Errorf("message %d: %w", m.Seq, err)
		}
	default:
		p.advance(m.Seq)
		return nil
	}
	epochs, err := stream.ParseEpochs(m.Header.Get(stream.EpochsHeader))
	if err != nil || len(epochs) == 0 {
		return fmt.Errorf("message %d: %w", m.Seq, stream.ErrLayout)
	}
	if err := p.Held(incarnation, epochs, m.Seq); err != nil {
		return err
	}
	p.advance(m.Seq)
	p.Epoch = epochs.Newest()
	return nil
}
