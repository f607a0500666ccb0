package wal

import (
	"context"
	"time"
)

const (
	// napAfter rounds within napWithin are so many that it is worth more to go
	// round seldom than at once: 10,000 a second.
	napAfter  = 32
	napWithin = napAfter * 100 * time.Microsecond
	// napFor is about the least that a sleep takes. It was worth it if it brought
	// napLeast; who takes napMost has enough to do.
	napFor   = time.Millisecond
	napLeast = 16
	napMost  = inboxEvents / 4
)

// pace lets a goroutine take in heaps what comes often. Postgres sends each
// change by itself, and each wakes whoever publishes it, and the broker; while
// many come that costs more than all that is done with them (measured: 40 and 20
// µs of all processes' CPU for a transaction of one row).
type pace struct {
	rounds  int
	since   time.Time
	napping bool
}

// rest is called when a round is over in which n were taken. It sleeps for a
// moment if the last rounds were quick, and then after each that was worth it.
func (p *pace) rest(ctx context.Context, n int) {
	p.rounds++
	switch {
	case p.napping && n < napLeast:
		p.napping, p.rounds, p.since = false, 0, time.Now()
	case p.napping:
	case p.rounds < napAfter:
	default:
		p.napping = time.Since(p.since) < napWithin
		p.rounds, p.since = 0, time.Now()
	}
	if p.napping && n < napMost {
		select {
		case <-ctx.Done():
		case <-time.After(napFor):
		}
	}
}
