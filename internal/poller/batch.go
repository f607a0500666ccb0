package poller

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// work is one query for rows and what its rows mean.
type work struct {
	query  string
	params [][]byte
	// whole is true where the query reads the whole relation.
	whole bool
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
	snapshot   relation.Snapshot
	oid        uint32
	inRecovery bool
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
	if err := s.readRows(ctx, conn, b); err != nil || b.skip {
		return 0, err
	}
	if err := b.flush(ctx); err != nil {
		return 0, err
	}
	s.p.metrics.batch(time.Since(b.begun), b.rows)
	if w.announced != nil {
		return b.rows, nil
	}
	return b.rows, s.endBatch(ctx, conn, b)
}

// readRows runs a batch's query under a new snapshot, and publishes rows as
// they come once more are read than are held.
func (s *session) readRows(ctx context.Context, conn *pgxpool.Conn, b *batch) error {
	statements := []statement{{}, {params: [][]byte{[]byte(s.rel.Name.SQL())}}, {params: b.work.params}, {}}
	for i, sql := range []string{beginSQL, snapshotSQL, b.work.query, commitSQL} {
		var err error
		if statements[i].name, err = prepare(ctx, conn.Conn(), s.shape, sql); err != nil {
			return classify(fmt.Errorf("prepare: %w", err))
		}
	}
	return s.exchange(ctx, conn.Conn().PgConn(), statements, b)
}

// exchange sends a batch's statements and reads what they return.
func (s *session) exchange(ctx context.Context, conn *pgconn.PgConn, statements []statement, b *batch) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pl, err := pipeline(ctx, conn, statements...)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	err = s.readBatch(ctx, pl, b)
	var pg *pgconn.PgError
	if err != nil && !errors.As(err, &pg) {
		cancel() // Close would read all the rows that are left
	}
	if closeErr := pl.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("poll: %w", closeErr)
	}
	return err
}

// readBatch reads the results of a batch's statements.
func (s *session) readBatch(ctx context.Context, pl *pgconn.Pipeline, b *batch) error {
	if err := skipResult(pl); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	l, err := readLook(pl)
	if err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	if b.skip, err = s.check(ctx, l); err != nil || b.skip {
		return err
	}
	if err := b.start(ctx, l); err != nil {
		return err
	}
	rr, err := nextResult(pl)
	if err != nil {
		return classify(fmt.Errorf("read rows: %w", err))
	}
	for rr.NextRow() {
		if err := b.add(ctx, rr.Values()); err != nil {
			return err
		}
	}
	if _, err := rr.Close(); err != nil {
		return classify(fmt.Errorf("read rows: %w", err))
	}
	return skipResult(pl)
}

func readLook(pl *pgconn.Pipeline) (look, error) {
	rr, err := nextResult(pl)
	if err != nil {
		return look{}, err
	}
	var l look
	var parseErr error
	for rr.NextRow() {
		v := rr.Values()
		l.snapshot, parseErr = relation.ParseSnapshot(string(v[0]))
		oid, _ := strconv.ParseUint(string(v[1]), 10, 32)
		l.oid, l.inRecovery = uint32(oid), string(v[2]) == "true"
		l.inserted, _ = strconv.ParseUint(string(v[3]), 10, 64)
		l.flushed, _ = strconv.ParseUint(string(v[4]), 10, 64)
	}
	if _, err := rr.Close(); err != nil {
		return look{}, err
	}
	l.next = l.snapshot.Xmax
	if l.inRecovery { // its snapshots have no xip: see the package comment
		l.snapshot = relation.Snapshot{Xmin: l.snapshot.Xmin, Xmax: l.snapshot.Xmin}
	}
	return l, parseErr
}

// check says whether a look may be used: whether relation and source are still
// those of the session, and not behind what was published.
func (s *session) check(ctx context.Context, l look) (skip bool, err error) {
	if l.oid != s.rel.OID {
		return false, fmt.Errorf("%w: it was dropped, or dropped and made again", errChanged)
	}
	if l.inRecovery != s.src.InRecovery {
		return false, fmt.Errorf("%w: the standby was promoted", errChanged)
	}
	if l.inRecovery {
		behind := s.previous != nil && l.snapshot.Xmin < s.previous.Xmax
		if behind {
			s.log.Debug().Msg("the standby is behind what was published, waiting")
		}
		return behind, nil
	}
	if l.snapshot.Xmax >= s.durable.durable {
		return false, nil
	}
	reason := fmt.Sprintf("Postgres is at transaction %d, and %d was durable before: it was restored from an older copy", l.snapshot.Xmax, s.durable.durable)
	if err := s.sink.Restart(ctx, reason); err != nil {
		return false, err
	}
	return false, fmt.Errorf("%w: %s", errChanged, reason)
}

// endBatch publishes the heartbeat; then the batch's snapshot is the previous
// one. Where nothing happened and no heartbeat is due, it publishes nothing.
func (s *session) endBatch(ctx context.Context, conn *pgxpool.Conn, b *batch) error {
	if b.foreign > 0 {
		s.log.Warn().Int64("rows", b.foreign).
			Msg("rows have a txid ahead of this cluster's (a restored dump?) and will not be seen to change; stamp them anew: UPDATE … SET txid = txid_current() WHERE txid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
	}
	if b.announced {
		if err := s.durable.refresh(ctx, conn); err != nil {
			return err
		}
	}
	now := time.Now()
	sn := b.look.snapshot
	if b.rows == 0 && s.live && now.Before(s.nextHeartbeat) {
		s.previous = &sn
		s.p.metrics.fresh(b.begun)
		return nil
	}
	hb := capture.Heartbeat{Snapshot: sn.String(), Since: sn.Xmin, Durable: s.durable.durable, High: sn.Xmin}
	if err := s.sink.Heartbeat(ctx, hb); err != nil {
		return err
	}
	s.previous = &sn
	s.nextHeartbeat = now.Add(s.p.opt.HeartbeatInterval)
	s.live = true
	s.p.update(func(st *Status) { *st = Status{State: StateLive, Heartbeat: now} })
	s.p.metrics.heartbeat(now, b.begun, sn)
	return nil
}
