package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"
	"bridge/lockstep"

	"github.com/jackc/pglogrepl"
)

// apply publishes what an event says. Its error ends the session; what is one
// relation's own fault takes only that out.
func (s *session) apply(ctx context.Context, e *event) error {
	switch m := e.msg.(type) {
	case nil:
		s.passed(e.lsn)
	case *pglogrepl.BeginMessage:
		s.tx = &transaction{xid: s.fullXid(m.Xid), commit: uint64(m.FinalLSN), committed: m.CommitTime}
	case *pglogrepl.CommitMessage:
		s.commit(ctx, uint64(m.TransactionEndLSN))
	case *pglogrepl.LogicalDecodingMessage:
		s.message(ctx, m, e.lsn)
	case *pglogrepl.RelationMessage:
		s.columns[m.RelationID] = m
		delete(s.shapes, m.RelationID)
	case *pglogrepl.InsertMessage:
		s.tx.count(e.lsn)
		if f, sh := s.taking(ctx, m.RelationID); f != nil {
			s.done(ctx, f, s.insert(ctx, f, sh, m))
		}
	case *pglogrepl.UpdateMessage:
		s.tx.count(e.lsn)
		if f, sh := s.taking(ctx, m.RelationID); f != nil {
			s.done(ctx, f, s.update(ctx, f, sh, m))
		}
	case *pglogrepl.DeleteMessage:
		s.tx.count(e.lsn)
		if f, sh := s.taking(ctx, m.RelationID); f != nil {
			s.done(ctx, f, s.delete(ctx, f, sh, m))
		}
	case *pglogrepl.TruncateMessage:
		s.tx.count(e.lsn)
		for _, oid := range m.RelationIDs {
			if f, _ := s.taking(ctx, oid); f != nil {
				s.done(ctx, f, s.truncate(ctx, f))
			}
		}
	}
	return nil
}

// fullXid returns the 64-bit ID of a transaction near those of now: the slot
// keeps Postgres from being 2^31 transactions ahead of what it sends.
func (s *session) fullXid(xid uint32) uint64 {
	return s.xidNear + uint64(int64(int32(xid-uint32(s.xidNear))))
}

// passed says that every commit before the place was read.
func (s *session) passed(at uint64) {
	if s.tx != nil || at <= s.pos {
		return
	}
	s.pos = at
	for _, f := range s.feeds {
		f.pos = max(f.pos, at)
	}
}

// commit ends the transaction.
func (s *session) commit(ctx context.Context, end uint64) {
	s.recent.add(s.tx.xid)
	s.tx = nil
	s.passed(end)
	s.c.metrics.transactions.Inc()
	for _, f := range s.feeds {
		if f.dirty {
			s.owed = true
			signal(s.wanted)
			break
		}
	}
	// Where long transactions follow each other fast, one is open after all that
	// was taken at once, and at each tick.
	if time.Since(s.lastBeat) > tickEvery {
		s.beat(ctx)
	}
}

// taking returns the feed and the shape of a relation that changed, nil where it
// takes no part, or its stream has the change.
func (s *session) taking(ctx context.Context, oid uint32) (*feed, *shape) {
	f := s.feeds[oid]
	if f == nil || s.tx.commit < f.pos {
		return nil, nil
	}
	sh := s.shapes[oid]
	if sh == nil {
		var err error
		if sh, err = s.shapeOf(ctx, f, s.columns[oid]); err != nil {
			s.leave(f, err)
			return nil, nil
		}
		s.shapes[oid] = sh
	}
	if sh.old {
		return nil, nil
	}
	f.touchedBy = s.tx.xid
	return f, sh
}

// done takes a relation out whose change could not be published.
func (s *session) done(ctx context.Context, f *feed, err error) {
	if err == nil {
		return
	}
	if errors.Is(err, relation.ErrStaleTypes) {
		err = fmt.Errorf("%w: %w", errChanged, err)
	}
	if mc := (mustCompare{}); errors.Is(err, errChanged) && !errors.As(err, &mc) && s.checkShape(ctx, f) == nil {
		// The relation is as it was loaded: the row is from before a change, and
		// it would be met again and again.
		err = mustCompare{"the WAL has a row of it that can't be read any more: " + err.Error()}
	}
	s.leave(f, err)
}

