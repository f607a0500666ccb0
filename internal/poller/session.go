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

	"github.com/rs/zerolog"
)

// session is one run of a poller with one look at the catalog and one epoch of
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
	// serverSide tells which columns only the server can turn into JSON.
	serverSide []bool
	// shape tells prepared statements of different shapes apart.
	shape uint64
	src   relation.Source

	// previous is P; nil before the first load ended.
	previous *relation.Snapshot
	durable  durability
	// safe is D as of the last batch before which nothing can have been
	// undone unnoticed; connects is how many connections there were then.
	safe     relation.Snapshot
	connects int64
	// repeats are the rows above xmin that were published.
	repeats *repeats
	// nextHeartbeat is when one is due though nothing happens, nextNulls when
	// rows without a txid are counted again, nextShape when the catalog is
	// looked at again.
	nextHeartbeat, nextNulls, nextShape time.Time
	// waits counts the tries in a row that waitsFor had to do with.
	waits int
	// pages takes what a comparison found, for the next poll; page is the one
	// that is looked at. One has room: the comparison waits for each to be done
	// with before it sends the next. Never closed.
	pages chan *page
	page  *page
	// ended is closed when the session has.
	ended chan struct{}
	// begun is set when the epoch began, live when a heartbeat was published,
	// overdue while one is, for a reason that was logged.
	begun, live, overdue bool
}

func newSession(p *Poller) *session {
	return &session{
		p: p, pool: p.pool, sink: p.sink, log: p.log, repeats: newRepeats(),
		pages: make(chan *page, 1), ended: make(chan struct{}),
	}
}

// run captures until something fails.
func (s *session) run(ctx context.Context) error {
	defer s.p.over(s)
	if err := s.load(ctx); err != nil {
		return err
	}
	pos, err := s.sink.Begin(ctx, source.Of(s.src, s.rel), func() {
		s.p.update(func(st *health.Status) { *st = health.Status{State: health.StateStandby} })
	})
	if err != nil {
		return err
	}
	s.begun = true
	s.p.update(func(st *health.Status) { st.State, st.Err = health.StateStarting, nil })
	if err := s.resume(ctx, pos); err != nil {
		return err
	}
	return s.loop(ctx)
}

// load looks at the relation and its source.
func (s *session) load(ctx context.Context) error {
	var err error
	if s.src, err = relation.LoadSource(ctx, s.pool); err != nil {
		return err
	}
	var warnings []relation.Problem
	if s.rel, warnings, err = relation.Load(ctx, s.pool, s.p.opt.Spec); relation.IsLocked(err) {
		return errLocked
	} else if err != nil {
		return err
	}
	for _, w := range warnings {
		s.log.Warn().Str("reason", w.Error()).Msg("the relation can be captured, but")
	}
	if s.types, err = relation.LoadTypes(ctx, s.pool, s.rel.Columns); err != nil {
		return err
	}
	s.nextShape = time.Now().Add(s.p.opt.ShapeInterval)
	if s.form, err = relation.NewForm(s.rel, s.types); err != nil {
		return err
	}
	s.p.listener.watch(s.p.wake, s.rel.Sources)
	s.serverSide = s.form.ServerSide()
	s.queries = newQueries(s.rel, s.serverSide)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d %v %d", s.rel.OID, s.rel, time.Now().UnixNano())
	s.shape = h.Sum64()
	return nil
}

