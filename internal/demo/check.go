package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
)

// checker compares what arrived with what Postgres holds.
type checker struct {
	t     testing.TB
	conn  *pgx.Conn
	alive func() error
}

// newChecker connects to the sample database. It sets the time zone, because the result of to_json depends on it.
func newChecker(t testing.TB, s *servers) *checker {
	c := &checker{t: t, conn: testenv.Conn(t, s.shop), alive: s.alive}
	if _, err := c.conn.Exec(t.Context(), "SET TimeZone = 'UTC'"); err != nil {
		t.Fatal("set the time zone: ", err)
	}
	return c
}

// probe writes an order for a new product, and waits until all followers have the rows as Postgres holds them, and a
// heartbeat after them. Then it deletes the order, and waits for that. It returns what arrived over HTTP.
func (c *checker) probe(ctx context.Context, all []*follower) []string {
	var product, order int64
	const insert = `
INSERT INTO products (name, price, tags, attributes)
VALUES ('Storm lantern', 49.50, '{demo,"two words"}', '{"made": "by make demo", "glass": null}') RETURNING id`
	const buy = `INSERT INTO orders (product_id, customer, quantity) VALUES ($1, 'you, "the newcomer"', 2) RETURNING id`
	err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, insert).Scan(&product); err != nil {
			return err
		}
		return tx.QueryRow(ctx, buy, product).Scan(&order)
	})
	if err != nil {
		c.t.Fatal("write a row: ", err)
	}
	id := strconv.FormatInt(order, 10)
	c.awaitRow(ctx, all, "products", strconv.FormatInt(product, 10))
	c.awaitRow(ctx, all, "orders_feed", id)
	c.awaitRow(ctx, all, "order_lines", id)
	came := find(all, "HTTP", "order_lines").shown(id)
	if _, err := c.conn.Exec(ctx, "DELETE FROM orders WHERE id = $1", order); err != nil {
		c.t.Fatal("delete a row: ", err)
	}
	c.awaitRow(ctx, all, "orders_feed", id)
	c.awaitRow(ctx, all, "order_lines", id)
	return append(came, find(all, "HTTP", "order_lines").shown(id)...)
}

// awaitRow waits until every follower of the relation has the row as Postgres holds it, and a heartbeat after it.
func (c *checker) awaitRow(ctx context.Context, all []*follower, relation, id string) {
	await(ctx, c.t, c.alive, func() error {
		want, err := c.rows(ctx, relation, id)
		if err != nil {
			return err
		}
		if len(want) != 1 {
			return fmt.Errorf("%s: Postgres holds %d rows with id %s", relation, len(want), id)
		}
		for _, f := range all {
			if f.relation != relation {
				continue
			}
			if err := f.has(id, want[id]); err != nil {
				return err
			}
		}
		return nil
	})
}

// compare waits until all followers have exactly what Postgres holds, and a heartbeat after it. Nobody may write
// meanwhile.
func (c *checker) compare(ctx context.Context, all []*follower) {
	for _, f := range all {
		await(ctx, c.t, c.alive, func() error {
			want, err := c.rows(ctx, f.relation, "")
			if err != nil {
				return err
			}
			for id, row := range want {
				if err := f.has(id, row); err != nil {
					return err
				}
			}
			if n := f.size(); n != len(want) {
				return fmt.Errorf("%s over %s: %d rows arrived, Postgres holds %d", f.relation, f.path, n, len(want))
			}
			return nil
		})
	}
}

// rows reads a relation from Postgres, or only one row of it if id is not empty.
func (c *checker) rows(ctx context.Context, relation, id string) (map[string]lockstep.Row, error) {
	const columns = `SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('txid', 'deleted')`
	var list string
	if err := c.conn.QueryRow(ctx, columns, relation).Scan(&list); err != nil {
		return nil, fmt.Errorf("%s: %w", relation, err)
	}
	query := fmt.Sprintf(`SELECT r.id::text, r.txid, r.deleted, (SELECT to_json(d)::text FROM (SELECT %s) d) FROM %s r
		WHERE $1 = '' OR r.id::text = $1`, list, pgx.Identifier{relation}.Sanitize())
	found, err := c.conn.Query(ctx, query, id)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", relation, err)
	}
	rows := make(map[string]lockstep.Row)
	var key, data string
	var txid int64
	var deleted bool
	_, err = pgx.ForEachRow(found, []any{&key, &txid, &deleted, &data}, func() error {
		rows[key] = lockstep.Row{Txid: uint64(txid), Deleted: deleted, Data: []byte(data)}
		return nil
	})
	return rows, err
}

func (f *follower) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.rows)
}

// has returns an error unless the follower has the row as Postgres holds it, byte for byte, and a heartbeat after it.
func (f *follower) has(id string, want lockstep.Row) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	where := fmt.Sprintf("%s over %s, id %s", f.relation, f.path, id)
	got, ok := f.rows[id]
	switch {
	case !ok && f.err != nil:
		return fmt.Errorf("%s: it did not arrive: %w", where, f.err)
	case !ok:
		return fmt.Errorf("%s: it did not arrive", where)
	case got.Txid != want.Txid || got.Deleted != want.Deleted || string(got.Data) != string(want.Data):
		return fmt.Errorf("%s:\n  arrived   txid %d, deleted %t, %s\n  Postgres  txid %d, deleted %t, %s", where,
			got.Txid, got.Deleted, got.Data, want.Txid, want.Deleted, want.Data)
	case f.heartbeats == got.heartbeats:
		return fmt.Errorf("%s: no heartbeat followed", where)
	}
	return nil
}
