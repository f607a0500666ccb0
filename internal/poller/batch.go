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

// work is one query for rows and what its rows mean.
type work struct {
	query  string
	params [][]byte
	// whole is true where the query reads the whole relation.
	whole bool
	// repair says that what a crash may have undone is made good first.
	repair bool
	// schema, if not nil, is stored behind the announcement: a crash between
	// the two begins anew, one behind both continues.
	schema []byte
	// previous is P for a delta.
	previous *relation.Snapshot
	// ceiling, if not 0, is the highest since that a row may show.
	ceiling uint64
	// announced is the snapshot of the interrupted batch that this continues;
	// no heartbeat follows.
	announced *relation.Snapshot
}

// look is what snapshotSQL says.
type look struct {
	// taken is the snapshot, snapshot what of it bounds the next batch.
	taken, snapshot relation.Snapshot

	oid        uint32
	inRecovery bool
	// policies is set where row level security may hide rows.
	policies bool
	// next is the first transaction ID not given out; it is the snapshot's
	// xmax, but for a standby's snapshot.
	next uint64
	// inserted and flushed are WAL positions; 0 in recovery.
	inserted, flushed uint64
}

// batchRows runs one batch: reads its rows under one snapshot, publishes them,
// and, unless it continues another, the heartbeat. It returns the number of
// rows.
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
		s.log.Warn().Int64("rows", b.foreign).
			Msg("rows have a txid ahead of this cluster's (a restored dump?) and will not be seen to change; stamp them anew: UPDATE … SET txid = txid_current() WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
	}
	if w.announced != nil {
		return b.rows, nil
	}
	return b.rows, s.endBatch(ctx, conn, b)
}

// taker takes what a query for rows returns: the look under which they are
// read, and then each of them.
type taker interface {
	start(ctx context.Context, l look) error
	add(ctx context.Context, values [][]byte) error
}

// readRows runs a query for rows under a new snapshot, and hands them over as
// they come. It uses only what of the session never changes after load: a
// comparison calls it at the same time.
func (s *session) readRows(ctx context.Context, conn *pgxpool.Conn, query string, params [][]byte, t taker) error {
	if src := source.ConnectionOf(conn).Source; src != s.src {
		_ = conn.Conn().Close(ctx) // so that the pool does not keep it
		return fmt.Errorf("%w: the connection leads to another server or timeline (system %d, timeline %d, standby %t)",
			errChanged, src.SystemID, src.Timeline, src.InRecovery)
	}
	return s.exchange(ctx, conn, t,
		source.Statement{SQL: beginSQL},
		source.Statement{SQL: s.queries.lock},
		source.Statement{SQL: snapshotSQL, Params: [][]byte{[]byte(s.rel.Name.SQL())}},
		source.Statement{SQL: query, Params: params, Shape: s.shape},
		source.Statement{SQL: commitSQL})
}

// exchange sends the statements and reads what they return.
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
		cancel() // Close would read all the rows that are left
	}
	closeErr := pl.Close()
	switch {
	case err == nil && closeErr != nil:
		err = fmt.Errorf("poll: %w", closeErr)
	case err != nil && !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() == 'E':
		// So that the pool keeps the connection: a new one means repairs.
		if _, rollbackErr := conn.Exec(ctx, "ROLLBACK"); rollbackErr != nil {
			err = fmt.Errorf("poll: %w", errors.Join(err, rollbackErr))
		}
	}
	return err
}

// errLocked says that a relation can't be read before another session ends.
var errLocked = errors.New("another session has locked it (ALTER TABLE, TRUNCATE, VACUUM FULL), or waits to; see pg_locks")

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
	if relation.IsLocked(err) { // by what a view's functions read, say
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
		l.taken, parseErr = relation.ParseSnapshot(string(v[0]))
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

// bound returns what of a snapshot says which rows are published. A row of a
// view may have several writers, and what one of them changed does not show in
// the highest of their txids where another's is higher; only xmin bounds it.
func (s *session) bound(sn relation.Snapshot) relation.Snapshot {
	if s.rel.Kind == 'v' {
		return atXmin(sn)
	}
	return sn
}

// atXmin returns the snapshot that shows nothing of transactions from xmin on.
func atXmin(sn relation.Snapshot) relation.Snapshot {
	return relation.Snapshot{Xmin: sn.Xmin, Xmax: sn.Xmin}
}

// same says whether relation and source are still those of the session.
func (s *session) same(l look) error {
	if l.oid != s.rel.OID {
		return fmt.Errorf("%w: it was dropped, or dropped and made again", errChanged)
	}
	if l.policies != s.rel.Policies {
		return fmt.Errorf("%w: row level security was turned on or off", errChanged)
	}
	if l.inRecovery != s.src.InRecovery {
		return fmt.Errorf("%w: the standby was promoted", errChanged)
	}
	return nil
}

// check says whether a look is not behind what was published. It returns
// errBehind for a standby that has to catch up first.
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
	reason := fmt.Sprintf("Postgres is at transaction %d, and %d was durable before: it was restored from an older copy", l.next, s.durable.durable.Xmax)
	if err := s.sink.Restart(ctx, reason, 0); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", errChanged, reason)
}

// checkColumns makes sure that the rows have the columns that were loaded: a
// statement that is prepared after a change has the new ones.
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
			return fmt.Errorf("%w: column %q is not as it was loaded", errChanged, c.Name)
		}
		// In a UNION ALL columns don't say where they are from.
		if got[i].TableOID == s.rel.OID && int(got[i].TableAttributeNumber) != c.Num {
			return fmt.Errorf("%w: column %q was dropped and made again", errChanged, c.Name)
		}
	}
	return nil
}

// endBatch publishes the heartbeat; then the batch's snapshot is the previous
// one. Where nothing happened and no heartbeat is due, it publishes nothing.
func (s *session) endBatch(ctx context.Context, conn *pgxpool.Conn, b *batch) error {
	if b.announced {
		if err := s.durable.refresh(ctx, conn); err != nil {
			return err
		}
	}
	now := time.Now()
	sn := b.look.snapshot
	if b.rows == 0 && s.live && now.Before(s.nextHeartbeat) {
		s.previous = &sn
		s.p.metrics.Fresh(b.begun)
		return nil
	}
	hb := capture.Heartbeat{Snapshot: b.look.taken.String(), Since: sn.Xmin, Durable: s.durable.text(), High: sn.Xmin}
	if err := s.sink.Heartbeat(ctx, hb); err != nil {
		return err
	}
	s.previous = &sn
	s.nextHeartbeat = now.Add(s.p.opt.HeartbeatInterval)
	s.live, s.overdue = true, false
	s.p.shown(s, b.look.taken, now)
	s.p.metrics.Heartbeat(now, b.begun, sn.Xmin)
	return nil
}
