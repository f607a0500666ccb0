package poller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/rs/zerolog"
)

// listenRetry is the time between two tries to listen.
const listenRetry = 5 * time.Second

// Listener wakes pollers when Postgres notifies. A notification only saves
// time: the timer finds every row without it.
type Listener struct {
	// Static after construction.
	pool *source.Pool
	log  zerolog.Logger

	mu sync.Mutex
	// Guarded by mu: the payloads that each is woken by.
	wakes map[*Wake][]string
}

// NewListener returns a listener on a connection of the pool.
func NewListener(pool *source.Pool, log zerolog.Logger) *Listener {
	return &Listener{pool: pool, log: log.With().Str("component", "listener").Logger(), wakes: make(map[*Wake][]string)}
}

// watch makes notifications for the tables, and for no others, wake w.
func (l *Listener) watch(w *Wake, tables []relation.Name) {
	payloads := make([]string, len(tables))
	for i, t := range tables {
		payloads[i] = t.Payload()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakes[w] = payloads
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
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	if source.ConnectionOf(conn).Source.InRecovery {
		conn.Release()
		return errors.New("a standby notifies nobody")
	}
	// A connection that listens is not given back.
	c := conn.Hijack()
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := c.Exec(ctx, "LISTEN "+relation.NotifyChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.wake(nil) // what was notified before
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		l.wake(&n.Payload)
	}
}

// wake wakes who watches the payload's table; nil is every table.
func (l *Listener) wake(payload *string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w, payloads := range l.wakes {
		if payload == nil || slices.Contains(payloads, *payload) {
			w.notify()
		}
	}
}
