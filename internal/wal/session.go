package wal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// joinWithin is how long a session waits for all relations to begin;
	// those that take longer make it begin anew when they are ready.
	joinWithin = 10 * time.Second
	// beatEvery is the shortest time between two rounds of heartbeats: under
	// load, commits share them.
	beatEvery = 10 * time.Millisecond
	// markEvery is the shortest time between two watermarks.
	markEvery = 200 * time.Millisecond
	// tickEvery is how often the session looks after what is due.
	tickEvery = 250 * time.Millisecond
)

// errNobody says that no relation can be captured; each says why.
var errNobody = errors.New("none of the relations can be captured now")

// session is one replication connection, and the relations that it fills. All
// but what is said to be otherwise belongs to the goroutine of run.
type session struct {
	c           *Capture
	src         relation.Source
	publication *publication
	conn        *pgconn.PgConn
	inbox       *inbox
	began       began

	// feeds are the relations that take part, by their OIDs.
	feeds map[uint32]*feed
	// columns are the Relation messages by relation, and shapes what they came
	// to, once there was a row to publish: what is skipped because the stream has
	// it may have columns of long ago.
	columns map[uint32]*pglogrepl.RelationMessage
	shapes  map[uint32]*shape

	// tx is the transaction that is being read, nil between two.
	tx *transaction
	// pos is the place before which every commit was read.
	pos uint64
	// xidNear is a recent transaction ID, which tells the epoch of others.
	xidNear uint64
	// recent are the transactions read last.
	recent recent
	// name and looks name markers: those of other sessions may come again.
	name  string
	looks uint64

	lastBeat time.Time
	// owed is set while a heartbeat is owed to some feed.
	owed bool
	// live is set when the session has begun to read.
	live bool

	// confirmed is what the slot may be confirmed up to; the receiver reads it.
	confirmed atomic.Uint64
	// calls are what other goroutines want done in run's.
	calls chan func(context.Context) error
	// wanted has room for one; run's goroutine asks for a watermark.
	wanted chan struct{}
	// rejoin has room for one; whoever sends wants a new session.
	rejoin chan error

	work sync.WaitGroup
}

func newSession(c *Capture) *session {
	return &session{
		c: c, name: strconv.FormatUint(rand.Uint64(), 36), inbox: newInbox(), feeds: make(map[uint32]*feed), columns: make(map[uint32]*pglogrepl.RelationMessage), shapes: make(map[uint32]*shape), recent: newRecent(),
		calls: make(chan func(context.Context) error), wanted: make(chan struct{}, 1), rejoin: make(chan error, 1),
	}
}

// run captures until something fails that is not one relation's own fault.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.work.Wait()
	defer func() {
		cancel()
		for _, f := range s.feeds {
			close(f.ended)
		}
	}()
	if err := s.open(ctx); err != nil {
		if s.conn != nil {
			closeConn(s.conn)
		}
		return err
	}
	s.work.Go(func() {
		defer closeConn(s.conn)
		(&receiver{conn: s.conn, inbox: s.inbox, confirmed: s.confirmed.Load}).run(ctx)
	})
	if err := s.join(ctx); err != nil {
		return err
	}
	s.c.metrics.sessions.Inc()
	s.work.Go(func() { s.watermarks(ctx) })
	s.work.Go(func() { s.c.watchSlot(ctx, func() { s.again(errTooFar) }) })
	s.work.Go(func() { s.watchShapes(ctx) })
	return s.loop(ctx)
}

// errTooFar ends a session whose slot keeps too much WAL; the next drops it.
var errTooFar = errors.New("the replication slot keeps more WAL than BRIDGE_SLOT_MAX_LAG")

// again ends the session.
func (s *session) again(err error) {
	select {
	case s.rejoin <- err:
	default:
	}
}

