package simtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"
)

// walTransaction runs a random transaction of those that only capture=wal can follow: rows that are deleted for good
// and inserted again, keys that change, TRUNCATE, large values that most statements leave unchanged, and much that is
// rolled back.
//
// A transaction deletes the same key at most once, so that the key and the transaction together name the deletion.
func (w *Writers) walTransaction(ctx context.Context, conn *pgx.Conn, rnd *rand.Rand, async bool) {
	run := func(kind string, write func(*session) error) { _ = w.do(ctx, conn, kind, async, write) }
	switch n := rnd.IntN(100); {
	case n < 18:
		run("wal: hard delete", func(s *session) error { return s.reap(rnd) })
	case n < 34:
		run("wal: insert again", func(s *session) error { return s.again(rnd) })
	case n < 46:
		run("wal: key changed", func(s *session) error { return s.move(rnd) })
	case n < 56:
		run("wal: order's key changed", func(s *session) error { return s.moveOrder(rnd) })
	case n < 66:
		run("wal: large value", func(s *session) error { return s.setBlob(rnd) })
	case n < 72:
		run("wal: order's large value", func(s *session) error { return s.setOrderBlob(rnd) })
	case n < 78:
		run("wal: subtransactions", func(s *session) error { return s.nested(rnd) })
	case n < 95:
		run("wal: notes", func(s *session) error { return s.notes(rnd) })
	case n < 97:
		run("wal: aborted bulk", func(s *session) error { return errors.Join(s.bulk(rnd), s.reap(rnd), errWanted) })
	case rnd.IntN(3) == 0:
		run("wal: truncate", func(s *session) error { return s.truncate(rnd) })
	}
}

// keep locks an account's key until the transaction ends, whether such a row exists or not. An INSERT needs this lock,
// because it must know the version of the deletion before it.
func (s *session) keep(id int64) error {
	return s.exec(-1, "SELECT pg_advisory_xact_lock(2, $1::bigint::int)", id)
}

// reap deletes an account for good, and gives its balance to another one. The same transaction may insert it again.
func (s *session) reap(rnd *rand.Rand) error {
	id, heir := s.account(rnd), s.account(rnd)
	if id == heir || id <= 5 {
		return errChanged
	}
	if err := s.keep(id); err != nil {
		return err
	}
	var balance int64
	if err := s.conn.QueryRow(s.ctx, "SELECT balance FROM accounts WHERE id = $1 FOR UPDATE", id).Scan(&balance); err != nil {
		return err
	}
	if rnd.IntN(3) == 0 { // a version that the same transaction deletes
		if err := s.exec(1, "UPDATE accounts SET op = $1 WHERE id = $2", s.op(), id); err != nil {
			return err
		}
	}
	if err := s.exec(1, "DELETE FROM accounts WHERE id = $1", id); err != nil {
		return err
	}
	if err := s.exec(1, add, balance, s.op(), note(rnd), heir); err != nil {
		return err
	}
	if rnd.IntN(3) == 0 {
		return s.open(rnd, id)
	}
	return nil
}

// open inserts an account, with money of another one.
func (s *session) open(rnd *rand.Rand, id int64) error {
	amount := rnd.Int64N(200)
	if err := s.exec(1, add, -amount, s.op(), note(rnd), s.account(rnd)); err != nil {
		return err
	}
	return s.exec(1, "INSERT INTO accounts (id, balance, op, note, blob) VALUES ($1, $2, $3, $4, $5)", id, amount, s.op(), note(rnd), blob(rnd))
}

// gone picks an account that was deleted for good, and locks its key.
func (s *session) gone() (int64, error) {
	var id int64
	err := s.conn.QueryRow(s.ctx, `SELECT id FROM accounts_gone g WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.id = g.id)
		ORDER BY random() LIMIT 1`).Scan(&id)
	if err != nil {
		return 0, err
	}
	return id, s.keep(id)
}

func (s *session) again(rnd *rand.Rand) error {
	id, err := s.gone()
	if err != nil {
		return err
	}
	return s.open(rnd, id)
}

