package poller

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// work is one query for rows, with the meaning of these rows.
type work struct {
	query  string
	params [][]byte
	// whole is true if the query reads the whole relation.
	whole bool
	// repair says that session.repair runs first.
	repair bool
	// schema, if not nil, is stored after the announcement. After a crash between
	// the two the whole batch is read again; after a later crash it continues.
	schema []byte
	// previous is P for a delta.
	previous *capture.Snapshot
	// ceiling, if not 0, is the highest since that a row may show.
	ceiling uint64
	// announced is the snapshot of the interrupted batch that this one continues,
	// durable the D that was announced with it. No heartbeat follows such a batch.
	announced *capture.Snapshot
	durable   capture.Snapshot
}

// look is the result of snapshotSQL.
type look struct {
	// taken is the snapshot that rows are read under. snapshot is what the next
	// batch takes from it for P (see session.bound).
	taken, snapshot capture.Snapshot

	oid        uint32
	inRecovery bool
	// policies is set where row level security may hide rows.
	policies bool
	// next is the first transaction ID that was not given out: xmax of the
	// snapshot as Postgres gave it.
	next uint64
	// inserted and flushed are WAL positions; 0 in recovery.
	inserted, flushed uint64
}

// batchRows reads one batch under one snapshot and publishes its rows. Then it
// publishes the heartbeat, unless the batch continues an interrupted one. It
// returns the number of rows.
func (s *session) batchRows(ctx context.Context, conn *pgxpool.Conn, w work) (int64, error) {
	b := newBatch(s, w)
	if err := s.readRows(ctx, conn, w.query, w.params, b); err != nil {
		return 0, err
	}
	if err := b.flush(ctx); err != nil {
		return 0, err
	}
	s.p.metrics.Batch(time.Since(b.begun), b.rows)
	if b.foreign > 0 {
		msg := "rows have a txid ahead of this cluster's, polls don't see them; is the column the application's own? See bridge check"
		if len(s.rel.Stamped) > 0 {
			msg = "rows have a txid ahead of this cluster's (from a restored dump?), polls don't see them; to correct them: UPDATE … SET txid = txid_current() WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
		}
		s.log.Warn().Int64("rows", b.foreign).Msg(msg)
	}
	if w.announced != nil {
		return b.rows, nil
	}
	return b.rows, s.endBatch(ctx, conn, b)
}

// taker takes the result of a query for rows: first the look under which they are
// read, then each row.
type taker interface {
	start(ctx context.Context, l look) error
	add(ctx context.Context, values [][]byte) error
}

// readRows runs a query for rows under a new snapshot, and gives t each row as it
// comes. A comparison calls it at the same time as the session does, so it uses
// only fields of the session that don't change after load.
func (s *session) readRows(ctx context.Context, conn *pgxpool.Conn, query string, params [][]byte, t taker) error {
	if src := source.ConnectionOf(conn).Source; src != s.src {
		_ = conn.Conn().Close(ctx) // so that the pool does not keep it
		return fmt.Errorf("%w: the connection goes to another server or timeline (system %d, timeline %d, standby %t)",
			errChanged, src.SystemID, src.Timeline, src.InRecovery)
	}
	return s.exchange(ctx, conn, t,
		source.Statement{SQL: beginSQL},
		source.Statement{SQL: s.queries.lock},
		source.Statement{SQL: snapshotSQL, Params: [][]byte{[]byte(s.rel.Name.SQL())}},
		source.Statement{SQL: query, Params: params, Shape: s.shape},
		source.Statement{SQL: commitSQL})
}

// exchange sends the statements and reads their results.
func (s *session) exchange(ctx context.Context, conn *pgxpool.Conn, t taker, statements ...source.Statement) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pl, err := source.Send(ctx, conn, statements...)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	err = s.readResults(ctx, pl, t)
	var pg *pgconn.PgError
	if err != nil && !errors.As(err, &pg) && !errors.Is(err, errBehind) && !errors.Is(err, errLocked) {
		cancel() // otherwise Close would read all the remaining rows
	}
	closeErr := pl.Close()
	switch {
	case err == nil && closeErr != nil:
		err = fmt.Errorf("poll: %w", closeErr)
	case err != nil && !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() == 'E':
		// With this the pool keeps the connection. A new one would mean repairs.
		if _, rollbackErr := conn.Exec(ctx, "ROLLBACK"); rollbackErr != nil {
			err = fmt.Errorf("poll: %w", errors.Join(err, rollbackErr))
		}
	}
	return err
}

// errLocked says that the relation can't be read before another Postgres session
// releases its lock.
var errLocked = errors.New("another Postgres session has locked the relation (ALTER TABLE, TRUNCATE, VACUUM FULL) or waits for its lock; to find it: SELECT * FROM pg_locks")