// resume takes up what the stream holds: where the relation has another shape
// than the stream's rows, all of it is published again, unless only labels came
// to its enums; a batch that was announced and not ended is continued.
func (s *session) resume(ctx context.Context, pos capture.Position) error {
	schema, err := relation.Document(s.rel, s.types)
	if err != nil {
		return err
	}
	if hb := pos.Heartbeat; hb != nil {
		sn, err := relation.ParseSnapshot(hb.Snapshot)
		if err != nil {
			return fmt.Errorf("last heartbeat: %w", err)
		}
		sn = s.bound(sn)
		s.previous = &sn
		if s.safe, err = parseDurable(hb.Durable); err != nil {
			return fmt.Errorf("last heartbeat: %w", err)
		}
		s.durable.durable = s.safe
		if hb.LSN != 0 {
			s.log.Warn().Msgf("the relation was read from the WAL before; polling goes on where that ended, and may not see rows that were deleted since; to do: bridge reconcile %s", s.rel.Name)
		}
	}
	s.connects = -1 // whatever happened to Postgres meanwhile
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

// loop polls until something fails.
func (s *session) loop(ctx context.Context) error {
	timer := newPace(s.p.opt.Interval)
	for {
		rows, err := s.poll(ctx)
		if err != nil {
			return err
		}
		if s.waits > 0 {
			err = s.waitAgain(ctx)
		} else {
			err = timer.wait(ctx, s.p.wake, rows > 0)
		}
		if err != nil {
			return err
		}
	}
}

// poll reads and publishes one batch, and returns its number of rows.
func (s *session) poll(ctx context.Context) (int64, error) {
	if s.live && s.waits == 0 { // else these might wait for a lock, and keep a connection from other relations
		if err := s.countNulls(ctx); err != nil {
			return 0, err
		}
		if err := s.checkShape(ctx); err != nil {
			return 0, err
		}
	}
	if s.previous == nil {
		return 0, s.batch(ctx, work{query: s.queries.whole, whole: true})
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	// A crash of Postgres from here on breaks conn; one before it made conn a
	// new connection, with a number above those of the last safe batch.
	connects := s.pool.Connects()
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
	return rows, nil
}

// errBehind says that a standby does not yet show what was published.
var errBehind = errors.New("the standby is behind what was published")

// waitsFor makes what only takes time nothing to end the session for: a standby
// that is behind, or a lock. What takes so long that a heartbeat is overdue is
// shown.
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

// maxWait is the longest pause between two tries to read what another session
// has locked: each costs Postgres an error, and a line in its log.
const maxWait = time.Second

// waitAgain pauses for longer with each try in a row.
func (s *session) waitAgain(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(s.p.opt.Interval<<min(s.waits, 10), maxWait)):
		return nil
	}
}

// safePrevious is P after Postgres may have forgotten transactions that were
// visible in it: everything from the durable position on is read again.
func (s *session) safePrevious() relation.Snapshot {
	if s.safe.Xmax != 0 && s.safe.Xmax <= s.previous.Xmax {
		return s.safe
	}
	low := uint64(1)
	if s.safe.Xmax != 0 {
		low = min(s.safe.Xmin, s.previous.Xmin)
	}
	return relation.Snapshot{Xmin: low, Xmax: low}
}

// batch runs a batch that may be long, on a connection of its own.
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

// reserve waits until one more may read a whole relation; release says that it
// has ended.
func (s *session) reserve(ctx context.Context) (release func(), err error) {
	select {
	case s.pool.Loads <- struct{}{}:
		return func() { <-s.pool.Loads }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reshape publishes the whole relation because the stream does not have its
// shape; first stands for a stream that has none at all.
func (s *session) reshape(ctx context.Context, first bool, schema []byte) error {
	if !first {
		s.log.Warn().Msg("the relation's columns or their types changed, publishing all of it again")
	}
	// Its heartbeat is the end of whatever a crash may have undone before.
	return s.batch(ctx, work{query: s.queries.whole, whole: true, schema: schema, repair: s.previous != nil})
}

// continueBatch publishes what is left of an announced batch; the heartbeat
// comes with the ordinary batch that follows.
func (s *session) continueBatch(ctx context.Context, b capture.Batch, after *capture.RowPosition) error {
	if b.LSN != 0 { // begun by reading the WAL
		return s.batch(ctx, work{query: s.queries.whole, whole: true})
	}
	n, err := relation.ParseSnapshot(b.Snapshot)
	if err != nil {
		return fmt.Errorf("announced batch: %w", err)
	}
	n = s.bound(n)
	w := work{announced: &n, params: [][]byte{xid(n.Xmax), xidArray(n.Xip)}}
	if b.Previous == "" {
		w.whole, w.query = true, s.queries.continueWhole
		if after != nil {
			w.query = s.queries.continueWholeAfter
		}
	} else {
		p, err := relation.ParseSnapshot(b.Previous)
		if err != nil {
			return fmt.Errorf("announced batch: %w", err)
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
	durable, err := parseDurable(b.Durable)
	if err != nil {
		return fmt.Errorf("announced batch: %w", err)
	}
	if durable.Xmax > s.safe.Xmax {
		s.safe = durable
	}
	s.log.Info().Bool("whole", w.whole).Bool("begun", after != nil).Msg("continuing the batch that was interrupted")
	if err := s.batch(ctx, w); err != nil {
		return err
	}
	s.previous = &n
	return nil
}

// stale turns an encoder's error that the types have changed into errChanged.
func stale(err error) error {
	if errors.Is(err, relation.ErrStaleTypes) {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// classify turns what Postgres says of a relation that changed into errChanged.
func classify(err error) error {
	if source.IsChanged(err) {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}
