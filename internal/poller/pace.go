package poller

import (
	"context"
	"time"
)

// fastest is the shortest time between two polls without a notification. A poll
// costs about 0.3 ms while rows flow.
const fastest = 5 * time.Millisecond

// pace decides when to poll next. It is immediately after a notification, and
// after fastest while rows flow. When rows stop, the pause doubles with each poll
// up to the interval.
type pace struct {
	interval, next time.Duration
}

func newPace(interval time.Duration) *pace { return &pace{interval: interval, next: interval} }

// idle takes note of a poll that has ended, and says whether the next one is due
// after the full interval. flowing says that the poll found rows.
func (p *pace) idle(flowing bool) bool {
	p.next = min(p.next*2, p.interval)
	if flowing {
		p.next = min(fastest, p.interval)
	}
	return p.next == p.interval && !flowing
}

// wait blocks until the next poll is due, or until fault is closed.
func (p *pace) wait(ctx context.Context, wake *Wake, fault <-chan struct{}) error {
	t := time.NewTimer(p.next)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake.ch:
	case <-fault:
	case <-t.C:
	}
	return nil
}

// Wake lets a notification, or a comparison, wake a poller.
type Wake struct {
	// ch has room for one: any number of wake-ups before the next poll are one
	// reason to poll. Sent to by the Listener and by session.suspect, never closed.
	ch chan struct{}
}

func newWake() *Wake { return &Wake{ch: make(chan struct{}, 1)} }

func (w *Wake) notify() {
	select {
	case w.ch <- struct{}{}:
	default:
	}
}