// open looks at Postgres and the relations, and begins to read the slot. Who
// reads the slot is the one bridge of its name that writes.
func (s *session) open(ctx context.Context) error {
	var err error
	if s.src, err = relation.LoadSource(ctx, s.c.pool); err != nil {
		return err
	}
	if s.src.InRecovery {
		return errors.New("the server is a standby; capture=wal reads the primary: name it in DATABASE_URL, or poll")
	}
	if sl, err := s.c.slot(ctx); err != nil || sl.PID != 0 {
		if err == nil {
			err = s.c.inUse(sl.PID)
		}
		return err
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
	if err := s.claimSlot(ctx); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	return s.look(ctx)
}

// loadAll looks at every relation, at the same time: one that is locked must not
// keep the others.
func (s *session) loadAll(ctx context.Context) error {
	type loaded struct {
		r   *Relation
		f   *feed
		err error
	}
	for _, r := range s.c.relations {
		if r.probing { // the last session ended over it
			r.probing, r.retry = false, time.Time{}
		}
	}
	results, n := make(chan loaded, len(s.c.relations)), 0 // one from each
	for _, r := range s.c.relations {
		if r.err == nil || time.Now().After(r.retry) {
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
		pg := (*pgconn.PgError)(nil)
		switch {
		case l.err == nil:
			s.feeds[l.f.rel.OID] = l.f
		case errors.As(l.err, &pg) || isProblem(l.err):
			l.r.fail(l.err)
		default:
			away = l.err
		}
	}
	return away
}

func isProblem(err error) bool {
	var p *relation.Problem
	return errors.As(err, &p) || errors.Is(err, relation.ErrNotFound) || errors.Is(err, relation.ErrStaleTypes)
}

// look samples where Postgres is.
func (s *session) look(ctx context.Context) error {
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
	s.began.xmax, s.began.end, s.xidNear, s.pos = uint64(at.Xmax), uint64(at.End), uint64(at.Xmax), sl.Confirmed
	s.confirmed.Store(0) // nothing yet: what is confirmed never goes back
	return nil
}

// leave takes a relation out of the session.
func (s *session) leave(f *feed, err error) {
	if s.feeds[f.rel.OID] != f {
		return
	}
	delete(s.feeds, f.rel.OID)
	close(f.ended)
	f.r.stored = max(f.r.stored, f.stored())
	f.r.fail(err)
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
		s.work.Go(func() {
			b := s.began
			b.published = f.published
			var err error
			f.position, err = f.r.begin(ctx, source.Of(s.src, f.rel), f.schema, b)
			f.verdict = f.r.judge(f.position, b)
			results <- begun{f, err}
		})
	}
	limit := time.NewTimer(joinWithin)
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

// loop reads and publishes.
func (s *session) loop(ctx context.Context) error {
	s.live = true
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	beat := time.NewTimer(beatEvery)
	defer beat.Stop()
	var events []event
	var err error
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-s.rejoin:
			return err
		case call := <-s.calls:
			if err := call(ctx); err != nil {
				return err
			}
		case <-s.inbox.ready:
			if events, err = s.inbox.take(events); err != nil {
				return err
			}
			for i := range events {
				if err := s.apply(ctx, &events[i]); err != nil {
					return err
				}
			}
		case <-beat.C:
		case <-tick.C:
			if err := s.tick(ctx); err != nil {
				return err
			}
		}
		if s.owed && s.tx == nil {
			if due := beatEvery - time.Since(s.lastBeat); due > 0 {
				beat.Reset(due)
			} else {
				s.beat(ctx)
			}
		}
		if len(s.feeds) == 0 {
			return errNobody
		}
	}
}

// tick does what is due by time.
func (s *session) tick(ctx context.Context) error {
	now := time.Now()
	if s.tx == nil {
		for _, f := range s.feeds {
			if now.After(f.nextHeartbeat) {
				s.heartbeat(ctx, f, now)
			}
		}
	}
	s.confirm(now)
	for _, r := range s.c.relations {
		if r.err != nil && !r.probing && now.After(r.retry) {
			s.probe(ctx, r)
		}
	}
	return nil
}

// probe tries a relation that fails, by itself, before it makes the session
// begin anew.
func (s *session) probe(ctx context.Context, r *Relation) {
	r.probing = true
	s.work.Go(func() {
		f, err := s.load(ctx, r)
		if err == nil {
			_, err = r.sink.Begin(ctx, source.Of(s.src, f.rel), func() {})
		}
		s.call(ctx, func(context.Context) error {
			r.probing = false
			if err != nil {
				r.fail(err)
				return nil
			}
			r.retry = time.Time{}
			return errRejoin
		})
	})
}

// call has f run by run's goroutine, and returns when it did, or when the
// session ended.
func (s *session) call(ctx context.Context, f func(context.Context) error) bool {
	done := make(chan struct{})
	select {
	case <-ctx.Done():
		return false
	case s.calls <- func(ctx context.Context) error { defer close(done); return f(ctx) }:
	}
	<-done
	return true
}

// confirm finds how far the slot may be confirmed.
func (s *session) confirm(now time.Time) {
	at := s.pos
	for _, r := range s.c.relations {
		f := s.feedOf(r)
		switch {
		case f != nil:
			at = min(at, f.stored())
		case r.released:
		case now.Sub(latest(r.failing, s.c.begun)) > s.c.opt.HoldFor:
			r.released = true
			r.log.Error().Err(r.err).Dur("dur", now.Sub(r.failing)).
				Msg("the relation was away for too long: the slot moves on without it, and it will be compared with its stream when it comes back")
		default:
			at = min(at, r.stored)
		}
	}
	if at > s.confirmed.Load() && at > s.began.confirmed {
		s.confirmed.Store(at)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (s *session) feedOf(r *Relation) *feed {
	for _, f := range s.feeds {
		if f.r == r {
			return f
		}
	}
	return nil
}

// feedsByName returns the feeds in the order of their names, so that what is
// done with all is done in the same order by all.
func (s *session) feedsByName() []*feed {
	var list []*feed
	for _, f := range s.feeds {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *feed) int { return strings.Compare(a.r.spec.Name.Quoted(), b.r.spec.Name.Quoted()) })
	return list
}