func (s *session) insert(ctx context.Context, f *feed, sh *shape, m *pglogrepl.InsertMessage) error {
	if err := sh.take(m.Tuple, nil); err != nil {
		return err
	}
	if sh.keyless {
		f.metKeyless.Store(true)
		return nil
	}
	s.note(f, sh.key)
	if !f.r.does(lockstep.ActionInsert) {
		return nil
	}
	if sh.unchanged && !f.r.keepsAll() { // an UPDATE brought it into the filter; what was published of it is of before it left
		return s.lookAt(ctx, f, sh.key)
	}
	return s.publishNew(ctx, f, sh, lockstep.ActionInsert, sh.key, nil)
}

func (s *session) update(ctx context.Context, f *feed, sh *shape, m *pglogrepl.UpdateMessage) error {
	old, err := s.oldRow(f, sh, m.OldTupleType, m.OldTuple)
	if err != nil {
		return err
	}
	if err := sh.take(m.NewTuple, m.OldTuple); err != nil {
		return err
	}
	if sh.keyless {
		return s.lostKey(ctx, f, old)
	}
	moved := old.key != nil && !sameKey(old.key, sh.key)
	base := sh.key
	if moved {
		base = old.key
		s.note(f, old.key)
	}
	s.note(f, sh.key)
	if !f.r.does(lockstep.ActionUpdate) {
		return nil
	}
	if old.keyless && sh.unchanged && !f.r.keepsAll() { // the stream never had the row
		return s.lookAt(ctx, f, sh.key)
	}
	// The delete of the old key comes first, so that a stream of states never
	// has the row twice; what is unchanged of it is read before.
	if moved && !f.r.keepsAll() {
		if err := s.fill(ctx, f, sh, base); err != nil {
			return err
		}
		if err := f.remove(ctx, s.tx.xid, old.key, s.change(f, lockstep.ActionUpdate)); err != nil {
			return err
		}
	}
	if moved && f.r.keepsAll() && old.data == nil {
		if old.data, err = f.form.AppendKey(nil, old.key); err != nil {
			return fmt.Errorf("encode key: %w", err)
		}
	}
	if err := s.publishNew(ctx, f, sh, lockstep.ActionUpdate, base, old.data); err != nil || !moved {
		return err
	}
	return s.left(ctx, f, old.key)
}

// lostKey publishes that a row is gone which an UPDATE left without a key.
func (s *session) lostKey(ctx context.Context, f *feed, old oldRow) error {
	f.metKeyless.Store(true)
	s.note(f, old.key)
	if old.key == nil || !f.r.does(lockstep.ActionUpdate) {
		return nil
	}
	return s.removed(ctx, f, old)
}

// removed publishes that the row is gone.
func (s *session) removed(ctx context.Context, f *feed, old oldRow) error {
	c := s.change(f, lockstep.ActionDelete)
	c.Old = old.data
	if err := f.remove(ctx, s.tx.xid, old.key, c); err != nil {
		return err
	}
	return s.left(ctx, f, old.key)
}

// left has a key looked at again that a row has left, where another row may
// have taken it before.
func (s *session) left(ctx context.Context, f *feed, key [][]byte) error {
	if !f.rel.Deferrable || f.r.keepsAll() {
		return nil
	}
	return s.lookAt(ctx, f, key)
}

// lookAt has a key looked at.
func (s *session) lookAt(ctx context.Context, f *feed, key [][]byte) error {
	if len(f.suspects) >= maxSuspects {
		return mustCompare{"too many of its rows have to be looked at"}
	}
	f.suspect(key, nil)
	signal(s.wanted)
	s.startLook(ctx, f)
	return nil
}

