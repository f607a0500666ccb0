package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"
	"bridge/lockstep"
)

// feed is a relation's part in a session. It belongs to the goroutine of
// session.run.
type feed struct {
	r      *Relation
	src    relation.Source
	rel    *relation.Relation
	types  relation.Types
	form   *relation.Form
	schema []byte
	// warnings are what is not as it should be, and does not keep it out.
	warnings []relation.Problem
	// server are the columns that only the server can turn into JSON.
	server []bool
	// filter is the publication's WHERE, empty for none.
	filter string
	// published stands for what Postgres sends of it; see capture.Heartbeat.
	published string
	// known is set where the publication had the relation before.
	known bool

	// ended is closed when the relation's part in the session ends.
	ended chan struct{}

	// position and verdict are what Begin returned and what it came to.
	position capture.Position
	verdict  verdict

	// pos is the place before which the stream has every commit; commits that
	// stand before it are skipped.
	pos uint64
	// ahead is the place up to which another writer may have published. Clients may
	// hold rows up to there, also of an end that the stream has lost since: those
	// transactions come again, and until then what they hold is of no one moment.
	ahead uint64
	// loose is set where the stream itself has such rows behind its position.
	loose bool
	// wm is the watermark.
	wm uint64
	// task is what must be done before heartbeats are true.
	task  task
	after [][]byte
	// unsettled is set until the task may begin; see settle.
	unsettled bool
	// rows counts what a load has read since loading.
	rows     int64
	loading  time.Time
	progress health.Progress

	// touchedBy is the last transaction that changed the relation.
	touchedBy uint64
	// look is the one under way, nil for none; lookRows is how many rows the next
	// one asks for, and loadsNext is set where that is a load's turn.
	look      *look
	lookRows  int
	loadsNext bool
	// suspects are keys to look at, and suspected is where the stream stood
	// before the first of them: no heartbeat goes beyond it meanwhile.
	suspects  map[string]*suspected
	suspected *hold

	// dirty is set where something was published since the last heartbeat,
	// lastTxid the highest published since then.
	dirty    bool
	lastTxid uint64
	// beatSince and beatAt are the last heartbeat's; before the first, 0 and when
	// the relation began.
	beatSince     uint64
	beatAt        time.Time
	nextHeartbeat time.Time
	// fault is closed when a fault has ended the epoch.
	fault <-chan struct{}

	// metKeyless is set when the WAL has a row that is left out because of its key.
	// watchKeyless takes it back.
	metKeyless atomic.Bool

	// last is the session's. keeps is set once a value was asked for.
	last  *lastRows
	keeps bool

	line, keyText, event []byte
	// key is the row's that is being published, keyJSON appends it.
	key     [][]byte
	keyJSON func(dst []byte) ([]byte, error)
}

// hold is where a stream stood: it holds back what heartbeats say.
type hold struct{ lsn, since uint64 }

// load looks at the relation. One whose own writes would fail in the publication
// does not get into it, and does not stay in it.
func (s *session) load(ctx context.Context, r *Relation) (*feed, error) {
	f := &feed{r: r, src: s.src, last: &s.last, suspects: make(map[string]*suspected), lookRows: firstRows, ended: make(chan struct{})}
	f.keyJSON = func(dst []byte) ([]byte, error) { return f.form.AppendKey(dst, f.key) }
	var err error
	if f.rel, f.warnings, err = relation.LoadFor(ctx, s.c.pool, r.spec, s.c.opt.Name); err != nil {
		if errors.Is(err, relation.ErrBreaksWrites) {
			s.spare(ctx, r)
		}
		return nil, err
	}
	return f, nil
}

// within returns a context that also ends with the relation's part in the
// session.
func (f *feed) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-f.ended:
			cancel(errSessionEnded)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// shape finds the types and forms of what is published of the relation.
