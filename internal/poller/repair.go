package poller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// suspectsPage is how many suspect keys are looked at under one snapshot.
const suspectsPage = 1000

// repair looks again at every key that the stream holds with a txid that is
// not visible in safe: a row committed asynchronously may have been published
// and then lost in a crash of Postgres. What is there is published as it is now,
// what is gone as a delete. The batch that follows reads from safe on and at a
// later snapshot, so that its heartbeat is true of these keys too; and because
// it may bring rows of any transaction not visible in safe, no row here shows a
// since above its xmin (I5).
func (s *session) repair(ctx context.Context, conn *pgxpool.Conn, safe relation.Snapshot) error {
	var page capture.Page
	for {
		rows, next, err := s.sink.Suspects(ctx, safe.Xmin, page, suspectsPage)
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(r capture.RowPosition) bool { return safe.Visible(r.Txid) })
		if len(rows) > 0 {
			if err := s.repairKeys(ctx, conn, rows, safe.Xmin); err != nil {
				return err
			}
			s.nextHeartbeat = time.Time{} // even if the batch that follows is empty
		}
		if next == (capture.Page{}) {
			return nil
		}
		page = next
	}
}

func (s *session) repairKeys(ctx context.Context, conn *pgxpool.Conn, rows []capture.RowPosition, low uint64) error {
	missing := make(map[string][][]byte, len(rows))
	for _, r := range rows {
		if len(r.Key) != len(s.rel.Key) {
			continue // of a key that the relation had before
		}
		missing[relation.KeyName(r.Key)] = r.Key
	}
	b := newBatch(s, work{query: s.queries.keys, ceiling: low, params: relation.KeyArrays(maps.Values(missing), len(s.rel.Key))})
	b.announced = true // it belongs to no batch that could be continued
	b.onRow = func(key [][]byte) { delete(missing, relation.KeyName(key)) }
	if err := s.readRows(ctx, conn, b); err != nil {
		return err
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	for _, key := range missing {
		if err := b.publishDelete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// publishDelete publishes that the relation has no row with the key.
func (b *batch) publishDelete(ctx context.Context, key [][]byte) error {
	b.key = key
	txid := b.look.snapshot.Xmin
	line := lockstep.AppendRowHead(nil, txid, b.xmin, true)
	line, err := b.keyJSON(line)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	line = lockstep.AppendRowTail(line)
	return b.s.sink.Row(ctx, capture.Change{Key: key, KeyJSON: b.keyJSON, Txid: txid, Xmin: b.xmin, High: txid, Line: line})
}

// nullsEvery is how often rows without a txid are counted; in a view that may
// take a look at every row.
const (
	nullsEvery       = time.Minute
	nullsEveryInView = 15 * time.Minute
)

// countNulls reports rows whose txid is NULL: no poll ever sees them.
func (s *session) countNulls(ctx context.Context) error {
	if !s.rel.Columns[s.rel.Txid].Nullable || time.Now().Before(s.nextNulls) {
		return nil
	}
	every := nullsEvery
	if s.rel.Kind == 'v' {
		every = nullsEveryInView
	}
	s.nextNulls = time.Now().Add(every)
	rows, err := s.pool.Query(ctx, s.queries.nulls)
	if err != nil {
		return fmt.Errorf("count rows without a txid: %w", err)
	}
	n, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
	if err != nil {
		return classify(fmt.Errorf("count rows without a txid: %w", err))
	}
	s.p.metrics.Nulls.Set(float64(n))
	if n > 0 {
		s.log.Warn().Int64("rows", n).
			Msg("rows have no txid (NULL) and are not published; stamp them: UPDATE … SET txid = txid_current() WHERE txid IS NULL")
	}
	return nil
}
