package poller

import (
	"context"
	"time"
)

// fastest is the shortest time between two polls that no notification asked
// for: while rows flow, a poll costs about 0.3 ms.
const fastest = 5 * time.Millisecond

// pace decides when to poll next: at once after a notification, soon while
// rows flow, and ever more slowly, up to the interval, when they stop.
type pace struct {
	interval, next time.Duration
}

func newPace(interval time.Duration) *pace { return &pace{interval: interval, next: interval} }

// wait blocks until the next poll is due. flowing says that the last one
// found rows.
func (p *pace) wait(ctx context.Context, wake *Wake, flowing bool) error {
	p.next = min(p.next*2, p.interval)
	if flowing {
		p.next = min(fastest, p.interval)
	}
	t := time.NewTimer(p.next)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake.ch:
	case <-t.C:
	}
	return nil
}

// Wake lets a notification wake a poller.
type Wake struct {
	// ch has room for one: any number of notifications before the next poll
	// are one reason to poll. Sent to by the Listener, never closed.
	ch chan struct{}
}

func newWake() *Wake { return &Wake{ch: make(chan struct{}, 1)} }

func (w *Wake) notify() {
	select {
	case w.ch <- struct{}{}:
	default:
	}
}
