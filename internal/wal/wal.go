// Package wal captures tables by reading Postgres' write-ahead log through
// logical replication (plugin pgoutput, protocol 1, text). Tables need no extra
// column, hard deletes arrive, and rows come in the order of commits.
//
// # How nothing is lost
//
// One replication slot serves all relations of a bridge. Postgres sends each
// transaction after its commit. After a reconnect it begins where the slot was
// confirmed. A session confirms the slot only up to what the streams of all
// relations are known to hold.
//
// The position of a relation is the LSN in its stream's last heartbeat or
// announcement; it is kept nowhere else. So a session begins at or before the
// position of each relation, and each relation skips the commits that its stream
// has (I7). If a stream ends before the slot begins, it has a gap, and the capture
// never continues it as if it had none (Relation.judge).
//
// # Watermark
//
// A row's since is min(txid, watermark). The bridge writes the watermark into the
// WAL (pg_logical_emit_message): it is the xmin of a snapshot. A transaction below
// that xmin had ended, so its commit stands before the message. So no commit after
// the message has an ID below that xmin (I5). Only messages with the session's own
// random name count, because any role may write messages.
//
// # Looks
//
// The capture reads by SQL what the WAL does not have: the first load of a
// relation, rows of a changed shape, keys that must be looked at again. A look
// reads rows under a snapshot, and then writes a marker into the WAL. When the
// marker arrives, the stream holds every transaction that the snapshot shows. Then
// the rows are published, except for keys that a transaction changed which the
// snapshot does not show: an older version never replaces a newer one (I4). See
// look.
//
// # Failures
//
// A session is one replication connection, and the relations that have begun in
// it. A failure of Postgres ends the session, and the next session begins every
// relation again. A failure of one relation takes only that relation out (I10). It
// is tried again, and holds the slot back for a limited time.
package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/rs/zerolog"
)

// Options are those of a bridge's capture.
type Options struct {
	// Name is the slot's and the publication's.
	Name string
	// HeartbeatInterval is the longest time between two heartbeats.
	HeartbeatInterval time.Duration
	// ShapeInterval is how often the catalog is asked whether the relations'
	// shape is still what it was; 0 means a minute.
	ShapeInterval time.Duration
	// HoldFor is how long a relation that fails keeps the slot from moving; 0
	// means 5 minutes.
	HoldFor time.Duration
	// JoinWithin is how long a session waits for all relations to begin; 0 means
	// 10 s. The session begins again once those that take longer are ready.
	JoinWithin time.Duration
	// SlotInterval is how often the slot is looked at; 0 means 5 s.
	SlotInterval time.Duration
	// RetryMax is the longest pause before a relation that fails is taken into a
	// session again; 0 means a minute.
	RetryMax time.Duration
	// ReconcileInterval is how often stream and relation are compared, 0 for never,
	// if the relation's spec does not say it.
	ReconcileInterval time.Duration
	// MaxLag is how many bytes of WAL the slot may keep, 0 for any number.
	MaxLag int64
}

// Capture reads the WAL for all relations of a bridge.
type Capture struct {
	// Static after the last Add.
	pool      *source.Pool
	opt       Options
	log       zerolog.Logger
	metrics   *Metrics
	relations []*Relation

	// reading is the session that reads the slot, nil for none.
	reading atomic.Pointer[session]

	// Owned by Run.

	// waits is what was last logged of a slot that could not be made yet.
	waits news
	// begun is when Run was called.
	begun time.Time
	// unreadable is why the slot has to be made again, and decoding what leads to that.
	unreadable unreadable
	decoding   decoding
}

// New returns a capture; nothing happens until Run.
func New(pool *source.Pool, opt Options, m *Metrics, log zerolog.Logger) *Capture {
	opt.ShapeInterval = cmp.Or(opt.ShapeInterval, time.Minute)
	opt.HoldFor = cmp.Or(opt.HoldFor, 5*time.Minute)
	opt.RetryMax = cmp.Or(opt.RetryMax, time.Minute)
	opt.JoinWithin = cmp.Or(opt.JoinWithin, 10*time.Second)
	opt.SlotInterval = cmp.Or(opt.SlotInterval, 5*time.Second)
	return &Capture{pool: pool, opt: opt, metrics: m, log: log.With().Str("component", "wal").Logger()}
}

