package replay

import "context"

// gate decides which heartbeats a reader of a stream may pass on: see Gaps in
// the package comment.
type gate struct {
	// end returns the place from which on heartbeats stand for everything that
	// the stream held when it was asked; that is the heartbeat's own, seq,
	// where no row came behind it.
	end func(ctx context.Context, seq uint64) (uint64, error)
	// last is the sequence read last, at first that before the first one asked
	// for: what is missing from there on is a hole, too.
	last uint64
	// gap is set by a hole for which the stream's end was not yet asked.
	gap bool
	// until is the sequence from which heartbeats pass.
	until uint64
}

// read takes note of the next sequence read.
func (g *gate) read(seq uint64) {
	if seq != g.last+1 {
		g.gap = true
	}
	g.last = seq
}

// pass says whether the heartbeat at seq, which read has seen, may be passed
// on. It asks for the stream's end only when that can still make one pass, not
// when the hole was met: later is further, which is safe. How many messages
// the broker counted behind the heartbeat says nothing: it counts a message
// after it has stored it and removed the one before.
func (g *gate) pass(ctx context.Context, seq uint64) (bool, error) {
	if g.gap && seq >= g.until {
		end, err := g.end(ctx, seq)
		if err != nil {
			return false, err
		}
		g.gap, g.until = false, max(g.until, end)
	}
	return !g.gap && seq >= g.until, nil
}
