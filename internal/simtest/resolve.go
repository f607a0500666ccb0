package simtest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Resolve ends transactions that are still prepared. Then it asks Postgres how each transaction ended whose outcome is
// not known. It is called when no writer runs. Its error says that Postgres, or this package, broke a promise of its
// own.
func (w *Writers) Resolve(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	gids, err := collect[string](ctx, conn, "SELECT gid FROM pg_prepared_xacts")
	if err != nil {
		return err
	}
	for i, gid := range gids {
		end := []string{"COMMIT", "ROLLBACK"}[i%2]
		if _, err := conn.Exec(ctx, end+" PREPARED '"+gid+"'"); err != nil {
			return err
		}
	}
	ids, err := collect[int64](ctx, conn, "SELECT tx FROM commits")
	if err != nil {
		return err
	}
	committed := map[int64]bool{}
	for _, id := range ids {
		committed[id] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, tx := range w.txs {
		switch {
		case tx.Outcome == TxCommitted && !committed[tx.ID] && !tx.Async:
			return fmt.Errorf("transaction %d (%s) was committed, but Postgres does not have it", tx.ID, tx.Kind)
		case tx.Outcome == TxRolledBack && committed[tx.ID]:
			return fmt.Errorf("transaction %d (%s) was rolled back, but Postgres has it", tx.ID, tx.Kind)
		case tx.Outcome != TxCommitted && committed[tx.ID]:
			tx.Outcome = TxCommitted
			w.kinds[tx.Kind]++
			w.commits.Add(1)
		case tx.Outcome != TxCommitted && !tx.Async:
			tx.Outcome = TxRolledBack
		}
	}
	w.prepared = nil
	return w.checkSum(ctx, conn)
}

// checkSum makes sure that the workload itself keeps the sum.
func (w *Writers) checkSum(ctx context.Context, conn *pgx.Conn) error {
	var sum int64
	if err := conn.QueryRow(ctx, "SELECT sum(balance) FROM accounts").Scan(&sum); err != nil {
		return err
	}
	if sum != Sum {
		return fmt.Errorf("the workload is wrong: the balances in Postgres sum to %d, want %d", sum, Sum)
	}
	return nil
}

// LostTx returns how many asynchronous transactions crashes undid. It is called after Resolve.
func (w *Writers) LostTx(t *Truth) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, tx := range w.txs {
		if len(tx.Ops) > 0 && tx.Outcome == TxCommitted {
			if _, lost := t.Lost[tx.Ops[0]]; lost {
				n++
			}
		}
	}
	return n
}

// Truth returns what Postgres knows of a relation. It is called after Resolve.
func (w *Writers) Truth(ctx context.Context, relation string) (*Truth, error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	t := &Truth{Relation: relation, WAL: w.Capture == WAL, Tidied: relation != Accounts, Lost: map[int64]int{}}
	if relation == Accounts {
		sum := int64(Sum)
		t.Sum = &sum
	}
	ids, err := collect[int64](ctx, conn, "SELECT tx FROM commits")
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	eras := map[int64]int{}
	w.mu.Lock()
	for _, tx := range w.txs {
		_, there := slices.BinarySearch(ids, tx.ID)
		for _, op := range tx.Ops {
			eras[op] = tx.Era
			if tx.Async && !there && tx.Outcome != TxRolledBack {
				t.Lost[op] = tx.Era
			}
		}
	}
	w.mu.Unlock()
	rows, err := conn.Query(ctx, "SELECT key, ver, op, txid, deleted, gone, COALESCE(blob, ''), at FROM history WHERE relation = $1", strings.TrimSuffix(relation, "_feed"))
	if err != nil {
		return nil, err
	}
	history, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Committed, err error) {
		err = row.Scan(&c.Key, &c.Ver, &c.Op, &c.Txid, &c.Deleted, &c.Gone, &c.Blob, &c.At)
		c.Era = eras[c.Op]
		return c, err
	})
	if err != nil {
		return nil, err
	}
	t.SetHistory(history)
	t.Final, err = w.Capture.Final(ctx, conn, relation)
	return t, err
}

// Final reads the rows of a relation as they are now.
func (c Capture) Final(ctx context.Context, conn *pgx.Conn, relation string) (map[string]FinalRow, error) {
	for _, set := range asDocuments {
		if _, err := conn.Exec(ctx, set); err != nil {
			return nil, err
		}
	}
	rows, err := conn.Query(ctx, c.final(relation))
	if err != nil {
		return nil, err
	}
	final := map[string]FinalRow{}
	var key string
	var r FinalRow
	_, err = pgx.ForEachRow(rows, []any{&key, &r.Txid, &r.Deleted, &r.Data}, func() error {
		final[key] = r
		return nil
	})
	return final, err
}

func collect[T any](ctx context.Context, conn *pgx.Conn, sql string) ([]T, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}
