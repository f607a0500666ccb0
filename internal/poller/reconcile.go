package poller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"

	"github.com/jackc/pgx/v5/pgxpool"
)

var (
	errLog          = errors.New("the relation has history=log: its stream holds every version, not the relation's state, so the two can't be compared")
	errSessionEnded = errors.New("the relation's session ended during the comparison: run it again")
)

// Reconcile compares the stream with the relation. It has rows that differ
// published again, or as deleted, and returns how many were published. The Sink
// promises their order, not that they are stored: if an epoch's end loses some,
// the next comparison finds them. Approximate counts include keys that did not
// differ.
//
// Any goroutine may call it. It waits for a first load to end. It returns
// immediately with reconcile.ErrStandby, or with another error if the relation is
// not being captured or has a log.
func (p *Poller) Reconcile(ctx context.Context) (reconcile.Counts, error) {
	if p.opt.Spec.History == relation.HistoryLog {
		return reconcile.Counts{}, errLog
	}
	return p.keeper.Reconcile(ctx)
}

// compareNow is Keeper.Compare.
func (p *Poller) compareNow(ctx context.Context) (reconcile.Counts, time.Duration, error) {
	s, err := p.awaitLive(ctx)
	if err != nil {
		return reconcile.Counts{}, 0, err
	}
	return s.reconcile(ctx)
}

// Captures says whether this process captures the relation now.
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

// awaitLive returns the session that captures the relation. It waits for a first
// load to end.
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
			return nil, fmt.Errorf("the relation is not being captured: %w", st.Err)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// page is suspect keys on their way from a comparison to the session.
type page struct {
	again *suspects
	// done is closed by the session when it has looked at the keys.
	done chan struct{}
}

// reconcile compares while the session goes on polling, and returns how long it
// took. It first waits for a place in Pool.Comparisons. The session is given
// only the suspect keys.
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

// compare runs the comparison. It counts the keys that were published, which may
// be fewer than those that were suspect.
func (s *session) compare(ctx context.Context) (repaired reconcile.Counts, err error) {
	form, err := relation.NewForm(s.rel, s.types) // s.form is for the session's goroutine only
	if err != nil {
		return repaired, err
	}
	published := s.p.lastPublished()
	counts, err := reconcile.Compare(ctx, s.storedRows, s.relationRows(form), reconcile.Options{}, func(ctx context.Context, keys []reconcile.Suspect) error {
		c, err := s.suspect(ctx, keys, published)
		repaired = repaired.Plus(c)
		return err
	})
	repaired.Rows, repaired.Approximate = counts.Rows, counts.Approximate
	return repaired, err
}

// compareFirst compares before the session polls: a broker that was killed may have brought
// rows back whose deletion was removed from the stream. Until they are deleted again, no
// heartbeat is true.
func (s *session) compareFirst(ctx context.Context) error {
	if s.previous == nil {
		return nil // everything is read now
	}
	s.log.Info().Msg("deleted rows were removed from the stream, and a broker that was killed may have brought some back: comparing")
	select {
	case s.pool.Comparisons <- struct{}{}:
		defer func() { <-s.pool.Comparisons }()
	case <-ctx.Done():
		return ctx.Err()
	}
	begun, next := time.Now(), s.safePrevious() // the first poll reads from next on
	var repaired reconcile.Counts
	counts, err := reconcile.Compare(ctx, s.storedRows, s.relationRows(s.form), reconcile.Options{}, func(ctx context.Context, keys []reconcile.Suspect) error {
		again := newSuspects()
		again.published = &next
		for _, k := range keys {
			again.add(s.rel, k.Key, k.Kind)
		}
		conn, err := s.pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		err = s.lookAgain(ctx, conn, again, next.Xmin)
		repaired = repaired.Plus(again.counts)
		return err
	})
	if err != nil {
		return fmt.Errorf("compare the relation with its stream: %w", err)
	}
	repaired.Rows, repaired.Approximate = counts.Rows, counts.Approximate
	s.p.keeper.Report(repaired, time.Since(begun))
	return nil
}

// lookWithin bounds the session's time to look at a page, and the time for which
// a lock may keep a comparison from reading. After it the comparison fails,
// because others wait for its place.
const lookWithin = 5 * time.Minute

var errNotLookedAt = fmt.Errorf("rows that may differ could not be read again within %s: the relation is locked, or a long batch is being read; try again later", lookWithin)

// suspect gives keys to the session, and waits until it has looked at them.
// published is the snapshot of a heartbeat from before the comparison.
func (s *session) suspect(ctx context.Context, keys []reconcile.Suspect, published capture.Snapshot) (reconcile.Counts, error) {
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

// repairPage looks again at the keys that a comparison gave to the session, if
// there are any. low is the xmin of the snapshot from which the next batch reads.
// That batch may bring rows of any transaction from low on, so no row here shows
// a higher since (I5). It also brings what is written after this look (I4).
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

// sleep waits for d, or returns ctx's error as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
