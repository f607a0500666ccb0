package wal

import (
	"context"
	"time"
)

const (
	// napAfter rounds within napWithin, 10,000 a second, are so many that pauses
	// between them are worth it.
	napAfter  = 32
	napWithin = napAfter * 100 * time.Microsecond
	// napFor is about the least that a sleep takes. It was worth it if it brought
	// napLeast; who takes napMost has enough to do.
	napFor   = time.Millisecond
	napLeast = 16
	napMost  = inboxEvents / 4
)

// pace makes a goroutine sleep for a moment between two rounds while changes come
// fast, so that it takes many at once. Postgres sends each change by itself, and
// each wakes the goroutine that publishes it, and the broker; under load that
// costs more than the work itself (measured, in CPU time of all processes for a
// transaction of one row: 40 µs without such pauses, 20 µs with them).
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
