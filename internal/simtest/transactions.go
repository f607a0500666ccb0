package simtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// errWanted ends a transaction that shall be rolled back.
var errWanted = errors.New("rolled back on purpose")

// transaction runs a random transaction. Errors are expected: locks that last too long, deadlocks, rows that changed, a
// Postgres that was killed.
func (w *Writers) transaction(ctx context.Context, conn *pgx.Conn, rnd *rand.Rand) {
	async := w.async.Load() || rnd.IntN(100) < w.AsyncPercent
	if w.Capture == WAL && rnd.IntN(4) == 0 {
		w.walTransaction(ctx, conn, rnd, async)
		return
	}
	run := func(kind string, write func(*session) error) { _ = w.do(ctx, conn, kind, async, write) }
	switch n := rnd.IntN(100); {
	case w.storm.Load() && n < 5:
		run("bulk", func(s *session) error { return s.bulk(rnd) })
	case w.storm.Load():
		run("many rows", func(s *session) error { return s.many(rnd) })
	case n < 26:
		run("transfer", func(s *session) error { return s.transfer(rnd) })
	case n < 34:
		run("many rows", func(s *session) error { return s.many(rnd) })
	case n < 40:
		run("insert", func(s *session) error { return s.insert(rnd) })
	case n < 45:
		run("delete", func(s *session) error { return s.remove(rnd) })
	case n < 53:
		run("savepoint", func(s *session) error { return s.savepoint(rnd) })
	case n < 59:
		run("rollback", func(s *session) error { return errors.Join(s.transfer(rnd), errWanted) })
	case n < 63 && !async: // PREPARE TRANSACTION flushes the WAL
		w.prepare(ctx, conn, rnd)
	case n < 69 && !async:
		w.finishPrepared(ctx, conn, rnd)
	case n < 75:
		run("early txid", func(s *session) error { return s.early(rnd, 20*time.Millisecond, 400*time.Millisecond) })
	case n < 76:
		run("long", func(s *session) error { return s.long(rnd) })
	case n < 93:
		run("order", func(s *session) error { return s.order(rnd) })
	case n < 94 && rnd.IntN(3) == 0:
		run("bulk", func(s *session) error { return s.bulk(rnd) })
	default:
		run("both", func(s *session) error { return errors.Join(s.order(rnd), s.transfer(rnd)) })
	}
}

// account picks an account. It often picks one of a few, so that transactions meet.
func (s *session) account(rnd *rand.Rand) int64 {
	switch {
	case s.w.storm.Load():
		return 1 + rnd.Int64N(16)
	case rnd.IntN(4) == 0:
		return 1 + rnd.Int64N(5)
	}
	return 1 + rnd.Int64N(s.w.accounts.Load())
}

const add = `UPDATE accounts SET balance = balance + $1, op = $2, note = $3 WHERE id = $4 AND NOT deleted`

func (s *session) transfer(rnd *rand.Rand) error {
	from, to := s.account(rnd), s.account(rnd)
	if from == to {
		to = from%StartAccounts + 1
	}
	amount := rnd.Int64N(100)
	if err := s.exec(1, add, -amount, s.op(), note(rnd), from); err != nil {
		return err
	}
	return s.exec(1, add, amount, s.op(), note(rnd), to)
}

