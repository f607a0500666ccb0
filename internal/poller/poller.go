// Package poller captures a relation by polling its txid column.
//
// # How nothing is lost
//
// A batch is read in one REPEATABLE READ transaction whose snapshot is N. It
// holds the rows whose writer was not visible in P, the snapshot of the batch
// before: txid >= xmax(P) or txid among xip(P). A row whose current version
// was written by a transaction visible in P was the current version at P too,
// and was published then; so the batch is exactly what is not yet published
// (I2, I3). Then comes a heartbeat that carries N, and N becomes P. P lives in
// the stream's last heartbeat and nowhere else.
//
// A row of a view may have several writers, of which its txid is the highest; a
// lower one that commits later would go unnoticed. Of a view every batch reads
// what is not below xmin(P), and leaves out what it has just published; so it
// does on a hot standby, whose snapshots don't list running transactions.
//
// The first batch, without a P, is every row. A batch that turns out to be
// long is announced before its first row, so that after a crash it is
// continued behind the last row that was stored, not begun anew (I7).
//
// A crash of Postgres loses transaction IDs that were never flushed and gives
// them out again. So each heartbeat carries D, the newest snapshot known to be
// durable, and on every new connection the first batch reads what is not
// visible in D, and reads again the keys that the stream holds of such rows.
//
// # What a relation must promise
//
// Its txid column holds the top-level transaction ID of the row's last writer,
// of this cluster. A row does not vanish without a new txid; hard deletes and
// rows that leave a view's filter are not seen by polls. Poller.Reconcile finds
// them.
//
// # Failures
//
// Every error ends the session. The next one begins with Sink.Begin and takes
// its position from there. Errors of one relation touch no other (I10).
package poller

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/rs/zerolog"
)

// Options are a poller's.
type Options struct {
	Spec relation.Spec
	// Interval is how often an idle relation is polled. While rows flow it is
	// polled faster.
	Interval time.Duration
	// HeartbeatInterval is the longest time between two heartbeats.
	HeartbeatInterval time.Duration
	// ShapeInterval is how often the catalog is asked whether the relation's
	// shape is still what it was; 0 means a minute.
	ShapeInterval time.Duration
	// ReconcileInterval is how often the stream is compared with the relation;
	// 0 means never.
	ReconcileInterval time.Duration
}

// Poller captures one relation.
type Poller struct {
	// Static after construction.
	pool     *source.Pool
	sink     capture.Sink
	opt      Options
	log      zerolog.Logger
	metrics  health.RelationMetrics
	listener *Listener
	wake     *Wake

	keeper reconcile.Keeper

	mu sync.Mutex
	// Guarded by mu. live is the session that published the last heartbeat and
	// has not ended, published that heartbeat's snapshot.
	status    health.Status
	live      *session
	published relation.Snapshot
}

// New returns a poller; nothing happens until Run. The listener wakes it.
func New(pool *source.Pool, sink capture.Sink, opt Options, listener *Listener, m *health.Metrics, log zerolog.Logger) *Poller {
	opt.ShapeInterval = cmp.Or(opt.ShapeInterval, shapeEvery)
	p := &Poller{
		pool: pool, sink: sink, opt: opt, listener: listener, wake: newWake(),
		metrics: m.Relation(opt.Spec.Name.Payload()),
		log:     log.With().Str("component", "poller").Str("table", opt.Spec.Name.String()).Logger(),
		status:  health.Status{State: health.StateStarting},
	}
	p.keeper.Compare, p.keeper.Live, p.keeper.Done, p.keeper.Log = p.compareNow, p.isLive, p.metrics.Reconciled, p.log
	return p
}

// Backoff between sessions that fail.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 2 * time.Second
	// yieldAfter is how long Postgres may be out of reach before another
	// bridge may take the relation.
	yieldAfter = 3 * time.Second
	// logEvery is how often a failure that goes on is logged.
	logEvery = time.Minute
)

// Run captures the relation until ctx ends. Every failure is retried for ever
// with backoff; it is logged at once and then once a minute, and Status shows
// it. Besides, it compares stream and relation from time to time. It returns
// ctx's error.
func (p *Poller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if p.opt.ReconcileInterval > 0 && p.opt.Spec.History != relation.HistoryLog {
		wg.Go(func() { p.keeper.Run(ctx, p.opt.ReconcileInterval) })
	}
	return p.capture(ctx)
}

// capture is Run's loop over sessions.
func (p *Poller) capture(ctx context.Context) error {
	backoff := backoffMin
	var failing time.Time // since when no session came as far as Begin
	var lastLog time.Time
	var lastErr string
	for attempt := 1; ; attempt++ {
		s := newSession(p)
		err := s.run(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.setError(err)
		switch {
		case s.begun:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > yieldAfter:
			p.sink.Yield(ctx)
		}
		p.metrics.Errors.Inc()
		if s.live {
			backoff, attempt = backoffMin, 1
		}
		if text := err.Error(); text != lastErr || time.Since(lastLog) > logEvery {
			lastErr, lastLog = text, time.Now()
			p.log.Warn().Err(err).Int("attempt", attempt).Msg("the relation is not being captured, trying again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// Status returns the current status. It does not block.
func (p *Poller) Status() health.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *Poller) update(change func(*health.Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.status)
}

// shown says that a session has published a heartbeat with the snapshot.
func (p *Poller) shown(s *session, sn relation.Snapshot, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = health.Status{State: health.StateLive, Heartbeat: now}
	p.live, p.published = s, sn
}

// lastPublished is the last heartbeat's snapshot.
func (p *Poller) lastPublished() relation.Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.published
}

// over says that a session has ended.
func (p *Poller) over(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = nil
	close(s.ended)
}

func (p *Poller) setError(err error) {
	p.update(func(s *health.Status) { s.State, s.Err = health.StateFailing, err })
}

// errChanged ends a session because the relation is no longer the one that was
// loaded; the next one loads it anew.
var errChanged = errors.New("the relation changed")
