// Package poller captures a relation by polling its txid column.
//
// # How nothing is lost
//
// A poll reads one batch, in one REPEATABLE READ transaction. N is the snapshot
// of this transaction, P the snapshot of the batch before. The batch holds the
// rows whose writer was not visible in P: txid >= xmax(P) or txid among xip(P).
// No other row is needed: if a transaction visible in P wrote a row's current
// version, that version was current at P too, and was published then. So the
// batch is exactly what is not yet published (I2, I3). A heartbeat that carries N
// ends the batch, and N becomes P. P is kept in the stream's last heartbeat and
// nowhere else.
//
// A row of a view may have several writers; its txid is the highest of theirs. If
// a writer with a lower txid commits later, the row's txid does not change. So of
// a view each batch reads all rows with txid >= xmin(P), and leaves out those it
// has just published. It does the same on a hot standby, whose snapshots don't
// list running transactions.
//
// The first batch has no P and reads every row. A batch that turns out to be long
// is announced before its first row. After a crash it then continues after the
// last row that was stored, and does not start again (I7).
//
// A crash of Postgres loses transaction IDs that were never flushed to disk, and
// Postgres gives them out again. So each heartbeat also carries D, the newest
// snapshot known to be durable. On a new connection the first batch reads
// everything that is not visible in D. Before that, it looks again at all keys
// that the stream holds with a txid not visible in D.
//
// # What a relation must promise
//
// Its txid column holds the top-level transaction ID of the row's last writer, in
// this cluster. A row does not vanish without a new txid. Polls don't see hard
// deletes, nor rows that leave a view's filter; Poller.Reconcile finds both.
//
// # Failures
//
// A session waits for locks to be released and for a standby that lags. Any other
// error ends it. The next session begins with Sink.Begin, and takes its position
// from there. An error of one relation does not affect any other (I10).
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

// Options configure a Poller.
type Options struct {
	Spec relation.Spec
	// Interval is the time between polls of an idle relation. While rows flow,
	// polls come faster.
	Interval time.Duration
	// HeartbeatInterval is the time after which an idle relation gets another
	// heartbeat.
	HeartbeatInterval time.Duration
	// ShapeInterval is how often the poller checks in the catalog whether the
	// relation's shape changed; 0 means a minute.
	ShapeInterval time.Duration
	// Watcher, if not nil, says when nothing has changed. Without it, an idle relation
	// is polled every Interval.
	Watcher *Watcher
	// ReconcileInterval is how often the stream is compared with the relation, if
	// Spec does not say it; 0 means never.
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
	// keyChecked is the definition of the view whose key was checked. It belongs to
	// the session.
	keyChecked string

	mu sync.Mutex
	// Guarded by mu. live is the running session once it has published a
	// heartbeat, else nil. published is the last heartbeat's snapshot.
	status    health.Status
	live      *session
	published capture.Snapshot
}

// New returns a poller, which does nothing until Run. The listener wakes it.
func New(pool *source.Pool, sink capture.Sink, opt Options, listener *Listener, m *health.Metrics, log zerolog.Logger) *Poller {
	opt.ShapeInterval = cmp.Or(opt.ShapeInterval, shapeEvery)
	p := &Poller{
		pool: pool, sink: sink, opt: opt, listener: listener, wake: newWake(),
		metrics: m.Relation(opt.Spec.Name.Qualified()),
		log:     log.With().Str("component", "poller").Str("table", opt.Spec.Name.String()).Logger(),
		status:  health.Status{State: health.StateStarting},
	}
	p.keeper.Compare, p.keeper.Live, p.keeper.Done, p.keeper.Log = p.compareNow, p.isLive, p.metrics.Reconciled, p.log
	p.keeper.Expected = opt.Spec.Reconcile > 0
	return p
}

const (
	// backoffMin and backoffMax bound the pause after a session that failed.
	backoffMin = 100 * time.Millisecond
	backoffMax = 2 * time.Second
	// yieldAfter is how long sessions may fail without a Sink.Begin that returns
	// (for example because Postgres is away). Then another bridge may take over.
	yieldAfter = 3 * time.Second
	// logEvery is how often a failure that goes on is logged.
	logEvery = time.Minute
)

// Run captures the relation until ctx ends, and compares it with the stream from
// time to time. It retries after every failure, for ever, with
// backoff. It logs a failure immediately and then once a minute; Status shows it
// too. Run returns ctx's error.
func (p *Poller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if every := cmp.Or(p.opt.Spec.Reconcile, p.opt.ReconcileInterval); every > 0 && p.opt.Spec.History != relation.HistoryLog {
		wg.Go(func() { p.keeper.Run(ctx, every) })
	}
	return p.capture(ctx)
}

// capture is Run's loop over sessions.
func (p *Poller) capture(ctx context.Context) error {
	backoff := backoffMin
	var failing time.Time // since when Begin of no session has returned
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
			if s.live && errors.Is(err, errChanged) { // if the change did harm, the next session says so
				p.log.Info().Str("reason", text).Msg("the relation is no longer what was loaded, loading it again")
			} else {
				p.log.Warn().Err(err).Int("attempt", attempt).Msg("the relation is not being captured, trying again")
			}
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

// shown records that a session has published a heartbeat with the snapshot.
func (p *Poller) shown(s *session, sn capture.Snapshot, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = health.Status{State: health.StateLive, Heartbeat: now}
	p.live, p.published = s, sn
}

// lastPublished returns the snapshot of the last heartbeat.
func (p *Poller) lastPublished() capture.Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.published
}

// over records that a session has ended.
func (p *Poller) over(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = nil
	close(s.ended)
}

func (p *Poller) setError(err error) {
	p.update(func(s *health.Status) { s.State, s.Err = health.StateFailing, err })
}

// errChanged ends a session because relation or source are no longer as they were
// loaded. The next session loads them again.
var errChanged = errors.New("the relation changed")
