package wal

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bridge/internal/relation"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
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

	// unchecked is set where Postgres sends text that may be no UTF-8.
	unchecked bool

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
	// recent are the transactions read last, last the rows published last.
	recent recent
	last   lastRows
	// name is in every message that the session writes into the WAL, and nobody
	// can guess it; with looks it names markers. See own.
	name  string
	looks uint64

	// heard is when something last came from Postgres.
	heard time.Time
	// lastBeat is when the last heartbeats were sent.
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
	// ending is closed when the session's context ends.
	ending <-chan struct{}

	work sync.WaitGroup
}

func newSession(c *Capture) *session {
	return &session{
		c: c, name: rand.Text(), inbox: newInbox(),
		feeds: make(map[uint32]*feed), columns: make(map[uint32]*pglogrepl.RelationMessage), shapes: make(map[uint32]*shape),
		calls: make(chan func(context.Context) error), wanted: make(chan struct{}, 1), rejoin: make(chan error, 1),
	}
}

// run captures until something fails that is not one relation's own fault.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	s.ending = ctx.Done()
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
	s.c.reading.Store(s)
	defer s.c.reading.Store(nil)
	if err := s.join(ctx); err != nil {
		return err
	}
	s.c.metrics.sessions.Inc()
	s.c.log.Info().Str("slot", s.c.opt.Name).Stringer("lsn", lsn(s.began.confirmed)).Int("relations", len(s.feeds)).Msg("reading the WAL")
	s.work.Go(func() { s.watermarks(ctx) })
	s.work.Go(func() { s.watchShapes(ctx) })
	s.work.Go(func() { s.watchKeyless(ctx) })
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

// loop reads and publishes.
func (s *session) loop(ctx context.Context) error {
	s.live = true
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	beat := time.NewTimer(beatEvery)
	defer beat.Stop()
	var events []event
	pace := publishPace()
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
			if len(events) > 0 {
				s.heard = time.Now()
			}
			for i := range events {
				if err := s.apply(ctx, &events[i]); err != nil {
					return err
				}
			}
			pace.rest(len(events))
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
		s.beat(ctx)
	}
	s.confirm(now)
	if s.behind() { // who comes back begins a new session, and what was read would be read again
		return nil
	}
	for _, r := range s.c.relations {
		if r.err != nil && !r.probing && now.After(r.retry) {
			s.probe(ctx, r)
		}
	}
	return nil
}

// behind says whether a relation has yet to read what the WAL held when the
// session began: its position can't be kept before.
func (s *session) behind() bool {
	for _, f := range s.feeds {
		if f.task == taskNone && f.pos < f.ahead {
			return true
		}
	}
	return false
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
			stored := f.stored()
			if stored > r.stored {
				r.stored, r.failing = stored, time.Time{}
			}
			at = min(at, stored)
		case r.released:
		case now.Sub(latest(r.failing, s.c.begun)) > s.c.opt.HoldFor:
			r.released = true
			r.log.Error().Err(r.err).Dur("dur", now.Sub(r.failing).Round(time.Millisecond)).
				Msg("relation failing for too long, the slot moves on without it; it will be compared with its stream when it comes back")
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
