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
	// napFor is about the least that a sleep takes.
	napFor = time.Millisecond
)

// pace lets a goroutine take in heaps what comes often. Postgres sends each
// change by itself, and each wakes whoever publishes it, and the broker; while
// many come that costs more than all that is done with them (measured: 40 and 20
// µs of all processes' CPU for a transaction of one row).
type pace struct {
	rounds int
	since  time.Time
}

// rest is called when a round is over. It sleeps for a moment if the last ones
// were quick.
func (p *pace) rest(ctx context.Context) {
	if p.rounds++; p.rounds < napAfter {
		return
	}
	if time.Since(p.since) < napWithin {
		select {
		case <-ctx.Done():
		case <-time.After(napFor):
		}
	}
	p.rounds, p.since = 0, time.Now()
}