// Add adds a relation, before Run.
func (c *Capture) Add(spec relation.Spec, sink capture.Sink, m *health.Metrics) *Relation {
	r := &Relation{
		spec: spec, sink: sink, metrics: m.Relation(spec.Name.Qualified()),
		log:    c.log.With().Str("table", spec.Name.String()).Logger(),
		status: health.Status{State: health.StateStarting},
	}
	r.keeper.Compare, r.keeper.Live, r.keeper.Done, r.keeper.Log = r.compareNow, r.isLive, r.metrics.Reconciled, r.log
	r.keeper.Expected = spec.Reconcile > 0
	c.relations = append(c.relations, r)
	return r
}

const (
	// Backoff between sessions that fail.
	backoffMin = 100 * time.Millisecond
	backoffMax = 2 * time.Second
	// yieldAfter is how long Postgres may be out of reach before another
	// bridge may take the relations.
	yieldAfter = 3 * time.Second
	// steadyAfter is how long a session must have lasted for the next to be
	// tried at once: one that fails wherever the WAL begins wants patience.
	steadyAfter = 5 * time.Second
	// logEvery is how often a failure that goes on is logged.
	logEvery = time.Minute
)

// errRejoin ends a session so that the next begins with more relations.
var errRejoin = errors.New("a relation joins")

// Run captures until ctx ends, and returns its error. Every failure is retried
// for ever with backoff; it is logged at once and then once a minute, and the
// relations' Status shows it. Without a relation it has nothing to do but to
// warn of a slot that was left.
func (c *Capture) Run(ctx context.Context) error {
	if len(c.relations) == 0 {
		return c.warnUnused(ctx)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, r := range c.relations {
		if every := cmp.Or(r.spec.Reconcile, c.opt.ReconcileInterval); every > 0 && r.mirrors() {
			wg.Go(func() { r.keeper.Run(ctx, every) })
		}
	}
	wg.Go(func() { c.WatchSlot(ctx) })
	return c.capture(ctx)
}

// capture is Run's loop over sessions.
func (c *Capture) capture(ctx context.Context) error {
	c.begun = time.Now()
	backoff := backoffMin
	var failing time.Time
	var said news
	for attempt := 1; ; attempt++ {
		s, begun := newSession(c), time.Now()
		err := s.run(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.live {
			failing, said = time.Time{}, news{} // this is another failure, though it may read the same
		}
		if s.live && time.Since(begun) > steadyAfter {
			attempt, backoff = 1, backoffMin
		}
		if errors.Is(err, errRejoin) {
			for _, r := range c.relations {
				r.setLive(nil)
			}
			continue
		}
		c.failed(err)
		c.unreadable = cmp.Or(c.unreadable, c.decoding.failed(err, s.pos))
		switch {
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > yieldAfter:
			c.yield(ctx)
		}
		switch {
		case errors.Is(err, errNobody) || !said.isNews(err.Error()):
		case errors.Is(err, errSlotInUse): // as it must be, for a standby
			c.log.Info().Str("reason", err.Error()).Msg("another session reads the WAL, standing by")
		default:
			c.log.Warn().Err(err).Int("attempt", attempt).Msg("reading the WAL failed, trying again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// failed shows what ended a session in the status of every relation. A relation
// that has a failure of its own tells it after that: the session may have ended
// for the same cause, and no relation is tried again before another one begins.
func (c *Capture) failed(err error) {
	for _, r := range c.relations {
		r.setLive(nil)
		if errors.Is(err, errSlotInUse) {
			r.err, r.failing = nil, time.Time{} // it is another's business now
		}
		if errors.Is(err, errNobody) && r.err != nil {
			continue // its status says why it is one of them
		}
		r.metrics.Errors.Inc()
		r.update(func(st *health.Status) {
			switch {
			case errors.Is(err, errSlotInUse):
				*st = health.Status{State: health.StateStandby, Heartbeat: st.Heartbeat, Note: err.Error()}
			case r.err != nil:
				st.State, st.Err = health.StateFailing, fmt.Errorf("%w; before that, of this relation alone: %w", err, r.err)
			default:
				st.State, st.Err = health.StateFailing, err
			}
		})
	}
}

// yield lets another bridge write what this one can't read.
func (c *Capture) yield(ctx context.Context) {
	for _, r := range c.relations {
		r.sink.Yield(ctx)
	}
}

// lsn is a place in the WAL, for people.
type lsn uint64

func (l lsn) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }
