package poller

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/lockstep"

	"github.com/rs/zerolog"
)

// session is one run of a poller. It loads the relation once and uses one epoch of
// the sink. It belongs to one goroutine.
type session struct {
	p    *Poller
	pool *source.Pool
	sink capture.Sink
	log  zerolog.Logger

	rel     *relation.Relation
	types   relation.Types
	form    *relation.Form
	queries queries
	// serverSide says which columns only the server can turn into JSON.
	serverSide []bool
	// shape distinguishes the prepared statements of different shapes.
	shape uint64
	src   relation.Source
	// next is capture.Source.Next.
	next uint64

	// previous is P. It is nil before the first load has ended.
	previous *capture.Snapshot
	durable  durability
	// safe is D as of the last safe batch, connects the number of connections made
	// by then. What a crash of Postgres had undone before that batch was repaired
	// with it.
	safe     capture.Snapshot
	connects int64
	// watched says that the Watcher knows when nothing has changed. last is the last
	// poll that ended well; seen is its look, or that of the poll that goes on.
	// probe is for the Watcher.
	watched bool
	last    polled
	seen    look
	probe   *probe
	// repeats remembers the published rows above xmin.
	repeats *repeats
	// owed, if not 0, is the since that clients wait for: the xmin of the snapshot
	// of a heartbeat that could not show it yet.
	owed uint64
	// nextHeartbeat is when a heartbeat is due even without rows. nextNulls is when
	// rows without a txid are counted again, nextShape when the catalog is checked
	// again.
	nextHeartbeat, nextNulls, nextShape time.Time
	// shaped is when the last look at the catalog began.
	shaped time.Time
	// keyless counts the rows that are left out because of their key. metKeyless is
	// set when a batch has met one since.
	keyless    health.Keyless
	metKeyless bool
	// waits counts consecutive tries for which waitsFor returned nil.
	waits int
	// pages takes suspect keys from a comparison, for the next poll. It has room
	// for one page: the comparison waits until the session is done with a page
	// before it sends the next. Never closed. page is the one being looked at.
	pages chan *page
	page  *page
	// fault is closed when a fault has ended the epoch.
	fault <-chan struct{}
	// ended is closed when the session has ended.
	ended chan struct{}
	// begun is set once the epoch has begun, live once a heartbeat was published.
	// overdue is set while a heartbeat is overdue and the reason was logged.
	begun, live, overdue bool
}

func newSession(p *Poller) *session {
	return &session{
		p: p, pool: p.pool, sink: p.sink, log: p.log, repeats: newRepeats(),
		pages: make(chan *page, 1), ended: make(chan struct{}),
	}
}

// run captures until an error ends the session.
func (s *session) run(ctx context.Context) error {
	defer s.p.over(s)
	if err := s.load(ctx); err != nil {
		return err
	}
	pos, err := s.sink.Begin(ctx, source.Of(s.src, s.rel, s.next), func() {
		s.p.update(func(st *health.Status) { *st = health.Status{State: health.StateStandby} })
	})
	if err != nil {
		return err
	}
	s.begun, s.fault = true, s.sink.Ended()
	s.p.update(func(st *health.Status) { st.State, st.Err = health.StateStarting, nil })
	if err := s.resume(ctx, pos); err != nil {
		return err
	}
	if pos.Tidied {
		if err := s.compareFirst(ctx); err != nil {
			return err
		}
	}
	return s.loop(ctx)
}

