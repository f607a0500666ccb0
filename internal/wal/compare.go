package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5/pgconn"
)

// suspected is a key to look at, and who waits for that.
type suspected struct {
	key   [][]byte
	pages []*page
}

// page is keys that a comparison has found, on their way to be looked at.
type page struct {
	// left are those not looked at yet; done is closed when there are none.
	left int
	done chan struct{}
	// exact says that a row is published only where it is not what the stream
	// has by then; counts says what was published.
	exact  bool
	counts reconcile.Counts
}

// compare compares the relation with a stream that the WAL alone can't
// continue, and then lets heartbeats come.
func (s *session) compare(ctx context.Context, f *feed) {
	s.work.Go(func() {
		within, cancel := f.within(ctx)
		counts, _, err := s.comparison(within, f, false)
		cancel()
		s.call(ctx, func(context.Context) error {
			if err != nil {
				s.leave(f, fmt.Errorf("compare the relation with its stream: %w", err))
				return nil
			}
			f.r.keeper.Report(counts, time.Since(f.loading))
			f.task, f.after = taskNone, nil
			f.dirty, s.owed = true, true
			signal(s.wanted)
			return nil
		})
	})
}

// comparison compares the relation with its stream, and returns when all that
// differs was looked at, with how long that took. It first waits for a place in
// Pool.Comparisons.
func (s *session) comparison(ctx context.Context, f *feed, exact bool) (counts reconcile.Counts, took time.Duration, err error) {
	form, err := relation.NewForm(f.rel, f.types) // the feed's is not this goroutine's
	if err != nil {
		return counts, 0, err
	}
	select {
	case s.c.pool.Comparisons <- struct{}{}:
		defer func() { <-s.c.pool.Comparisons }()
	case <-ctx.Done():
		return counts, 0, ctx.Err()
	}
	begun := time.Now()
	var done reconcile.Counts
	size := pageKeys
	if exact {
		size = exactKeys
	}
	counts, err = reconcile.Compare(ctx, f.storedRows, s.relationRows(f, form), reconcile.Options{Page: size}, func(ctx context.Context, keys []reconcile.Suspect) error {
		pg := &page{left: len(keys), done: make(chan struct{}), exact: exact}
		ok := s.call(ctx, func(ctx context.Context) error {
			for _, k := range keys {
				f.suspect(k.Key, pg)
			}
			s.startLook(ctx, f)
			return nil
		})
		if !ok {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pg.done:
		}
		done = done.Plus(pg.counts)
		return nil
	})
	if exact {
		done.Rows, done.Approximate = counts.Rows, false
		counts = done
	}
	return counts, time.Since(begun), err
}

const (
	// pageKeys is how many keys a comparison hands over at once; exactKeys, where
	// each is compared with the stream before anything is published.
	pageKeys  = lookKeys
	exactKeys = 100
)

// storedRows is the stream's side of a comparison.
func (f *feed) storedRows(ctx context.Context, row func(reconcile.Row) error) error {
	return f.r.sink.Scan(ctx, func(r capture.StoredRow) error {
		if r.Deleted {
			return nil
		}
		return row(reconcile.Row{Key: r.Key, Data: r.Comparable()})
	})
}

