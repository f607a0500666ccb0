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
//
// If the snapshot has changed, the Watcher probes each relation that rests, and wakes
// those that have new rows.
type Watcher struct {
	// Static after construction.
	pool     *source.Pool
	interval time.Duration
	log      zerolog.Logger

	mu sync.Mutex
	// Guarded by mu. resting are the relations to wake when something may have
	// changed. calm describes the latest looks.
	resting map[*Wake]*resting
	calm    calm
}

// resting is a relation that rests.
type resting struct {
	// Static after construction. fresh reports that a relation had no new rows at a
	// time.
	last  polled
	probe *probe
	fresh func(time.Time)
	// unchanged is when the latest probe that found no new rows began. It is guarded by
	// Watcher.mu.
	unchanged time.Time
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
		resting: make(map[*Wake]*resting),
	}
}

// slowLook is how long a look may take. On a busy machine it takes longer than an
// interval now and then, and polls of all relations would only make that worse.
const slowLook = time.Second

// Run looks every interval until ctx ends. It wakes each relation that rests and
// may have changed. A look that fails, or that takes longer than slowLook, wakes
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
	var begun time.Time // when the look that goes on began
	for free := true; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			free = true
			w.wake()
		case <-t.C:
			switch {
			case !free && time.Since(begun) > slowLook:
				w.wakeAll()
			case free && w.needed():
				free, begun = false, time.Now()
				begin <- struct{}{}
			}
		}
	}
}

// watchRetry is the time between two tries to connect.
const watchRetry = time.Second

// looks makes one look for each begin.
func (w *Watcher) looks(ctx context.Context, begin <-chan struct{}, ended chan<- struct{}) {
	var p *prober // nil while there is no connection
	var server string
	var number int
	var tried time.Time
	leave := func() {
		if p != nil {
			_ = p.conn.Close(context.WithoutCancel(ctx))
		}
		p = nil
	}
	defer leave()
	for range begin {
		var err error
		if p == nil && time.Since(tried) > watchRetry {
			tried = time.Now()
			p, server, err = w.connect(ctx)
			number++
		}
		if p != nil {
			err = w.look(ctx, p, server, number)
		}
		if err != nil {
			leave()
			if ctx.Err() == nil {
				w.log.Debug().Err(err).Msg("not looking for all relations, each polls by its timer")
			}
		}
		if p == nil {
			w.failed()
		}
		ended <- struct{}{}
	}
}

// look asks whether anything has changed. If so, it probes the relations that rest.
func (w *Watcher) look(ctx context.Context, p *prober, server string, number int) error {
	at := time.Now()
	g, err := glanceAt(ctx, p.conn)
	if err != nil {
		return err
	}
	w.note(server, number, at, g)
	doubtful, at := w.doubtful(), time.Now()
	unchanged, err := p.ask(ctx, doubtful)
	if err != nil {
		return err
	}
	w.learn(unchanged, at)
	return nil
}

// connect returns a prober for a connection of its own, and the server it leads to.
func (w *Watcher) connect(ctx context.Context) (*prober, string, error) {
	conn, about, err := w.pool.Connect(ctx)
	if err != nil {
		return nil, "", err
	}
	if about.Server == "" {
		err = errors.New("the server does not say when it started")
	}
	var p *prober
	if err == nil {
		p, err = newProber(ctx, conn)
	}
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, "", err
	}
	return p, about.Server, nil
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
func (w *Watcher) note(server string, conn int, at time.Time, g glance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	crashed := conn != w.calm.conn || g.backend != w.calm.glance.backend // or may have
	if crashed || g.now != w.calm.glance.now {
		w.calm = calm{server: server, conn: conn, since: time.Now()}
	}
	w.calm.ok, w.calm.last, w.calm.glance = true, at, g
}

// failed notes that a look failed.
func (w *Watcher) failed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calm.ok = false
}

// doubtful returns relations that rest and may have changed, but no more than one
// look can probe.
func (w *Watcher) doubtful() []*resting {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*resting
	for _, r := range w.resting {
		if r.last.server == w.calm.server && r.probe != nil && !w.calm.unchanged(r) {
			if all = append(all, r); len(all) == maxProbes {
				break
			}
		}
	}
	return all
}

// learn notes that probes which began at the time found nothing new.
func (w *Watcher) learn(unchanged []*resting, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range unchanged {
		r.unchanged = at
	}
}

// wake wakes the relations that may have changed.
func (w *Watcher) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wake, r := range w.resting {
		switch {
		case w.calm.ok && r.last.at.After(w.calm.last): // the next look is about it
		case !w.calm.unchanged(r):
			wake.notify()
		case w.calm.covers(r.last.server, r.last.at):
			r.fresh(w.calm.last)
		default:
			r.fresh(r.unchanged)
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

// covers says whether nothing can have changed since the server was asked at a time.
func (c calm) covers(server string, at time.Time) bool {
	return c.ok && c.server == server && at.After(c.since)
}

// unchanged says whether the relation has no new rows: nothing has changed since its
// poll, or since a probe. Only after a poll may it show a later position, because a
// probe does not see all that a poll sees.
func (c calm) unchanged(r *resting) bool {
	return c.covers(r.last.server, r.last.at) || c.covers(r.last.server, r.unchanged)
}

// rest adds a relation to those that Run wakes. The caller calls stop when it
// polls again.
func (w *Watcher) rest(wake *Wake, r *resting) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resting[wake] = r
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.resting, wake)
	}
}

// still returns the latest look if nothing has changed since the server was asked at a
// time, and if that look is not older than two intervals.
func (w *Watcher) still(server string, at time.Time) (glance, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm.glance, w.calm.covers(server, at) && time.Since(w.calm.last) < 2*w.interval
}
