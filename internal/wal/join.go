package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// open looks at Postgres and the relations, and begins to read the slot. Who
// reads the slot is the one bridge of its name that writes.
func (s *session) open(ctx context.Context) error {
	var err error
	if s.src, err = relation.LoadSource(ctx, s.c.pool); err != nil {
		return err
	}
	if s.src.InRecovery {
		return errors.New("the server is a standby, but capture=wal needs the primary; to do: name the primary in DATABASE_URL, or poll")
	}
	rows, err := s.c.pool.Query(ctx, "SELECT current_setting('wal_level'), current_setting('server_encoding')")
	if err != nil {
		return fmt.Errorf("look up settings: %w", err)
	}
	set, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[struct{ WALLevel, Encoding string }])
	if err != nil {
		return fmt.Errorf("look up settings: %w", err)
	}
	if set.WALLevel != "logical" {
		return fmt.Errorf("wal_level is %s, but capture=wal needs logical; to do: ALTER SYSTEM SET wal_level = logical, then restart Postgres", set.WALLevel)
	}
	s.unchecked = set.Encoding == anyEncoding
	sl, err := s.c.slot(ctx)
	if err != nil {
		return err
	}
	if sl.exists && !sl.isOf(s.src) { // also while its owner reads it
		return s.c.foreign(sl, s.src)
	}
	if sl.PID != 0 {
		return s.c.inUse(ctx, sl)
	}
	if err := s.loadAll(ctx); err != nil {
		return err
	}
	if len(s.feeds) == 0 {
		return errNobody
	}
	if err := s.publish(ctx); err != nil {
		return err
	}
	for _, f := range s.feedsByName() {
		if err := f.shape(ctx, s.c.pool); err != nil {
			s.leave(f, err)
		}
	}
	if len(s.feeds) == 0 { // nobody needs a slot
		return errNobody
	}
	if err := s.claimSlot(ctx, sl); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	return s.sample(ctx)
}

// loadAll looks at every relation, at the same time: one that is locked must not
// keep the others.
func (s *session) loadAll(ctx context.Context) error {
	type loaded struct {
		r   *Relation
		f   *feed
		err error
	}
	// A relation that fails is not tried before its time, unless all fail: then
	// there is no session that a try would disturb.
	wait := false
	for _, r := range s.c.relations {
		wait = wait || r.err == nil
		if r.probing { // the last session ended over it
			r.probing, r.retry = false, time.Time{}
		}
	}
	results, n := make(chan loaded, len(s.c.relations)), 0 // one from each
	for _, r := range s.c.relations {
		if !wait || r.err == nil || time.Now().After(r.retry) {
			n++
			go func() {
				f, err := s.load(ctx, r)
				results <- loaded{r, f, err}
			}()
		}
	}
	var away error
	for range n {
		l := <-results
		switch {
		case l.err == nil:
			s.feeds[l.f.rel.OID] = l.f
			for _, w := range l.f.warnings {
				l.r.log.Warn().Str("reason", w.Error()).Msg("relation captured with a problem")
			}
		case isProblem(l.err):
			l.r.fail(l.err, lookMax)
		default:
			away = l.err
		}
	}
	return away
}

// isProblem says whether an error is of a relation, not of the server or the way
// to it.
func isProblem(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		// Connections, resources, an operator's intervention: see appendix A of
		// Postgres' manual.
		return !slices.Contains([]string{"08", "53", "57", "58"}, pg.Code[:min(2, len(pg.Code))])
	}
	var p *relation.Problem
	return errors.As(err, &p) || errors.Is(err, relation.ErrNotFound) || errors.Is(err, relation.ErrStaleTypes)
}

