package poller

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"bridge/internal/capture"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5/pgxpool"
)

// suspectsPage is how many suspect keys are looked at under one snapshot.
const suspectsPage = 1000

// repair looks again at every key that the stream holds with a txid that is not
// visible in safe. Such a row may have been committed asynchronously, published,
// and then lost in a crash of Postgres. A row that exists is published as it is
// now; for one that is gone a delete is published. The next batch reads from safe
// on, under a later snapshot, so its heartbeat is true of these keys too. It may
// bring rows of any transaction not visible in safe, so no row here shows a since
// above safe's xmin (I5).
func (s *session) repair(ctx context.Context, conn *pgxpool.Conn, safe capture.Snapshot) error {
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
		}
		if next == (capture.Page{}) {
			return nil
		}
		page = next
	}
}

func (s *session) repairKeys(ctx context.Context, conn *pgxpool.Conn, rows []capture.RowPosition, low uint64) error {
	again := newSuspects()
	for _, r := range rows {
		again.add(s.rel, r.Key, reconcile.Unknown)
	}
	return s.lookAgain(ctx, conn, again, low)
}

// suspects are keys to look at again.
type suspects struct {
	// left holds, by name, the keys for which no row was found yet.
	left map[string]reconcile.Suspect
	// published, if not nil, is the snapshot of a heartbeat from before the
	// comparison. If a row's transaction is not visible in it, the row differs only
	// because it is new: it was published meanwhile, or the next batch reads it.
	published *capture.Snapshot
	// counts counts the keys that were published.
	counts reconcile.Counts
}

func newSuspects() *suspects { return &suspects{left: make(map[string]reconcile.Suspect)} }

func (u *suspects) add(rel *relation.Relation, key [][]byte, kind reconcile.Kind) {
	if len(key) == len(rel.Key) { // otherwise the relation had another key then
		u.left[relation.KeyName(key)] = reconcile.Suspect{Key: key, Kind: kind}
	}
}

// comes says whether polls publish the row without a repair. They don't see a row
// whose txid, from a restored dump, is ahead of this cluster.
func (u *suspects) comes(txid uint64, l look) bool {
	return u.published != nil && txid < l.next && !u.published.Visible(txid)
}

// settle takes a key off the list, because its row was found. It counts the key
// if the row was published.
func (u *suspects) settle(key [][]byte, published bool) {
	name := relation.KeyName(key)
	if s, ok := u.left[name]; ok && published {
		u.counts.Add(s.Kind)
	}
	delete(u.left, name)
}

// keys returns the keys on the list.
func (u *suspects) keys() iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		for _, s := range u.left {
			if !yield(s.Key) {
				return
			}
		}
	}
}

// lookAgain publishes the rows of the keys as they are now, and a delete for each
// key that has no row. None of them shows a since above low.
func (s *session) lookAgain(ctx context.Context, conn *pgxpool.Conn, again *suspects, low uint64) error {
	b := newBatch(s, work{ceiling: low})
	b.announced = true // a repair is never announced: it can't be continued
	b.again = again
	if err := s.readRows(ctx, conn, s.queries.keys, relation.KeyArrays(again.keys(), len(s.rel.Key)), b); err != nil {
		return err
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	for key := range again.keys() {
		if err := b.publishDelete(ctx, key); err != nil {
			return err
		}
		again.counts.Add(reconcile.Zombie)
	}
	s.nextHeartbeat = time.Time{} // a heartbeat must follow, even after an empty batch
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
	b.s.repeats.forget(key)
	return b.s.sink.Row(ctx, capture.Change{Key: key, KeyJSON: b.keyJSON, Txid: txid, Xmin: b.xmin, High: txid, Line: line})
}
