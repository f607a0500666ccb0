package poller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bridge/internal/source"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

// Watcher looks at Postgres for all quiet relations of a process, so that they
// need not be polled while no transaction ends.
//
// As long as pg_current_snapshot() does not change, no relation changes. (On a
// standby the position of the replay stands for it.) That is certain only within
// one life of the server: after a crash the same snapshot may show other rows. So
// the Watcher compares only looks of one connection, which a crash would break. A
// relation is still if its last poll began after the first of such looks that are
// all the same, and read from the same server.
type Watcher struct {
	// Static after construction.
	pool     *source.Pool
	interval time.Duration
	log      zerolog.Logger

	mu sync.Mutex
	// Guarded by mu. resting are the relations to wake when something may have
	// changed. calm describes the latest looks.
	resting map[*Wake]polled
	calm    calm
}

// polled is the last poll of a relation: when it began, which server it asked, and
// what it saw.
type polled struct {
	at     time.Time
	server string
	look   look
}

// calm are the looks of one connection that all saw the same.
type calm struct {
	// ok is false if the last look failed.
	ok bool
	// server is the one looked at, conn the number of the Watcher's connection.
	server string
	conn   int
	// since is when the first of the looks had ended, last when the latest began.
	since, last time.Time
	glance      glance
}

// glance is the result of one look.
type glance struct {
	// now is the same as long as no transaction ends and the server does not crash.
	// backend is the process that answered: a proxy may keep its connection to us
	// while the server restarts.
	now     string
	backend int
	// inserted and flushed are WAL positions as in snapshotSQL.
	inserted, flushed uint64
}

// NewWatcher returns a watcher, which does nothing until Run. The interval is
// Options.Interval of the pollers.
func NewWatcher(pool *source.Pool, interval time.Duration, log zerolog.Logger) *Watcher {
	return &Watcher{
		pool: pool, interval: interval, log: log.With().Str("component", "watcher").Logger(),
		resting: make(map[*Wake]polled),
	}
}

// Run looks every interval until ctx ends. It wakes each relation that rests and
// is not still. A look that fails, or that takes longer than the interval, wakes
// all: then they poll by the timer, as if there were no Watcher (I10).
func (w *Watcher) Run(ctx context.Context) error {
	var looking sync.WaitGroup
	defer looking.Wait()
	t := time.NewTicker(w.interval)
	defer t.Stop()
	begin := make(chan struct{})
	defer close(begin)
	ended := make(chan struct{}, 1) // the one look that may go on
	looking.Go(func() { w.looks(ctx, begin, ended) })
	for free := true; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			free = true
			w.wake()
		case <-t.C:
			switch {
			case !free:
				w.wakeAll()
			case w.needed():
				free = false
				begin <- struct{}{}
			}
		}
	}
}

// watchRetry is the time between two tries to connect.
const watchRetry = time.Second

// looks makes one look for each begin.
func (w *Watcher) looks(ctx context.Context, begin <-chan struct{}, ended chan<- struct{}) {
	var conn *pgx.Conn
	var server string
	var number int
	var tried time.Time
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for range begin {
		var err error
		if conn == nil && time.Since(tried) > watchRetry {
			tried = time.Now()
			conn, server, err = w.connect(ctx)
			number++
		}
		at := time.Now()
		var g glance
		if conn != nil {
			if g, err = glanceAt(ctx, conn); err != nil {
				_ = conn.Close(context.WithoutCancel(ctx))
				conn = nil
			}
		}
		if err != nil && ctx.Err() == nil {
			w.log.Debug().Err(err).Msg("not looking for all relations, each polls by its timer")
		}
		w.note(conn != nil, server, number, at, g)
		ended <- struct{}{}
	}
}

// connect takes a connection out of the pool, because it is needed all the time.
func (w *Watcher) connect(ctx context.Context) (*pgx.Conn, string, error) {
	c, err := w.pool.Acquire(ctx)
	if err != nil {
		return nil, "", err
	}
	server := source.ConnectionOf(c).Server
	if server == "" {
		c.Release()
		return nil, "", errors.New("the server does not say when it started")
	}
	return c.Hijack(), server, nil
}

const glanceSQL = `
SELECT CASE WHEN pg_is_in_recovery() THEN 'replayed up to ' || pg_last_wal_replay_lsn() ELSE pg_current_snapshot()::text END,
       pg_backend_pid(),
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_current_wal_insert_lsn() - '0/0' END::int8,
       CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_current_wal_flush_lsn() - '0/0' END::int8`

func glanceAt(ctx context.Context, conn *pgx.Conn) (glance, error) {
	var g glance
	var now *string
	var inserted, flushed int64
	if err := conn.QueryRow(ctx, glanceSQL).Scan(&now, &g.backend, &inserted, &flushed); err != nil {
		return glance{}, fmt.Errorf("look at Postgres: %w", err)
	}
	if now == nil {
		return glance{}, errors.New("look at Postgres: it has not replayed anything")
	}
	g.now, g.inserted, g.flushed = *now, uint64(inserted), uint64(flushed)
	return g, nil
}

// note takes a look that began at the time at, on the connection with the number.
func (w *Watcher) note(ok bool, server string, conn int, at time.Time, g glance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.calm.ok = ok; !ok {
		return
	}
	crashed := conn != w.calm.conn || g.backend != w.calm.glance.backend // or may have
	if crashed || g.now != w.calm.glance.now {
		w.calm = calm{ok: true, server: server, conn: conn, since: time.Now()}
	}
	w.calm.last, w.calm.glance = at, g
}

// wake wakes the relations that are not still.
func (w *Watcher) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wake, p := range w.resting {
		if !w.calm.covers(p) {
			wake.notify()
		}
	}
}

// needed says whether any relation rests. Looks that were left out don't matter: what
// the connection showed before still holds if it shows the same now.
func (w *Watcher) needed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.resting) > 0
}

func (w *Watcher) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wake := range w.resting {
		wake.notify()
	}
}

// covers says whether nothing can have changed since the poll.
func (c calm) covers(p polled) bool {
	return c.ok && c.server == p.server && p.at.After(c.since)
}

// rest adds a relation to those that Run wakes. The caller calls stop when it
// polls again.
func (w *Watcher) rest(wake *Wake, p polled) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resting[wake] = p
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.resting, wake)
	}
}

// still returns the latest look if nothing has changed since the poll, and if that
// look is not older than two intervals.
func (w *Watcher) still(p polled) (glance, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm.glance, w.calm.covers(p) && time.Since(w.calm.last) < 2*w.interval
}