func (f *feed) shape(ctx context.Context, q relation.Querier) error {
	var err error
	if f.types, err = relation.LoadTypes(ctx, q, f.rel.Columns); err != nil {
		return err
	}
	if f.form, err = relation.NewForm(f.rel, f.types); err != nil {
		return err
	}
	f.server = f.form.ServerSide()
	f.schema, err = relation.Document(f.rel, f.types)
	return err
}

// start takes up what the stream holds.
func (s *session) start(ctx context.Context, f *feed) error {
	f.r.joined()
	f.beatAt, f.fault = time.Now(), f.r.sink.Ended()
	pos, v := f.position, f.verdict
	f.r.stored = position(pos)
	f.pos = max(position(pos), s.began.confirmed)
	// Whoever wrote before had read the slot before this session did.
	f.ahead = s.began.end
	f.loose = pos.Loose || pos.Heartbeat != nil && pos.Heartbeat.Durable == ""
	if pos.Heartbeat != nil {
		f.wm, f.beatSince = pos.Heartbeat.Since, pos.Heartbeat.Since
	}
	f.task, f.after = v.task, v.after
	if v.anew {
		// All that has committed by now will be read by SQL. What the slot still
		// has of it may be older than what the stream holds.
		f.pos = max(f.pos, s.began.end)
	}
	switch {
	case v.reason != "" && pos.Batch == nil && v.task == taskLoad:
		f.r.log.Error().Str("reason", v.reason).Msg("the WAL can't continue the stream, reading the whole relation again")
	case v.task == taskCompare && (v.reason == polledBefore || v.reason == republished || v.reason == tidied || v.reason == f.r.compare): // nothing was lost
		f.r.log.Info().Str("reason", v.reason).Msg("comparing the stream with the relation")
	case v.reason != "" && pos.Batch == nil:
		f.r.log.Error().Str("reason", v.reason).Msg("the WAL can't continue the stream, comparing the stream with the relation")
	case v.reason != "":
		f.r.log.Info().Str("reason", v.reason).Msg("continuing what was interrupted")
	}
	if v.lost != "" {
		if err := f.gap(ctx, v.lost, s.began.xmax); err != nil {
			return err
		}
	}
	if string(pos.Schema) != string(f.schema) {
		if pos.Schema != nil && !relation.SameRows(pos.Schema, f.schema) {
			f.r.log.Info().Msg("the relation's columns or their types changed, publishing all of it again")
			if f.task != taskCompare { // which finds what was deleted, too
				f.task, f.after, f.verdict.after = taskLoad, nil, nil
			}
		}
		if err := f.announce(ctx); err != nil {
			return err
		}
		if err := f.r.sink.Schema(ctx, f.schema); err != nil {
			return err
		}
	}
	if f.task != taskNone {
		if err := f.announce(ctx); err != nil {
			return err
		}
	}
	s.settle(ctx, f)
	f.r.released, f.r.first, f.r.compare = false, false, ""
	return nil
}

// announce says in the stream how far the task has come, if there is one. Keys
// that wait to be looked at are known to nobody after a crash, so the changes
// that made them suspect must come again.
func (f *feed) announce(ctx context.Context) error {
	if f.task == taskNone {
		return nil
	}
	return f.r.sink.Announce(ctx, capture.Batch{LSN: f.at().lsn, After: f.after, Compare: f.task == taskCompare, Published: f.published})
}

// stored is the place in the WAL that the feed's stream is known to hold.
func (f *feed) stored() uint64 { return max(f.r.sink.Stored(), position(f.position)) }

// at returns what heartbeats may say now.
func (f *feed) at() hold {
	h := hold{f.pos, f.wm}
	if f.look != nil && f.look.held != nil {
		h = hold{min(h.lsn, f.look.held.lsn), min(h.since, f.look.held.since)}
	}
	if f.suspected != nil {
		h = hold{min(h.lsn, f.suspected.lsn), min(h.since, f.suspected.since)}
	}
	return h
}

// holdBeats is how long heartbeats are withheld for keys that must be looked at
// where these may never end.
const holdBeats = 5 * time.Second

