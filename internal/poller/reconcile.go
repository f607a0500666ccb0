package poller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"bridge/internal/capture"
	"bridge/internal/reconcile"
	"bridge/internal/relation"

	"github.com/jackc/pgx/v5/pgxpool"
)

var (
	errReconciling  = errors.New("it is being reconciled already")
	errLog          = errors.New("a stream with history=log has every version, not the relation's state, and can't be compared with it")
	errSessionEnded = errors.New("the relation's session ended, ask again")
)

// Reconcile compares the stream with the relation, and has published anew, or
// as deleted, what differs. The counts are of what was published; where they
// are approximate, of more keys than differed. It may be called from any
// goroutine, and waits for a first load to end. It returns capture.ErrStandby, or
// another error at once where the relation is not captured or has a log.
func (p *Poller) Reconcile(ctx context.Context) (reconcile.Counts, error) {
	if p.opt.Spec.History == relation.HistoryLog {
		return reconcile.Counts{}, errLog
	}
	if !p.reconciling.TryLock() {
		return reconcile.Counts{}, errReconciling
	}
	defer p.reconciling.Unlock()
	s, begun, err := p.awaitLive(ctx)
	if err != nil {
		return reconcile.Counts{}, err
	}
	start := time.Now()
	counts, err := s.reconcile(ctx, begun)
	if err != nil {
		return reconcile.Counts{}, fmt.Errorf("reconcile: %w", err)
	}
	took := time.Since(start)
	p.metrics.Reconciled(took, counts.Missing, counts.Stale, counts.Zombie)
	e := p.log.Info()
	if counts.Differ() > 0 {
		e = p.log.Warn()
	}
	e.Int64("rows", counts.Rows).Int64("missing", counts.Missing).Int64("stale", counts.Stale).Int64("zombie", counts.Zombie).
		Bool("approximate", counts.Approximate).Dur("dur", took).Msg("the stream was compared with the relation")
	return counts, nil
}

// Captures says whether this process, and no other, captures the relation now.
func (p *Poller) Captures() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live != nil || p.status.State == capture.StateFirstLoad
}

// awaitLive returns the session that captures the relation, and the snapshot of
// its last heartbeat.
func (p *Poller) awaitLive(ctx context.Context) (*session, relation.Snapshot, error) {
	for {
		p.mu.Lock()
		s, published, st := p.live, p.published, p.status
		p.mu.Unlock()
		switch {
		case s != nil:
			return s, published, nil
		case st.State == capture.StateStandby:
			return nil, relation.Snapshot{}, capture.ErrStandby
		case st.State == capture.StateFailing:
			return nil, relation.Snapshot{}, fmt.Errorf("the relation is not being captured now: %w", st.Err)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, relation.Snapshot{}, err
		}
	}
}

// page is suspect keys on their way from a comparison to the session.
type page struct {
	again *suspects
	// done is closed by the session when it has looked at them.
	done chan struct{}
}

// reconcile compares beside the session's polls; only suspect keys are handed
// to it. begun is a snapshot that the stream's rows are not behind.
func (s *session) reconcile(ctx context.Context, begun relation.Snapshot) (reconcile.Counts, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.ended:
			cancel(errSessionEnded)
		case <-ctx.Done():
		}
	}()
	form, err := relation.NewForm(s.rel, s.types) // the session's is its own
	if err != nil {
		return reconcile.Counts{}, err
	}
	var done reconcile.Counts
	counts, err := reconcile.Compare(ctx, s.storedRows, s.relationRows(form), reconcile.Options{}, func(ctx context.Context, page []reconcile.Suspect) error {
		repaired, err := s.suspect(ctx, page, begun)
		done.Missing, done.Stale, done.Zombie = done.Missing+repaired.Missing, done.Stale+repaired.Stale, done.Zombie+repaired.Zombie
		return err
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	done.Rows, done.Approximate = counts.Rows, counts.Approximate
	return done, err
}

// suspect hands keys to the session, and waits until it has looked at them.
func (s *session) suspect(ctx context.Context, keys []reconcile.Suspect, begun relation.Snapshot) (reconcile.Counts, error) {
	pg := &page{again: newSuspects(), done: make(chan struct{})}
	pg.again.begun = &begun
	for _, k := range keys {
		pg.again.add(s.rel, k.Key, k.Kind)
	}
	select {
	case s.pages <- pg:
	case <-ctx.Done():
		return reconcile.Counts{}, ctx.Err()
	}
	s.p.wake.notify()
	select {
	case <-pg.done:
		return pg.again.counts, nil
	case <-ctx.Done():
		return reconcile.Counts{}, ctx.Err()
	}
}

// repairPage looks again at the keys that a comparison has handed over, if it
// has. low is the xmin of what the batch that follows reads from: it may bring
// rows of any transaction from there on, so none here shows a higher since (I5).
// That batch brings, too, what is written after this look (I4).
func (s *session) repairPage(ctx context.Context, conn *pgxpool.Conn, low uint64) error {
	if s.page == nil {
		select {
		case s.page = <-s.pages:
		default:
			return nil
		}
	}
	if err := s.lookAgain(ctx, conn, s.page.again, low); err != nil {
		return err
	}
	close(s.page.done)
	s.page = nil
	return nil
}

// keepReconciling compares again and again until ctx ends: one interval after
// the relation became live, and then as often.
func (p *Poller) keepReconciling(ctx context.Context) {
	next := p.opt.ReconcileInterval
	for {
		if p.untilLive(ctx) != nil || sleep(ctx, next+rand.N(next/10+1)) != nil || p.untilLive(ctx) != nil {
			return
		}
		next = p.opt.ReconcileInterval
		if _, err := p.Reconcile(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn().Err(err).Msg("the stream could not be compared with the relation, trying again later")
			next = min(next, reconcileAgain)
		}
	}
}

// reconcileAgain is when a comparison that failed is tried again.
const reconcileAgain = 10 * time.Minute

// untilLive waits until this process captures the relation.
func (p *Poller) untilLive(ctx context.Context) error {
	for {
		p.mu.Lock()
		live := p.live != nil
		p.mu.Unlock()
		if live {
			return nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// sleep waits, but not longer than ctx lasts.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