// load reads from the catalog what the relation and its source are.
func (s *session) load(ctx context.Context) error {
	s.shaped = time.Now()
	var err error
	if s.src, err = relation.LoadSource(ctx, s.pool); err != nil {
		return err
	}
	s.durable.pages = s.src.WAL
	if s.src.Timeline > 1 {
		next, err := relation.QueryOne[int64](ctx, s.pool, nextSQL)
		if err != nil {
			return fmt.Errorf("ask for the next transaction ID: %w", err)
		}
		s.next = uint64(next)
	}
	var warnings []relation.Problem
	if s.rel, warnings, err = relation.Load(ctx, s.pool, s.p.opt.Spec); relation.IsLocked(err) {
		return errLocked
	} else if err != nil {
		return err
	}
	for _, w := range warnings {
		s.log.Warn().Str("reason", w.Error()).Msg("relation captured with a problem")
	}
	if s.types, err = relation.LoadTypes(ctx, s.pool, s.rel.Columns); err != nil {
		return err
	}
	s.nextShape = time.Now().Add(s.p.opt.ShapeInterval)
	if s.form, err = relation.NewForm(s.rel, s.types); err != nil {
		return err
	}
	if s.p.opt.Watcher != nil {
		if s.watched, err = relation.ChangesByTransactions(ctx, s.pool, s.rel); err != nil {
			return err
		}
	}
	s.p.listener.watch(s.p.wake, s.rel.Sources)
	s.serverSide = s.form.ServerSide()
	s.queries = newQueries(s.rel, s.serverSide)
	s.probe = &probe{sql: s.queries.probe}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d %v %d", s.rel.OID, s.rel, time.Now().UnixNano())
	s.shape = h.Sum64()
	return nil
}

// resume continues from what the stream holds. If the relation's shape changed in
// a way that may change rows, it publishes the whole relation again. It continues
// a batch that was announced and has not ended.
func (s *session) resume(ctx context.Context, pos capture.Position) error {
	schema, err := relation.Document(s.rel, s.types)
	if err != nil {
		return err
	}
	if hb := pos.Heartbeat; hb != nil {
		sn, err := capture.ParseSnapshot(hb.Snapshot)
		if err != nil {
			return fmt.Errorf("parse last heartbeat: %w", err)
		}
		sn = s.bound(sn)
		s.previous = &sn
		if s.safe, err = parseDurable(hb.Durable); err != nil {
			return fmt.Errorf("parse last heartbeat: %w", err)
		}
		s.durable.durable = s.safe
		if hb.LSN != 0 {
			s.log.Warn().Msg("relation was captured from the WAL before; polling continues from there but does not see rows deleted since; run bridge reconcile for it")
			if s.p.opt.Spec.History == relation.HistoryLog {
				const reason = "it is polled now, and not read from the WAL: a poll sees no deletes, and of several changes only the last"
				gap := capture.Change{Xmin: hb.Since, High: pos.High, Line: lockstep.AppendGap(nil, hb.Since, reason)}
				if err := s.sink.Row(ctx, gap); err != nil {
					return err
				}
			}
		}
	}
	s.connects = -1 // Postgres may have crashed since the last heartbeat
	if pos.Schema != nil && !relation.SameKeys(pos.Schema, schema) {
		const reason = "the relation's key changed"
		if err := s.sink.Restart(ctx, reason, 0); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s", errChanged, reason)
	}
	if string(pos.Schema) != string(schema) {
		if !relation.SameRows(pos.Schema, schema) {
			return s.reshape(ctx, pos.Schema == nil, schema)
		}
		s.log.Info().Msg("the relation's schema changed, its rows did not")
		if err := s.sink.Schema(ctx, schema); err != nil {
			return err
		}
	}
	if pos.Batch != nil {
		return s.continueBatch(ctx, *pos.Batch, pos.After)
	}
	return nil
}

// loop polls until an error ends the session.
func (s *session) loop(ctx context.Context) error {
	timer := newPace(s.p.opt.Interval)
	for {
		select {
		case <-s.fault:
			s.nextHeartbeat = time.Time{} // this one meets the fault
		default:
		}
		rows, err := s.poll(ctx)
		if err != nil {
			return err
		}
		timer.interval = s.p.opt.Interval
		if s.owed != 0 {
			timer.interval = min(timer.interval, owedInterval)
		}
		switch idle := timer.idle(rows > 0); {
		case s.waits > 0:
			err = s.waitAgain(ctx)
		case idle && s.watched && s.owed == 0:
			err = s.rest(ctx)
		default:
			err = timer.wait(ctx, s.p.wake, s.fault)
		}
		if err != nil {
			return err
		}
	}
}

// owedInterval is the longest time between two polls while clients wait for D.
const owedInterval = 100 * time.Millisecond

