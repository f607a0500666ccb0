package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// Newcomers copy from the sample schema. So this test checks what it promises, as the bridge's role.
func TestSampleSchema_StampsRowsAndKeepsDeletes(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	url := c.Database()
	for _, f := range []string{"01-schema.sql", "02-data.sql", "writer.sql", "writer.sql"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "sql", f))
		if err != nil {
			t.Fatal(err)
		}
		testenv.Exec(t, url, string(b))
	}
	bridge := strings.Replace(url, "postgres:sesame-3f9c@", "lockstep:lockstep@", 1)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, bridge)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "SELECT * FROM orders"); err == nil {
		t.Error("the bridge's role may read a table that the bridge does not publish")
	}

	rows := func(sql string) string {
		t.Helper()
		var s string
		if err := conn.QueryRow(ctx, sql).Scan(&s); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return s
	}
	for _, step := range []struct{ do, ask, want string }{
		{"UPDATE products SET txid = 1 WHERE id = 1", "SELECT (txid > 1)::text FROM products WHERE id = 1", "true"},
		{"DELETE FROM orders WHERE id = 20", "SELECT deleted::text FROM orders_feed WHERE id = 20", "true"},
		{"", "SELECT concat_ws(' ', deleted, product, txid = (SELECT txid FROM orders_feed f WHERE f.id = 20)) FROM order_lines WHERE id = 20", "t t"},
		{
			"INSERT INTO orders (id, product_id, customer, quantity) VALUES (20, 1, 'again', 1)",
			"SELECT string_agg(deleted::text, ',') FROM orders_feed WHERE id = 20", "false",
		},
		{"UPDATE orders SET id = 1000 WHERE id = 20", "SELECT string_agg(id || ' ' || deleted, ', ' ORDER BY id) FROM orders_feed WHERE id IN (20, 1000)", "20 true, 1000 false"},
		{"UPDATE products SET name = 'New' WHERE id = 1", "SELECT bool_and(l.txid >= p.txid)::text FROM order_lines l, products p WHERE p.id = 1 AND l.product = 'New'", "true"},
		{"TRUNCATE orders", "SELECT (count(*) FILTER (WHERE NOT deleted) || ' ' || (count(*) FILTER (WHERE deleted) > 15)) FROM orders_feed", "0 true"},
		{"", "SELECT (count(*) = (SELECT count(*) FROM orders_feed))::text FROM order_lines", "true"},
	} {
		if step.do != "" {
			testenv.Exec(t, url, step.do)
		}
		if got := rows(step.ask); got != step.want {
			t.Errorf("after %q: %s is %q, want %q", step.do, step.ask, got, step.want)
		}
	}
}