// readResults reads the results of readRows' statements.
func (s *session) readResults(ctx context.Context, pl *source.Pipeline, t taker) error {
	if err := pl.Skip(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := pl.Skip(); relation.IsLocked(err) {
		return errLocked
	} else if err != nil {
		return classify(fmt.Errorf("lock: %w", err))
	}
	l, err := readLook(pl)
	if err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	if l.inRecovery { // a standby's snapshots don't list running transactions
		l.taken = atXmin(l.taken)
	}
	l.snapshot = s.bound(l.taken)
	if err := s.same(l); err != nil {
		return err
	}
	if err := t.start(ctx, l); err != nil {
		return err
	}
	rr, err := pl.Next()
	if relation.IsLocked(err) { // for example by a table that a view's functions read
		return errLocked
	}
	if err != nil {
		return classify(fmt.Errorf("read rows: %w", err))
	}
	if err := s.checkColumns(rr.FieldDescriptions()); err != nil {
		return err
	}
	for rr.NextRow() {
		if err := t.add(ctx, rr.Values()); err != nil {
			return err
		}
	}
	if _, err := rr.Close(); err != nil {
		return classify(fmt.Errorf("read rows: %w", err))
	}
	return pl.Skip()
}

func readLook(pl *source.Pipeline) (look, error) {
	rr, err := pl.Next()
	if err != nil {
		return look{}, err
	}
	var l look
	var parseErr error
	for rr.NextRow() {
		v := rr.Values()
		l.taken, parseErr = capture.ParseSnapshot(string(v[0]))
		oid, _ := strconv.ParseUint(string(v[1]), 10, 32)
		l.oid, l.inRecovery = uint32(oid), string(v[2]) == "true"
		l.inserted, _ = strconv.ParseUint(string(v[3]), 10, 64)
		l.flushed, _ = strconv.ParseUint(string(v[4]), 10, 64)
		l.policies = string(v[5]) == "true"
	}
	if _, err := rr.Close(); err != nil {
		return look{}, err
	}
	l.next = l.taken.Xmax
	return l, parseErr
}

// bound returns the part of a snapshot that says which rows are published with
// it. For a view that is xmin alone: a row may have several writers, and its txid
// is the highest of theirs. If a writer with a lower txid commits later, the
// row's txid does not change.
func (s *session) bound(sn capture.Snapshot) capture.Snapshot {
	if s.rel.Kind == 'v' {
		return atXmin(sn)
	}
	return sn
}

// atXmin returns the snapshot in which no transaction from xmin on is visible.
func atXmin(sn capture.Snapshot) capture.Snapshot {
	return capture.Snapshot{Xmin: sn.Xmin, Xmax: sn.Xmin}
}

// same returns errChanged unless relation and source are still those of the
// session.
func (s *session) same(l look) error {
	if l.oid != s.rel.OID {
		return fmt.Errorf("%w: it was dropped, or dropped and created again", errChanged)
	}
	if l.policies != s.rel.Policies {
		return fmt.Errorf("%w: row level security was turned on or off", errChanged)
	}
	if l.inRecovery != s.src.InRecovery {
		return fmt.Errorf("%w: the standby was promoted", errChanged)
	}
	return nil
}

// check makes sure that a look does not lag behind what was published. For a
// standby that has to catch up first it returns errBehind. For a primary that
// was replaced by an older copy it begins a new incarnation.
func (s *session) check(ctx context.Context, b *batch, l look) error {
	if l.inRecovery {
		if s.previous != nil && l.snapshot.Xmin < s.previous.Xmax || b.work.announced != nil && l.snapshot.Xmin < b.work.announced.Xmax {
			return errBehind
		}
		return nil
	}
	if l.next >= s.durable.durable.Xmax {
		return nil
	}
	reason := fmt.Sprintf("Postgres is at transaction %d, but was durably at %d before: it was restored from an older copy", l.next, s.durable.durable.Xmax)
	if err := s.sink.Restart(ctx, reason, 0); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", errChanged, reason)
}

// checkColumns makes sure that the rows have the columns that were loaded. A
// statement that is prepared after a change returns the new ones.
func (s *session) checkColumns(got []pgconn.FieldDescription) error {
	want := len(s.rel.Columns)
	for _, yes := range s.serverSide {
		if yes {
			want++
		}
	}
	if len(got) != want {
		return fmt.Errorf("%w: it has %d columns, %d were loaded", errChanged, len(got), want)
	}
	for i, c := range s.rel.Columns {
		if got[i].Name != c.Name || got[i].DataTypeOID != c.TypeOID && got[i].DataTypeOID != c.BaseOID {
			return fmt.Errorf("%w: column %q has another name or type than before", errChanged, c.Name)
		}
		// The columns of a UNION ALL don't name their table.
		if got[i].TableOID == s.rel.OID && int(got[i].TableAttributeNumber) != c.Num {
			return fmt.Errorf("%w: column %q was dropped and added again", errChanged, c.Name)
		}
	}
	return nil
}

// endBatch publishes the heartbeat and makes the batch's snapshot the previous
// one. If there are no rows and no heartbeat is due, it publishes nothing.
//
// The heartbeat shows no since above D's xmin. If that is below the snapshot's
// xmin, one more heartbeat follows when D has come that far.
func (s *session) endBatch(ctx context.Context, conn *pgxpool.Conn, b *batch) error {
	if b.announced {
		if err := s.durable.refresh(ctx, conn); err != nil {
			return err
		}
	}
	now := time.Now()
	sn := b.look.snapshot
	since := s.durable.limit(sn.Xmin)
	reached := s.owed != 0 && since >= s.owed
	if b.rows == 0 && s.live && !reached && now.Before(s.nextHeartbeat) {
		s.previous = &sn
		s.p.metrics.Fresh(b.begun)
		return nil
	}
	// High is the snapshot's own xmin: it says how far Postgres is, to a client that
	// asks for more than the stream has.
	hb := capture.Heartbeat{Snapshot: b.look.taken.String(), Since: since, Durable: s.durable.text(), High: sn.Xmin}
	if err := s.sink.Heartbeat(ctx, hb); err != nil {
		return err
	}
	switch {
	case since == sn.Xmin:
		s.owed = 0
	case b.rows > 0 || !s.live:
		s.owed = sn.Xmin
	case reached: // by one more: if other relations are written, D is never there
		s.owed = 0
	}
	s.previous = &sn
	s.nextHeartbeat = now.Add(s.p.opt.HeartbeatInterval)
	s.live, s.overdue = true, false
	s.p.shown(s, b.look.taken, now)
	s.p.metrics.Heartbeat(now, b.begun, since)
	return nil
}