// poll reads and publishes one batch, and returns its number of rows. After that it
// makes the checks that are due. At that moment no other session has just locked
// the relation; else they might wait for the lock, and other relations for a
// connection.
func (s *session) poll(ctx context.Context) (int64, error) {
	rows, err := s.pollRows(ctx)
	if err != nil || !s.live || s.waits > 0 {
		return rows, err
	}
	for _, check := range []func(context.Context) error{s.countNulls, s.countKeyless, s.checkKey, s.checkShape} {
		if err := check(ctx); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func (s *session) pollRows(ctx context.Context) (int64, error) {
	if s.previous == nil {
		return 0, s.batch(ctx, work{query: s.queries.whole, whole: true})
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	// If Postgres crashes after this line, conn breaks. If it crashed before, conn
	// is a new connection, with a number above s.connects.
	connects, began := s.pool.Connects(), time.Now()
	p := *s.previous
	if source.ConnectionOf(conn).Number > s.connects {
		s.durable.reconnected()
		p = s.safePrevious()
		if err := s.repair(ctx, conn, p); err != nil {
			return 0, s.waitsFor(err)
		}
	}
	if err := s.repairPage(ctx, conn, p.Xmin); err != nil {
		return 0, s.waitsFor(err)
	}
	w := work{query: s.queries.delta, params: [][]byte{xidArray(p.Xip), xid(p.Xmax)}, previous: &p}
	if len(p.Xip) == 0 {
		w.query, w.params = s.queries.deltaTail, [][]byte{xid(p.Xmax)}
	}
	rows, err := s.batchRows(ctx, conn, w)
	if err != nil {
		return 0, s.waitsFor(err)
	}
	s.connects, s.safe, s.waits = connects, s.durable.durable, 0
	s.last = polled{at: began, server: source.ConnectionOf(conn).Server, look: s.seen}
	return rows, nil
}

// rest waits until the relation may have changed. As long as it has not, it
// publishes the heartbeats that are due, without asking Postgres.
func (s *session) rest(ctx context.Context) error {
	w := s.p.opt.Watcher
	defer w.rest(s.p.wake, &resting{last: s.last, probe: s.probe, fresh: s.p.metrics.Fresh})()
	for {
		due := s.nextHeartbeat
		if s.nextShape.Before(due) {
			due = s.nextShape
		}
		t := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-s.p.wake.ch:
			t.Stop()
			return nil
		case <-s.fault:
			t.Stop()
			return nil
		case <-t.C:
		}
		// A change of the shape is a transaction, too.
		if now := time.Now(); !now.Before(s.nextShape) {
			if _, still := w.still(s.last.server, s.shaped); !still {
				return nil
			}
			s.nextShape = now.Add(s.p.opt.ShapeInterval)
		}
		g, still := w.still(s.last.server, s.last.at)
		if !still {
			return nil
		}
		if err := s.beat(ctx, g); err != nil {
			return err
		}
	}
}

// beat publishes a heartbeat with the snapshot of the last poll, which still
// holds. The snapshot may be durable by now.
func (s *session) beat(ctx context.Context, g glance) error {
	b := newBatch(s, work{previous: s.previous})
	l := s.last.look
	l.inserted, l.flushed = g.inserted, g.flushed
	if err := b.start(ctx, l); err != nil {
		return err
	}
	return s.endBatch(ctx, nil, b)
}

// errBehind says that a standby does not yet show what was published.
var errBehind = errors.New("the standby lags behind what was published")

// waitsFor returns nil for an error that does not end the session, because it
// passes with time: a standby that lags, or a lock. If it lasts so long that a
// heartbeat is overdue, waitsFor reports it.
func (s *session) waitsFor(err error) error {
	if !errors.Is(err, errBehind) && !errors.Is(err, errLocked) {
		return err
	}
	s.waits++
	if s.live && time.Now().Before(s.nextHeartbeat) {
		return nil
	}
	s.p.update(func(st *health.Status) { st.Err = err })
	if !s.overdue {
		s.log.Warn().Err(err).Msg("the relation can't be read now, trying again")
	}
	s.overdue = true
	return nil
}

// maxWait is the longest pause between two tries to read a locked relation. There
// are pauses because each try costs Postgres an error and a line in its log.
const maxWait = time.Second

// waitAgain pauses. The pause grows with the number of consecutive tries.
func (s *session) waitAgain(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(s.p.opt.Interval<<min(s.waits, 10), maxWait)):
		return nil
	}
}

