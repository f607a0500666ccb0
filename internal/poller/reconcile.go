package poller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"

	"github.com/jackc/pgx/v5/pgxpool"
)

var (
	errLog          = errors.New("a stream with history=log has every version, not the relation's state, and can't be compared with it")
	errSessionEnded = errors.New("the relation's session ended, ask again")
)

// Reconcile compares the stream with the relation, and has published anew, or
// as deleted, what differs. The counts are of what was published, of which the
// Sink promises order, not storage: what an epoch's end loses is found the next
// time. Approximate counts are of more keys than differed. It may be called from any
// goroutine, and waits for a first load to end. It returns reconcile.ErrStandby, or
// another error at once where the relation is not captured or has a log.
func (p *Poller) Reconcile(ctx context.Context) (reconcile.Counts, error) {
	if p.opt.Spec.History == relation.HistoryLog {
		return reconcile.Counts{}, errLog
	}
	return p.keeper.Reconcile(ctx)
}

// compareNow is the keeper's.
func (p *Poller) compareNow(ctx context.Context) (reconcile.Counts, time.Duration, error) {
	s, err := p.awaitLive(ctx)
	if err != nil {
		return reconcile.Counts{}, 0, err
	}
	return s.reconcile(ctx)
}

// Captures says whether this process, and no other, captures the relation now.
func (p *Poller) Captures() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live != nil || p.status.State == health.StateFirstLoad
}

func (p *Poller) isLive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live != nil
}

// awaitLive returns the session that captures the relation.
func (p *Poller) awaitLive(ctx context.Context) (*session, error) {
	for {
		p.mu.Lock()
		s, st := p.live, p.status
		p.mu.Unlock()
		switch {
		case s != nil:
			return s, nil
		case st.State == health.StateStandby:
			return nil, reconcile.ErrStandby
		case st.State == health.StateFailing:
			return nil, fmt.Errorf("the relation is not being captured now: %w", st.Err)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// page is suspect keys on their way from a comparison to the session.
type page struct {
	again *suspects
	// done is closed by the session when it has looked at them.
	done chan struct{}
}

// reconcile compares beside the session's polls, as soon as few enough others
// do, and says how long it took; only suspect keys are handed to the session.
func (s *session) reconcile(ctx context.Context) (counts reconcile.Counts, took time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.ended:
			cancel(errSessionEnded)
		case <-ctx.Done():
		}
	}()
	select {
	case s.pool.Comparisons <- struct{}{}:
		defer func() { <-s.pool.Comparisons }()
	case <-ctx.Done():
		return counts, 0, context.Cause(ctx)
	}
	begun := time.Now()
	counts, err = s.compare(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return counts, time.Since(begun), err
}

// compare counts what was published, which is less than what was suspect.
func (s *session) compare(ctx context.Context) (repaired reconcile.Counts, err error) {
	form, err := relation.NewForm(s.rel, s.types) // the session's is its own
	if err != nil {
		return repaired, err
	}
	published := s.p.lastPublished()
	counts, err := reconcile.Compare(ctx, s.storedRows, s.relationRows(form), reconcile.Options{}, func(ctx context.Context, keys []reconcile.Suspect) error {
		c, err := s.suspect(ctx, keys, published)
		repaired.Missing, repaired.Stale, repaired.Zombie = repaired.Missing+c.Missing, repaired.Stale+c.Stale, repaired.Zombie+c.Zombie
		return err
	})
	repaired.Rows, repaired.Approximate = counts.Rows, counts.Approximate
	return repaired, err
}

// lookWithin is how long the session may take to look at a page, or may be kept
// from reading by a lock, before the comparison is given up: others wait for its
// place.
const lookWithin = 5 * time.Minute

var errNotLookedAt = fmt.Errorf("what may differ could not be looked at for %s: the relation is locked, or a long batch is under way", lookWithin)

// suspect hands keys to the session, and waits until it has looked at them.
// published is the snapshot of a heartbeat from before the comparison.
func (s *session) suspect(ctx context.Context, keys []reconcile.Suspect, published relation.Snapshot) (reconcile.Counts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookWithin, errNotLookedAt)
	defer cancel()
	pg := &page{again: newSuspects(), done: make(chan struct{})}
	pg.again.published = &published
	for _, k := range keys {
		pg.again.add(s.rel, k.Key, k.Kind)
	}
	select {
	case s.pages <- pg:
	case <-ctx.Done():
		return reconcile.Counts{}, context.Cause(ctx)
	}
	s.p.wake.notify()
	select {
	case <-pg.done:
		return pg.again.counts, nil
	case <-ctx.Done():
		return reconcile.Counts{}, context.Cause(ctx)
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

// sleep waits, but not longer than ctx lasts.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