// withheld says that a heartbeat waits for keys that must be looked at: until
// then the stream's state is none of Postgres'. Where only the server can print
// a column, every change is looked at, and under steady writes there is no end
// to them; clients are then owed the position that they can have.
func (f *feed) withheld(now time.Time, interval time.Duration) bool {
	held := f.suspected != nil || f.look != nil && f.look.held != nil
	endless := slices.Contains(f.server, true)
	return held && !(endless && now.Sub(f.beatAt) > max(holdBeats, interval))
}

// beat sends the heartbeats that are owed and those that are due by time, all
// for the same commit. It is called between two transactions.
func (s *session) beat(ctx context.Context) {
	now := time.Now()
	s.owed = false
	for _, f := range s.feeds {
		// A watermark comes once in an interval, if Postgres is there. A heartbeat also
		// meets a fault that has ended the epoch.
		if f.dirty || f.faulted() || now.After(f.nextHeartbeat) && s.heard.After(f.beatAt) {
			s.lastBeat = now
			s.heartbeat(ctx, f, now)
		}
	}
}

// faulted says whether a fault has ended the relation's epoch.
func (f *feed) faulted() bool {
	select {
	case <-f.fault:
		return true
	default:
		return false
	}
}

// heartbeat publishes one; while a task is under way it only says how far the
// stream has come.
func (s *session) heartbeat(ctx context.Context, f *feed, now time.Time) {
	h := f.at()
	if f.task == taskNone && (h.lsn < f.ahead || f.withheld(now, s.c.opt.HeartbeatInterval)) { // until the next tick
		f.nextHeartbeat = now
		f.noteWithheld()
		return
	}
	f.nextHeartbeat = now.Add(s.c.opt.HeartbeatInterval)
	f.dirty = false
	if f.task != taskNone || f.wm == 0 {
		if err := f.announce(ctx); err != nil {
			s.leave(f, err)
		}
		return
	}
	hb := capture.Heartbeat{Snapshot: capture.Snapshot{Xmin: h.since, Xmax: h.since}.String(), Since: h.since, High: h.since, LSN: h.lsn, Published: f.published}
	if h.lsn == f.pos { // else the stream has more than it says: see start
		hb.Durable = hb.Snapshot
	}
	err := f.r.sink.Heartbeat(ctx, hb)
	if err != nil {
		s.leave(f, err)
		return
	}
	f.beatSince, f.beatAt = h.since, now
	f.r.tries = 0
	if !f.r.isLive() {
		f.r.setLive(&live{s, f})
	}
	if f.lastTxid < h.since {
		f.lastTxid = 0
	}
	f.r.update(func(st *health.Status) { *st = health.Status{State: health.StateLive, Heartbeat: now} })
	f.r.metrics.Heartbeat(now, now, h.since)
}

// noteWithheld says in the status why no heartbeat is sent.
func (f *feed) noteWithheld() {
	note := "waits for rows that must be read by SQL"
	switch {
	case f.pos < f.ahead:
		note = fmt.Sprintf("reads the WAL that was written before it began: %d MB to go", (f.ahead-f.pos)>>20)
	case f.unsettled: // awaitRunning says more
		return
	}
	f.r.update(func(st *health.Status) { st.Note = note })
}

// publish publishes a row. data is its JSON object, and c says what changed it.
func (f *feed) publish(ctx context.Context, txid, xmin uint64, key [][]byte, deleted bool, data []byte, c lockstep.Change) error {
	if f.r.keepsAll() {
		f.line = lockstep.AppendChangeHead(f.line[:0], txid, xmin, deleted, c)
	} else {
		f.line = lockstep.AppendRowHead(f.line[:0], txid, xmin, deleted)
	}
	f.line = lockstep.AppendRowTail(append(f.line, data...))
	f.dirty = true
	f.lastTxid = max(f.lastTxid, txid)
	f.key = key
	f.event = c.AppendText(f.event[:0])
	return f.r.sink.Row(ctx, capture.Change{Key: key, KeyJSON: f.keyJSON, Txid: txid, Xmin: xmin, High: txid, Event: f.event, Line: f.line})
}