// publishNew publishes the row in sh. base is the key under which the stream
// has the row's version before this one. A log shows what Postgres sent, and names what
// is missing. In a stream of latest versions every row is whole.
func (s *session) publishNew(ctx context.Context, f *feed, sh *shape, action lockstep.Action, base [][]byte, old []byte) error {
	c := s.change(f, action)
	c.Old = old
	if f.r.keepsAll() {
		c.Unchanged = sh.leaveOut()
	} else {
		if err := s.fill(ctx, f, sh, base); err != nil {
			return err
		}
		if sh.incomplete {
			return s.lookAt(ctx, f, sh.key)
		}
	}
	var err error
	if sh.data, err = sh.form.AppendPatched(sh.data[:0], sh.values, sh.raw); err != nil {
		return fmt.Errorf("encode a row of transaction %d: %w", s.tx.xid, err)
	}
	if sh.rel == f.rel {
		f.keep(sh.key, sh.data)
	} else {
		f.forget(sh.key) // its values may not be those of the columns' types now
	}
	return f.publish(ctx, s.tx.xid, f.wm, sh.key, sh.form.Deleted(sh.values), sh.data, c)
}

func (s *session) delete(ctx context.Context, f *feed, sh *shape, m *pglogrepl.DeleteMessage) error {
	old, err := s.oldRow(f, sh, m.OldTupleType, m.OldTuple)
	if err != nil {
		return err
	}
	s.note(f, old.key)
	if old.keyless || !f.r.does(lockstep.ActionDelete) {
		return nil
	}
	return s.removed(ctx, f, old)
}

// oldRow is what a change says of the row before it.
type oldRow struct {
	// key is nil where the change does not say, and where the row was keyless.
	key     [][]byte
	keyless bool
	// data is its JSON object where the stream shows it, nil elsewhere.
	data []byte
}

func (s *session) oldRow(f *feed, sh *shape, kind uint8, tuple *pglogrepl.TupleData) (oldRow, error) {
	if tuple == nil {
		return oldRow{}, nil
	}
	if err := sh.takeOld(kind, tuple); err != nil {
		return oldRow{}, err
	}
	if sh.keyless {
		return oldRow{keyless: true}, nil
	}
	o := oldRow{key: slices.Clone(sh.key)}
	// Of a partitioned table kind is the root's, and the row is what a partition gave.
	if kind != pglogrepl.UpdateMessageTupleTypeOld || !f.r.keepsAll() || f.rel.Kind == 'p' && !f.rel.OldRows {
		return o, nil
	}
	clear(sh.raw)
	for i, yes := range sh.server { // their text is no JSON, and the server can't be asked any more
		if yes && sh.values[i] != nil {
			sh.raw[i] = relation.Absent
		}
	}
	var err error
	if o.data, err = sh.form.AppendPatched(nil, sh.values, sh.raw); err != nil {
		return oldRow{}, fmt.Errorf("encode the old row of transaction %d: %w", s.tx.xid, err)
	}
	return o, nil
}

// fill finds the values that an UPDATE left alone and Postgres did not send: in
// the row's version before this one, as this session published it, or as the
// stream has it. Where that is not to be had, the row is incomplete.
func (s *session) fill(ctx context.Context, f *feed, sh *shape, base [][]byte) error {
	if !sh.unchanged {
		return nil
	}
	sh.unchanged, f.keeps = false, true
	before, err := f.before(ctx, base)
	if err != nil {
		return err
	}
	var data map[string]json.RawMessage
	if before == nil || json.Unmarshal(before, &data) != nil {
		sh.incomplete = true
		return nil
	}
	for i, c := range sh.rel.Columns {
		if !sh.missing[i] || i == sh.rel.Txid || i == sh.rel.Deleted {
			continue
		}
		value, ok := data[c.Name]
		if !ok {
			sh.incomplete = true
			return nil
		}
		sh.raw[i] = value
	}
	return nil
}

// before returns the JSON object of the row that is being changed, nil where
// it is not to be had.
func (f *feed) before(ctx context.Context, key [][]byte) ([]byte, error) {
	// Where not every INSERT is published, what was may be of a row long gone;
	// where two rows may have the key for a moment, of the other.
	if f.r.keepsAll() || !f.r.does(lockstep.ActionInsert) || f.rel.Deferrable {
		return nil, nil
	}
	if data := f.last.get(f.rowName(key)); data != nil {
		return data, nil
	}
	// What the stream has may be stale, of another shape, or of a transaction
	// that comes again later than this one; or a version is missing after it.
	if f.task == taskCompare || f.reloads() || f.loose && f.pos < f.ahead || f.isSuspect(relation.KeyName(key)) {
		return nil, nil
	}
	stored, err := f.r.sink.Get(ctx, key)
	if err != nil || stored == nil {
		return nil, err
	}
	return stored.Data, nil
}