// safePrevious replaces P where Postgres may have lost transactions that were
// visible in P. With it, everything that is not known to be durable is read again.
func (s *session) safePrevious() capture.Snapshot {
	if s.safe.Xmax != 0 && s.safe.Xmax <= s.previous.Xmax {
		return s.safe
	}
	low := uint64(1)
	if s.safe.Xmax != 0 {
		low = min(s.safe.Xmin, s.previous.Xmin)
	}
	return capture.Snapshot{Xmin: low, Xmax: low}
}

// batch runs a batch that may be long. It tries again while waitsFor says so.
func (s *session) batch(ctx context.Context, w work) error {
	for {
		err := s.tryBatch(ctx, w)
		if err == nil || s.waitsFor(err) != nil {
			return err
		}
		if err := s.waitAgain(ctx); err != nil {
			return err
		}
	}
}

func (s *session) tryBatch(ctx context.Context, w work) error {
	if w.whole {
		release, err := s.reserve(ctx)
		if err != nil {
			return err
		}
		defer release()
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if w.repair {
		if err := s.repair(ctx, conn, s.safePrevious()); err != nil {
			return err
		}
	}
	connects := s.pool.Connects()
	if _, err := s.batchRows(ctx, conn, w); err != nil {
		return err
	}
	s.waits = 0
	if w.announced == nil {
		s.connects, s.safe = connects, s.durable.durable
	}
	return nil
}

// reserve waits until one more whole relation may be read. The caller calls
// release when it has read it.
func (s *session) reserve(ctx context.Context) (release func(), err error) {
	select {
	case s.pool.Loads <- struct{}{}:
		return func() { <-s.pool.Loads }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reshape publishes the whole relation because its shape is not the one in the
// stream. first says that the stream has no shape yet.
func (s *session) reshape(ctx context.Context, first bool, schema []byte) error {
	if !first {
		s.log.Info().Msg("the relation's columns or their types changed, publishing all of it again")
	}
	// repair: the batch's heartbeat must also be true of rows that a crash of
	// Postgres may have undone before.
	return s.batch(ctx, work{query: s.queries.whole, whole: true, schema: schema, repair: s.previous != nil})
}

// continueBatch publishes the rest of an announced batch. The heartbeat comes with
// the ordinary batch that follows.
func (s *session) continueBatch(ctx context.Context, b capture.Batch, after *capture.RowPosition) error {
	if b.LSN != 0 { // announced by the WAL capture
		return s.batch(ctx, work{query: s.queries.whole, whole: true})
	}
	n, err := capture.ParseSnapshot(b.Snapshot)
	if err != nil {
		return fmt.Errorf("parse announced batch: %w", err)
	}
	n = s.bound(n)
	durable, err := parseDurable(b.Durable)
	if err != nil {
		return fmt.Errorf("parse announced batch: %w", err)
	}
	if durable.Xmax > s.safe.Xmax {
		s.safe = durable
		s.durable.raise(durable)
	}
	w := work{announced: &n, durable: durable, params: [][]byte{xid(n.Xmax), xidArray(n.Xip)}}
	if b.Previous == "" {
		w.whole, w.query = true, s.queries.continueWhole
		if after != nil {
			w.query = s.queries.continueWholeAfter
		}
	} else {
		p, err := capture.ParseSnapshot(b.Previous)
		if err != nil {
			return fmt.Errorf("parse announced batch: %w", err)
		}
		w.params = append(w.params, xid(p.Xmax), xidArray(p.Xip))
		w.query = s.queries.continueDelta
		if after != nil {
			w.query = s.queries.continueDeltaAfter
		}
	}
	if after != nil {
		if len(after.Key) != len(s.rel.Key) {
			return s.batch(ctx, work{query: s.queries.whole, whole: true})
		}
		w.params = append(append(w.params, xid(after.Txid)), after.Key...)
	}
	s.log.Info().Bool("whole", w.whole).Bool("begun", after != nil).Msg("continuing the batch that was interrupted")
	if err := s.batch(ctx, w); err != nil {
		return err
	}
	s.previous = &n
	return nil
}

// stale turns the encoder's error for types that have changed into errChanged.
func stale(err error) error {
	if errors.Is(err, relation.ErrStaleTypes) {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// classify turns Postgres' errors for a relation that changed into errChanged.
func classify(err error) error {
	if source.IsChanged(err) {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}
