package follow

import "context"

// Gate decides which heartbeats a reader of a stream may take for a state of the
// relation: see Compaction in the package comment.
type Gate struct {
	end  func(ctx context.Context, seq uint64) (uint64, error)
	last uint64
	// hole is set by a hole for which the stream's end was not yet asked.
	hole bool
	// until is the sequence from which heartbeats count.
	until uint64
}

// NewGate returns the gate of a reader that begins at the sequence from: what is
// missing from there on is a hole, too. end returns the place from which on heartbeats
// stand for everything that the stream held when it was asked; that is the
// heartbeat's own, seq, if no row came after it.
func NewGate(from uint64, end func(ctx context.Context, seq uint64) (uint64, error)) Gate {
	return Gate{end: end, last: from - 1}
}

// Read takes note of the next sequence read.
func (g *Gate) Read(seq uint64) {
	if seq != g.last+1 {
		g.hole = true
	}
	g.last = seq
}

// Pass says whether the heartbeat at seq, which Read has seen, counts. It asks for
// the stream's end only when that can still make one pass, not when the hole was met:
// later is further, which is safe. How many messages the broker counted after the
// heartbeat says nothing: it counts a message after it has stored it and removed the
// one before.
func (g *Gate) Pass(ctx context.Context, seq uint64) (bool, error) {
	if g.hole && seq >= g.until {
		if _, err := g.Until(ctx, seq); err != nil {
			return false, err
		}
	}
	return !g.hole && seq >= g.until, nil
}

// Holes says whether the gate has seen a hole for which it did not yet ask for the
// stream's end.
func (g *Gate) Holes() bool { return g.hole }

// From returns the sequence from which heartbeats count, as far as it was asked for.
func (g *Gate) From() uint64 { return g.until }

// Until returns the sequence from which heartbeats count. If there was a hole, it asks
// for the stream's end, as of now; seq is the last sequence read.
func (g *Gate) Until(ctx context.Context, seq uint64) (uint64, error) {
	if g.hole {
		end, err := g.end(ctx, seq)
		if err != nil {
			return 0, err
		}
		g.hole, g.until = false, max(g.until, end)
	}
	return g.until, nil
}