// sample asks where Postgres is.
func (s *session) sample(ctx context.Context) error {
	// Only who reads the slot moves it, so now it stands still.
	sl, err := s.c.slot(ctx)
	if err != nil {
		return err
	}
	s.began.confirmed = sl.Confirmed
	rows, err := s.c.pool.Query(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS xmax, (pg_current_wal_insert_lsn() - '0/0')::int8 AS end`)
	if err != nil {
		return fmt.Errorf("look at the WAL: %w", err)
	}
	at, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[struct{ Xmax, End int64 }])
	if err != nil {
		return fmt.Errorf("look at the WAL: %w", err)
	}
	if err := s.flush(ctx); err != nil {
		return fmt.Errorf("flush the WAL: %w", err)
	}
	s.began.xmax, s.began.end, s.xidNear, s.pos = uint64(at.Xmax), uint64(at.End), uint64(at.Xmax), sl.Confirmed
	s.confirmed.Store(0) // nothing yet: what is confirmed never goes back
	return nil
}

// flush returns when the WAL that was there before is on disk. What is not, a
// crash takes back, and gives its place to others: no stream may say that it
// holds that.
func (s *session) flush(ctx context.Context) error {
	// A transaction that wrote nothing would not be flushed.
	return s.toDisk(ctx, "SELECT pg_logical_emit_message(true, 'lockstep', 'flush')")
}

// leave takes a relation out of the session. What fails because the session
// itself ends is no fault of the relation.
func (s *session) leave(f *feed, err error) {
	if s.feeds[f.rel.OID] != f {
		return
	}
	delete(s.feeds, f.rel.OID)
	close(f.ended)
	select {
	case <-s.ending:
		return
	default:
	}
	if mc := (mustCompare{}); errors.As(err, &mc) {
		f.r.compare = mc.reason
	}
	f.r.stored = max(f.r.stored, f.stored())
	f.r.fail(err, s.c.opt.RetryMax)
}

// begun is what a relation's begin came to.
type begun struct {
	f   *feed
	err error
}

// join begins every relation's epoch, at the same time: each may have to wait
// for the lease of a bridge that is gone.
func (s *session) join(ctx context.Context) error {
	results := make(chan begun, len(s.feeds)) // one from each
	waiting := make(map[*feed]bool, len(s.feeds))
	for _, f := range s.feeds {
		waiting[f] = true
		b := s.began
		b.known, b.published, b.released, b.first, b.compare = f.known, f.published, f.r.released, f.r.first, f.r.compare
		s.work.Go(func() {
			pos, lost, err := f.r.begin(ctx, source.Of(s.src, f.rel, s.began.xmax), f.schema, b)
			f.position, f.verdict = pos, f.r.judge(pos, b)
			f.verdict.lost = cmp.Or(f.verdict.lost, lost)
			results <- begun{f, err}
		})
	}
	limit := time.NewTimer(s.c.opt.JoinWithin)
	defer limit.Stop()
	for len(waiting) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-results:
			delete(waiting, r.f)
			if r.err == nil {
				r.err = s.start(ctx, r.f)
			}
			if r.err != nil {
				s.leave(r.f, r.err)
			}
		case <-limit.C:
			for f := range waiting {
				delete(s.feeds, f.rel.OID) // its goroutine still owns it
				if f.r.failing.IsZero() {
					f.r.failing = time.Now()
				}
			}
			n := len(waiting)
			s.work.Go(func() { s.awaitLate(ctx, n, results) })
			waiting = nil
		}
	}
	if len(s.feeds) == 0 {
		return errNobody
	}
	return nil
}

// awaitLate waits for relations that took too long to begin, and then makes the
// session begin anew, with them.
func (s *session) awaitLate(ctx context.Context, n int, results <-chan begun) {
	for range n {
		select {
		case <-ctx.Done():
			return
		case <-results:
		}
	}
	s.again(errRejoin)
}

// probe tries a relation that fails, by itself, before it makes the session
// begin anew.
func (s *session) probe(ctx context.Context, r *Relation) {
	r.probing = true
	s.work.Go(func() {
		f, err := s.load(ctx, r)
		if err == nil {
			var p *publication
			if p, err = s.loadPublication(ctx, r); err == nil {
				err = p.tables[r.spec.Name].err
			}
		}
		if err == nil {
			_, err = r.sink.Begin(ctx, source.Of(s.src, f.rel, s.began.xmax), func() {})
		}
		s.call(ctx, func(context.Context) error {
			r.probing = false
			if err != nil {
				r.fail(err, lookMax)
				return nil
			}
			r.retry = time.Time{}
			return errRejoin
		})
	})
}