// truncate publishes that all rows are gone.
func (s *session) truncate(ctx context.Context, f *feed) error {
	if f.look != nil {
		f.look.noteAll(s.tx.xid)
	}
	if !f.r.does(lockstep.ActionTruncate) {
		return nil
	}
	if f.r.keepsAll() {
		f.dirty = true
		line := lockstep.AppendTruncate(nil, s.tx.xid, f.wm, s.change(f, lockstep.ActionTruncate))
		return f.r.sink.Row(ctx, capture.Change{Txid: s.tx.xid, Xmin: f.wm, High: s.tx.xid, Line: line})
	}
	begun, rows := time.Now(), 0
	err := f.r.sink.Scan(ctx, func(r capture.StoredRow) error {
		if r.Deleted {
			return nil
		}
		rows++
		return f.remove(ctx, s.tx.xid, r.Key, s.change(f, lockstep.ActionTruncate))
	})
	if err != nil {
		return err
	}
	f.r.log.Info().Int("rows", rows).Dur("dur", time.Since(begun).Round(time.Millisecond)).Msg("relation truncated, its rows were deleted one by one")
	return nil
}

// message takes a watermark or marker that this session wrote into the WAL.
func (s *session) message(ctx context.Context, m *pglogrepl.LogicalDecodingMessage, at uint64) {
	xmin, id, ok := s.own(m)
	if !ok {
		return
	}
	s.xidNear = xmin
	for _, f := range s.feeds {
		if at < f.pos { // from before what the stream has
			continue
		}
		f.wm = max(f.wm, xmin)
		if f.lastTxid >= f.beatSince && f.wm > f.beatSince && f.lastTxid != 0 {
			f.dirty, s.owed = true, true
		}
	}
	s.passed(at)
	s.marked(ctx, id)
}

// own returns what a message says that this session wrote: a watermark, and
// the name of the session or of a look. Every role may write messages of any
// prefix, so what lacks the session's name says nothing, and is no fault. What
// the sessions before wrote comes again and is not needed: the watermark goes on
// from the stream's last heartbeat.
func (s *session) own(m *pglogrepl.LogicalDecodingMessage) (xmin uint64, id string, ok bool) {
	text, id, _ := strings.Cut(string(m.Content), " ")
	xmin, err := strconv.ParseUint(text, 10, 64)
	name, _, _ := strings.Cut(id, ".")
	return xmin, id, err == nil && m.Prefix == s.prefix() && name == s.name
}

// prefix is that of the messages which this bridge writes into the WAL; other
// slots of the database are sent them, too.
func (s *session) prefix() string { return "lockstep." + s.c.opt.Name }

// watermarks writes the xmin of snapshots into the WAL, as often as is wanted
// and at least once in a heartbeat interval; that also moves the slot of an
// idle database.
func (s *session) watermarks(ctx context.Context) {
	idle := time.NewTicker(s.c.opt.HeartbeatInterval)
	defer idle.Stop()
	var lastLog time.Time
	for {
		if err := s.mark(ctx); err != nil && ctx.Err() == nil && time.Since(lastLog) > logEvery {
			lastLog = time.Now()
			s.c.log.Warn().Err(err).Msg("writing the watermark failed, trying again")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(markEvery):
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wanted:
		case <-idle.C:
		}
	}
}

// mark writes a watermark. Its snapshot is taken before the message is written:
// what that shows as ended has its commit record before the message.
func (s *session) mark(ctx context.Context) error {
	text, err := relation.QueryOne[string](ctx, s.c.pool, `
SELECT pg_snapshot_xmax(sn)::text FROM pg_current_snapshot() sn, pg_logical_emit_message(false, $1, pg_snapshot_xmin(sn)::text || ' ' || $2)`, s.prefix(), s.name)
	if err != nil {
		return err
	}
	next, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return err
	}
	for _, r := range s.c.relations {
		r.metrics.Next(next)
	}
	return nil
}
