package replay

import "context"

// gate decides which heartbeats a reader of a stream may pass on: see Gaps in
// the package comment.
type gate struct {
	// end asks the leader for the stream's last sequence.
	end func(context.Context) (uint64, error)
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
// on. It asks for the stream's end only now, not when the hole was met: later
// is further, which is safe.
func (g *gate) pass(ctx context.Context, seq uint64) (bool, error) {
	if g.gap {
		end, err := g.end(ctx)
		if err != nil {
			return false, err
		}
		g.gap, g.until = false, max(g.until, end)
	}
	return seq >= g.until, nil
}
