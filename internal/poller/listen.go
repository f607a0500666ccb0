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

// Listener wakes pollers when Postgres sends a notification. Notifications only
// save time: polls by the timer find every row without them.
type Listener struct {
	// Static after construction.
	pool *source.Pool
	log  zerolog.Logger

	mu sync.Mutex
	// Guarded by mu: for each Wake the payloads that trigger it.
	wakes map[*Wake][]string
}

// NewListener returns a listener that will use a connection of the pool.
func NewListener(pool *source.Pool, log zerolog.Logger) *Listener {
	return &Listener{pool: pool, log: log.With().Str("component", "listener").Logger(), wakes: make(map[*Wake][]string)}
}

// watch sets the tables whose notifications wake w. It replaces those set before.
func (l *Listener) watch(w *Wake, tables []relation.Name) {
	payloads := make([]string, len(tables))
	for i, t := range tables {
		payloads[i] = t.Payload()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakes[w] = payloads
}

// Run listens until ctx ends. If the connection fails, it makes another one after
// listenRetry.
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
	c, about, err := l.pool.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if about.Source.InRecovery {
		return errors.New("a standby sends no notifications")
	}
	if _, err := c.Exec(ctx, "LISTEN "+relation.NotifyChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.wake(nil) // notifications from before LISTEN are lost, so wake all
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for notification: %w", err)
		}
		l.wake(&n.Payload)
	}
}

// wake wakes the pollers that watch the payload's table; nil wakes all.
func (l *Listener) wake(payload *string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w, payloads := range l.wakes {
		if payload == nil || slices.Contains(payloads, *payload) {
			w.notify()
		}
	}
}
