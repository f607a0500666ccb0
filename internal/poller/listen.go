package poller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"bridge/internal/relation"

	"github.com/rs/zerolog"
)

// notifyChannel is the channel of the triggers that `bridge sql` prints; the
// payload is schema.table of the table that changed.
const notifyChannel = "lockstep"

// listenRetry is the time between two tries to listen.
const listenRetry = 5 * time.Second

// Listener wakes pollers when Postgres notifies. A notification only saves
// time: the timer finds every row without it.
type Listener struct {
	// Static after construction.
	pool *Pool
	log  zerolog.Logger

	mu sync.Mutex
	// Guarded by mu: who is woken by the payload.
	wakes map[string][]*Wake
}

// NewListener returns a listener on a connection of the pool.
func NewListener(pool *Pool, log zerolog.Logger) *Listener {
	return &Listener{pool: pool, log: log.With().Str("component", "listener").Logger(), wakes: make(map[string][]*Wake)}
}

// Wake returns what a notification for one of the tables wakes.
func (l *Listener) Wake(tables ...relation.Name) *Wake {
	w := newWake()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range tables {
		name := t.Schema + "." + t.Table
		l.wakes[name] = append(l.wakes[name], w)
	}
	return w
}

// Run listens until ctx ends; it connects anew whenever the connection fails.
func (l *Listener) Run(ctx context.Context) error {
	for {
		if err := l.listen(ctx); ctx.Err() == nil {
			l.log.Debug().Err(err).Msg("not listening for notifications, polling by the timer alone")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(listenRetry):
		}
	}
}

func (l *Listener) listen(ctx context.Context) error {
	conn, err := l.pool.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	// A connection that listens is not given back.
	c := conn.Hijack()
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := c.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.all() // what was notified before
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		l.mu.Lock()
		for _, w := range l.wakes[n.Payload] {
			w.notify()
		}
		l.mu.Unlock()
	}
}

func (l *Listener) all() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, wakes := range l.wakes {
		for _, w := range wakes {
			w.notify()
		}
	}
}