// move gives an account another key: a new one, or one that was deleted. The same transaction may insert an account
// with the old key.
func (s *session) move(rnd *rand.Rand) error {
	id, to := s.account(rnd), s.w.accounts.Add(1)
	if id <= 5 {
		id += 5 // accounts 1 to 5 keep their keys
	}
	if rnd.IntN(2) == 0 {
		if gone, err := s.gone(); err == nil {
			to = gone
		} else if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
	}
	if err := s.keep(id); err != nil {
		return err
	}
	if err := s.exec(1, "UPDATE accounts SET id = $1, op = $2 WHERE id = $3", to, s.op(), id); err != nil {
		return err
	}
	if rnd.IntN(3) == 0 {
		return s.open(rnd, id)
	}
	return nil
}

// keepOrder is keep for an order's key. It takes the same lock as order.
func (s *session) keepOrder(shop string, no int64) error {
	return s.exec(-1, "SELECT pg_advisory_xact_lock(hashtextextended($1, $2))", shop, no)
}

func (s *session) moveOrder(rnd *rand.Rand) error {
	shop, no := nasty[rnd.IntN(len(nasty))], 1+rnd.Int64N(6)
	toShop, to := nasty[rnd.IntN(len(nasty))], 1+rnd.Int64N(12)
	if err := errors.Join(s.keepOrder(shop, no), s.keepOrder(toShop, to)); err != nil {
		return err
	}
	return s.exec(1, "UPDATE orders SET shop = $1, no = $2, op = $3 WHERE shop = $4 AND no = $5", toShop, to, s.op(), shop, no)
}

// setBlob writes an account's large value, and changes the row again without it.
func (s *session) setBlob(rnd *rand.Rand) error {
	id := s.account(rnd)
	for range 3 { // few accounts shall have a large value: mostly every fifth
		if id%5 != 0 {
			id = s.account(rnd)
		}
	}
	if err := s.exec(1, "UPDATE accounts SET blob = $1, op = $2 WHERE id = $3 AND NOT deleted", blob(rnd), s.op(), id); err != nil {
		return err
	}
	if rnd.IntN(2) == 0 {
		return s.exec(1, "UPDATE accounts SET note = $1, op = $2 WHERE id = $3", note(rnd), s.op(), id)
	}
	return nil
}

func (s *session) setOrderBlob(rnd *rand.Rand) error {
	shop, no := nasty[rnd.IntN(len(nasty))], 1+rnd.Int64N(6)
	if err := s.keepOrder(shop, no); err != nil {
		return err
	}
	return s.exec(1, "UPDATE orders SET blob = $1, op = $2 WHERE shop = $3 AND no = $4", blob(rnd), s.op(), shop, no)
}

// nested runs subtransactions within subtransactions. It rolls some of them back, with everything that they deleted,
// moved and inserted.
func (s *session) nested(rnd *rand.Rand) error {
	steps := []func(*rand.Rand) error{s.transfer, s.setBlob, s.setOrderBlob, s.many, s.move}
	undone := []func(*rand.Rand) error{s.reap, s.move, s.again, s.truncate, s.setBlob, s.transfer}
	if err := s.transfer(rnd); err != nil {
		return err
	}
	for depth := range 1 + rnd.IntN(3) {
		name := fmt.Sprintf("s%d", depth)
		if err := s.exec(-1, "SAVEPOINT "+name); err != nil {
			return err
		}
		if rnd.IntN(2) == 0 {
			_ = undone[rnd.IntN(len(undone))](rnd)
			if err := s.exec(-1, "ROLLBACK TO SAVEPOINT "+name); err != nil {
				return err
			}
		}
		step := steps[rnd.IntN(len(steps))]
		steps = steps[:4] // one move at most: see walTransaction
		if err := step(rnd); err != nil {
			if err := s.exec(-1, "ROLLBACK TO SAVEPOINT "+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// truncate removes all orders, and may insert one.
func (s *session) truncate(rnd *rand.Rand) error {
	if err := s.exec(-1, "TRUNCATE orders"); err != nil {
		return err
	}
	if rnd.IntN(2) == 0 {
		return nil
	}
	return s.exec(1, "INSERT INTO orders (shop, no, note, op, blob) VALUES ('truncated', 1, $1, $2, $3)", note(rnd), s.op(), blob(rnd))
}

// blob returns a large value that can't be compressed much, or none.
func blob(rnd *rand.Rand) *string {
	if rnd.IntN(3) == 0 {
		return nil
	}
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	b := make([]byte, 3000+rnd.IntN(5000))
	for i := range b {
		b[i] = letters[rnd.IntN(len(letters))]
	}
	text := string(b)
	return &text
}