// relationRows returns the relation's side of a comparison.
func (s *session) relationRows(f *feed, form *relation.Form) reconcile.Side {
	return func(ctx context.Context, row func(reconcile.Row) error) error {
		for pause := lookPause; ; pause = min(2*pause, maxLookPause) {
			err := s.readAll(ctx, f, form, row)
			if !relation.IsLocked(err) { // which says that no row was read
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
	}
}

func (s *session) readAll(ctx context.Context, f *feed, form *relation.Form, row func(reconcile.Row) error) error {
	select {
	case s.c.pool.Loads <- struct{}{}:
		defer func() { <-s.c.pool.Loads }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.inSnapshot(ctx, f, func(conn *pgconn.PgConn, _ capture.Snapshot) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rr := conn.ExecParams(ctx, f.selectSQL()+" WHERE "+f.condition(), nil, nil, nil, nil)
		for rr.NextRow() {
			r, err := f.lookedRow(form, rr.Values())
			if err == nil && !r.deleted {
				err = row(reconcile.Row{Key: r.key, Data: capture.Comparable(r.data)})
			}
			if err != nil {
				cancel() // Close would read all the rows that are left
				_, _ = rr.Close()
				return err
			}
		}
		_, err := rr.Close()
		return err
	})
}

// lookedAt publishes what a look found for a key that was suspected: a row, or
// nil for none.
func (f *feed) lookedAt(ctx context.Context, sp *suspected, r *lookedRow, txid uint64, l *look) error {
	kind, publish := reconcile.Unknown, true
	for _, pg := range sp.pages {
		if !pg.exact {
			continue
		}
		var err error
		if kind, err = f.differs(ctx, sp.key, r); err != nil {
			return err
		}
		publish = kind != reconcile.Unknown
		break
	}
	if publish {
		var err error
		if r != nil {
			err = f.looked(ctx, r, txid, l)
		} else {
			err = f.remove(ctx, txid, sp.key, lockstep.Change{Action: lockstep.ActionDelete})
		}
		if err != nil {
			return err
		}
	}
	sp.finish(kind)
	return nil
}

// finish tells who waits that the key was looked at.
func (sp *suspected) finish(kind reconcile.Kind) {
	for _, pg := range sp.pages {
		if kind != reconcile.Unknown {
			pg.counts.Add(kind)
		}
		if pg.left--; pg.left == 0 {
			close(pg.done)
		}
	}
	sp.pages = nil
}

// differs compares a row, or nil for none, with what the stream has.
func (f *feed) differs(ctx context.Context, key [][]byte, r *lookedRow) (reconcile.Kind, error) {
	stored, err := f.r.sink.Get(ctx, key)
	if err != nil {
		return reconcile.Unknown, err
	}
	live := stored != nil && !stored.Deleted
	switch {
	case (r == nil || r.deleted) && live:
		return reconcile.Zombie, nil
	case r == nil || r.deleted:
		return reconcile.Unknown, nil
	case !live:
		return reconcile.Missing, nil
	case !bytes.Equal(stored.Comparable(), capture.Comparable(r.data)):
		return reconcile.Stale, nil
	}
	return reconcile.Unknown, nil
}

var (
	errNoMirror     = errors.New("its stream does not mirror the relation (history=log, or actions=), so they can't be compared")
	errSessionEnded = errors.New("the capture of the relation was interrupted; try again")
)

// Reconcile compares the stream with the relation, and has published anew, or
// as deleted, what differs. It may be called from any goroutine, and waits for
// a first load to end. It returns reconcile.ErrStandby where another process
// captures the relation.
func (r *Relation) Reconcile(ctx context.Context) (reconcile.Counts, error) {
	if !r.mirrors() {
		return reconcile.Counts{}, errNoMirror
	}
	return r.keeper.Reconcile(ctx)
}

// compareNow is the keeper's.
func (r *Relation) compareNow(ctx context.Context) (reconcile.Counts, time.Duration, error) {
	l, err := r.awaitLive(ctx)
	if err != nil {
		return reconcile.Counts{}, 0, err
	}
	ctx, cancel := l.feed.within(ctx)
	defer cancel()
	counts, took, err := l.session.comparison(ctx, l.feed, true)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return counts, took, err
}

// mirrors says whether the stream is the relation's state.
func (r *Relation) mirrors() bool { return !r.keepsAll() && len(r.spec.Actions) == 0 }

// Captures says whether this process, and no other, captures the relation now.
func (r *Relation) Captures() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live != nil || r.status.State == health.StateFirstLoad
}

// live is the session in which a relation's heartbeats are true.
type live struct {
	session *session
	feed    *feed
}

func (r *Relation) awaitLive(ctx context.Context) (*live, error) {
	for {
		r.mu.Lock()
		l, st := r.live, r.status
		r.mu.Unlock()
		switch {
		case l != nil:
			return l, nil
		case st.State == health.StateStandby:
			return nil, reconcile.ErrStandby
		case st.State == health.StateFailing:
			return nil, fmt.Errorf("the relation is not being captured now: %w", st.Err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (r *Relation) isLive() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live != nil
}

// setLive says from now on where the relation is live, nil for nowhere.
func (r *Relation) setLive(l *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = l
}