// many moves money among several accounts in one statement.
func (s *session) many(rnd *rand.Rand) error {
	var ids []int64
	for range 4 + 2*rnd.IntN(8) {
		if id := s.account(rnd); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	ids = ids[:len(ids)/2*2]
	return s.exec(int64(len(ids)), `UPDATE accounts SET balance = balance + CASE WHEN id = ANY($1) THEN $3::bigint ELSE -$3::bigint END, op = $4
		WHERE id = ANY($2) AND NOT deleted`, ids[:len(ids)/2], ids, 1+rnd.Int64N(50), s.op())
}

func (s *session) insert(rnd *rand.Rand) error {
	amount := rnd.Int64N(200)
	if err := s.exec(1, add, -amount, s.op(), note(rnd), s.account(rnd)); err != nil {
		return err
	}
	return s.exec(1, `INSERT INTO accounts (id, balance, op, note) VALUES ($1, $2, $3, $4)`, s.w.accounts.Add(1), amount, s.op(), note(rnd))
}

// remove marks an account as deleted, and gives its balance to another one. If it is marked already, remove takes the
// mark away.
func (s *session) remove(rnd *rand.Rand) error {
	id, heir := s.account(rnd), s.account(rnd)
	if id == heir || id <= 5 {
		return errChanged
	}
	var balance int64
	var deleted bool
	if err := s.conn.QueryRow(s.ctx, "SELECT balance, deleted FROM accounts WHERE id = $1 FOR UPDATE", id).Scan(&balance, &deleted); err != nil {
		return err
	}
	if deleted {
		return s.exec(1, "UPDATE accounts SET deleted = false, op = $1 WHERE id = $2", s.op(), id)
	}
	if err := s.exec(1, "UPDATE accounts SET deleted = true, balance = 0, op = $1 WHERE id = $2", s.op(), id); err != nil {
		return err
	}
	return s.exec(1, add, balance, s.op(), note(rnd), heir)
}

// savepoint writes after a savepoint, and often rolls that back.
func (s *session) savepoint(rnd *rand.Rand) error {
	end := "RELEASE SAVEPOINT s"
	if rnd.IntN(3) > 0 {
		end = "ROLLBACK TO SAVEPOINT s"
	}
	before, within := s.transfer(rnd), error(nil)
	if before != nil {
		return before
	}
	if err := s.exec(-1, "SAVEPOINT s"); err != nil {
		return err
	}
	if within = s.transfer(rnd); within != nil {
		end = "ROLLBACK TO SAVEPOINT s"
	}
	if err := s.exec(-1, end); err != nil {
		return err
	}
	if rnd.IntN(2) == 0 {
		return s.transfer(rnd)
	}
	return nil
}

// early takes its transaction ID first and writes later. So a row that it overwrites may have a higher txid.
func (s *session) early(rnd *rand.Rand, least, most time.Duration) error {
	if err := s.exec(-1, "SELECT txid_current()"); err != nil {
		return err
	}
	sleep(s.ctx, least+time.Duration(rnd.Int64N(int64(most-least))))
	return s.transfer(rnd)
}

// long writes, holds xmin back for seconds, and writes again.
func (s *session) long(rnd *rand.Rand) error {
	if err := s.transfer(rnd); err != nil {
		return err
	}
	return s.early(rnd, time.Second, 3*time.Second)
}

// order inserts, changes or deletes an order, or does two of these in one transaction.
func (s *session) order(rnd *rand.Rand) error {
	shop, no := nasty[rnd.IntN(len(nasty))], 1+rnd.Int64N(6)
	if err := s.exec(-1, "SELECT pg_advisory_xact_lock(hashtextextended($1, $2))", shop, no); err != nil {
		return err
	}
	for range 1 + rnd.IntN(2) {
		if err := s.orderStep(rnd, shop, no); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) orderStep(rnd *rand.Rand, shop string, no int64) error {
	var exists bool
	if err := s.conn.QueryRow(s.ctx, "SELECT EXISTS (SELECT FROM orders WHERE shop = $1 AND no = $2)", shop, no).Scan(&exists); err != nil {
		return err
	}
	switch {
	case !exists:
		return s.exec(1, `INSERT INTO orders (shop, no, price, at, tags, attrs, raw, part, note, op)
			VALUES ($1, $2, $3::text::numeric, now(), ARRAY[$4::text, NULL], jsonb_build_object('k', $4::text, 'n', 1.10), $5, $6, $4, $7)`,
			shop, no, fmt.Sprintf("%d.%020d", rnd.Int64(), rnd.Int64N(1e15)), note(rnd), []byte{0, 255, byte(rnd.IntN(256))}, rnd.NormFloat64(), s.op())
	case rnd.IntN(3) == 0:
		if err := s.exec(1, "UPDATE orders SET op = $1 WHERE shop = $2 AND no = $3", s.op(), shop, no); err != nil {
			return err
		}
		return s.exec(1, "DELETE FROM orders WHERE shop = $1 AND no = $2", shop, no)
	}
	return s.exec(1, "UPDATE orders SET op = $1, price = -price, part = $4, note = $5 WHERE shop = $2 AND no = $3", s.op(), shop, no, rnd.NormFloat64(), note(rnd))
}

// bulk writes so many rows in one transaction that the bridge must announce the batch.
func (s *session) bulk(rnd *rand.Rand) error {
	if err := s.exec(-1, "SELECT pg_advisory_xact_lock(1)"); err != nil {
		return err
	}
	return s.exec(-1, `INSERT INTO orders (shop, no, note, op) SELECT 'bulk', n, $2, $1 FROM generate_series(1, $3::int) n
		ON CONFLICT (shop, no) DO UPDATE SET op = EXCLUDED.op, note = EXCLUDED.note`, s.op(), note(rnd), 900+rnd.IntN(600))
}

func note(rnd *rand.Rand) *string {
	if rnd.IntN(8) == 0 {
		return nil
	}
	return &nasty[rnd.IntN(len(nasty))]
}

func gid(tx *Tx) string { return fmt.Sprintf("sim-%d", tx.ID) }

// prepare prepares a transaction, which a writer commits or rolls back later.
func (w *Writers) prepare(ctx context.Context, conn *pgx.Conn, rnd *rand.Rand) {
	tx := w.begin(conn, "prepared", false)
	s := &session{ctx: ctx, w: w, conn: conn, tx: tx}
	err := s.exec(-1, "BEGIN")
	if err == nil && w.Capture == WAL && rnd.IntN(2) == 0 {
		err = s.reap(rnd)
	}
	if err == nil {
		err = s.transfer(rnd)
	}
	if err == nil {
		err = s.exec(1, "INSERT INTO commits VALUES ($1)", tx.ID)
	}
	if err != nil {
		_, _ = conn.Exec(ctx, "ROLLBACK")
		w.end(tx, TxRolledBack)
		return
	}
	// From here on it may be prepared, even if this returns an error.
	_ = s.exec(-1, "PREPARE TRANSACTION '"+gid(tx)+"'")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.prepared = append(w.prepared, tx)
}

// finishPrepared ends one prepared transaction, if there is one.
func (w *Writers) finishPrepared(ctx context.Context, conn *pgx.Conn, rnd *rand.Rand) {
	w.mu.Lock()
	if len(w.prepared) == 0 {
		w.mu.Unlock()
		return
	}
	tx := w.prepared[0]
	w.prepared = w.prepared[1:]
	w.mu.Unlock()
	sql := "COMMIT PREPARED '" + gid(tx) + "'"
	if rnd.IntN(4) == 0 {
		sql = "ROLLBACK PREPARED '" + gid(tx) + "'"
	}
	tag, err := conn.Exec(ctx, sql)
	switch {
	case err != nil && conn.IsClosed():
		// It may still be prepared. It must not stay so, because it would hold xmin back.
		w.end(tx, TxUnknown)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.prepared = append(w.prepared, tx)
	case err != nil: // it has already ended, or was never prepared
		w.end(tx, TxUnknown)
	case tag.String() == "COMMIT PREPARED":
		w.end(tx, TxCommitted)
	default:
		w.end(tx, TxRolledBack)
	}
}