// remove publishes that there is no row with the key.
func (f *feed) remove(ctx context.Context, txid uint64, key [][]byte, c lockstep.Change) error {
	f.forget(key)
	var err error
	if f.keyText, err = f.form.AppendKey(f.keyText[:0], key); err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return f.publish(ctx, txid, f.wm, key, true, f.keyText, c)
}

// maxSuspects bounds the keys that wait to be looked at. Where there are more, it
// is less work to compare everything.
const maxSuspects = 100_000

// suspect has a key looked at again. pg, if not nil, is told when it was.
func (f *feed) suspect(key [][]byte, pg *page) {
	f.forget(key)
	name := relation.KeyName(key)
	sp := f.suspects[name]
	if sp == nil {
		sp = f.newSuspect(name, key)
	}
	if pg != nil {
		sp.pages = append(sp.pages, pg)
	}
}

func (f *feed) newSuspect(name string, key [][]byte) *suspected {
	if f.suspected == nil {
		// Not what the look under way holds back, too: it ends, and where rows to
		// look at come all the time, each would hold for the next.
		f.suspected = &hold{f.pos, f.wm}
	}
	kept := make([][]byte, len(key))
	for i, k := range key {
		kept[i] = append([]byte{}, k...)
	}
	sp := &suspected{key: kept}
	f.suspects[name] = sp
	return sp
}

// isSuspect says whether the key waits to be looked at, or for its look to be
// published.
func (f *feed) isSuspect(name string) bool {
	return f.suspects[name] != nil || f.look != nil && f.look.wanted[name] != nil
}

// reloads says whether a load is under way over rows that sessions before this one
// have published, which may be of another shape.
func (f *feed) reloads() bool {
	return f.task == taskLoad && (f.position.Heartbeat != nil || f.position.Batch != nil)
}

// settle lets looks begin, and with them the feed's task, once every transaction
// has ended that runs now. What such a transaction wrote may be missing from the
// WAL that is read: it wrote before the relation was in the publication, or its
// commit was read, or stands before the slot, and shows in no snapshot yet.
func (s *session) settle(ctx context.Context, f *feed) {
	f.unsettled = true
	s.work.Go(func() {
		err := s.awaitRunning(ctx, f)
		s.call(ctx, func(ctx context.Context) error {
			if err != nil {
				s.leave(f, err)
				return nil
			}
			f.r.update(func(st *health.Status) { st.Note = "" })
			f.unsettled, f.loading = false, time.Now()
			f.progress = health.NewProgress(f.loading)
			if f.task == taskCompare {
				s.compare(ctx, f)
			}
			s.startLook(ctx, f)
			return nil
		})
	})
}

// awaitRunning waits until all transactions that have an ID now have ended.
func (s *session) awaitRunning(ctx context.Context, f *feed) error {
	// Only an ID of one's own is above all others: a snapshot's xmax is not.
	last, err := s.xid(ctx, "pg_current_xact_id()")
	if err != nil {
		return err
	}
	pause, begun, logged := 5*time.Millisecond, time.Now(), false
	for {
		xmin, err := s.xid(ctx, "pg_snapshot_xmin(pg_current_snapshot())")
		if err != nil || xmin > last {
			return err
		}
		if !logged && time.Since(begun) > 5*time.Second {
			logged = true
			f.r.update(func(st *health.Status) { st.Note = fmt.Sprintf("waits for transaction %d to end", xmin) })
			f.r.log.Warn().Uint64("txid", xmin).Msg("reading the relation waits until a transaction that has written ends; see pg_stat_activity and pg_prepared_xacts")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// xid asks for a transaction ID.
func (s *session) xid(ctx context.Context, expression string) (uint64, error) {
	text, err := relation.QueryOne[string](ctx, s.c.pool, "SELECT "+expression+"::text")
	if err != nil {
		return 0, fmt.Errorf("ask for a transaction ID: %w", err)
	}
	return strconv.ParseUint(text, 10, 64)
}
