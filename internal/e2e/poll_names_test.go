package e2e_test

import (
	"testing"

	"bridge/internal/testenv"
)

// Rows with names and keys of every kind arrive, change and are deleted. After a restart the bridge reads the keys back
// from the stream.
func TestBridge_NamesAndKeysOfEveryKind_I1(t *testing.T) {
	needServers(t)
	const values = `(VALUES ('a.b'), (' '), (''), (E'line\nbreak'), ('ümlaut 💡'), ('*'), ('>'), ('='), ('it''s "quoted" \ {,}'),
		('NULL'), (E'tab\there'), (repeat('k', 500)), (repeat('=', 100))) k(k)`
	cases := []struct {
		name, tables string
		rel          table
		setup        []string
		change       string
	}{
		{"text", "t", named("t"), []string{
			"CREATE TABLE t (k text PRIMARY KEY, v text, txid bigint NOT NULL DEFAULT txid_current())",
			"INSERT INTO t SELECT k FROM " + values,
		}, "UPDATE t SET v = 'changed', txid = txid_current()"},
		{"4 KB", "long(key=k)", named("long"), []string{
			"CREATE TABLE t (id int PRIMARY KEY, v text, txid bigint NOT NULL DEFAULT txid_current())",
			"CREATE VIEW long AS SELECT repeat('k', 4096) || id AS k, v, txid FROM t", "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 30) g",
		}, "UPDATE t SET v = 'changed', txid = txid_current() WHERE id < 20"},
		{"composite", "t", named("t"), []string{
			"CREATE TABLE t (v text, b text, a int, txid bigint NOT NULL DEFAULT txid_current(), PRIMARY KEY (a, b))",
			"INSERT INTO t SELECT 'v', k, g FROM generate_series(-1, 1) g, " + values,
		}, "UPDATE t SET v = 'changed', txid = txid_current() WHERE a = 1"},
		{"uuid", "t", named("t"), []string{
			"CREATE TABLE t (k uuid PRIMARY KEY DEFAULT gen_random_uuid(), v int, txid bigint NOT NULL DEFAULT txid_current())",
			"INSERT INTO t (v) SELECT g FROM generate_series(1, 50) g",
		}, "UPDATE t SET v = v + 1, txid = txid_current() WHERE v > 20"},
		{"timestamps", "t", named("t"), []string{
			"CREATE TABLE t (k timestamptz, l numeric(10,3), m bytea, v int, txid bigint NOT NULL DEFAULT txid_current(), PRIMARY KEY (m, k, l))",
			"INSERT INTO t SELECT '2024-02-29 12:00:00.123456+05:30'::timestamptz + g * interval '1 month', g / 3.0, decode('00ff5c', 'hex'), g FROM generate_series(1, 50) g",
		}, "UPDATE t SET v = v + 1, txid = txid_current() WHERE v > 20"},
		{
			"quoted", `"Mixed Case"."order.items *"(key="The.Key";txid="Tx Id";deleted="gone?")`,
			table{schema: "Mixed Case", name: "order.items *", txid: "Tx Id", deleted: "gone?"},
			[]string{
				`CREATE SCHEMA "Mixed Case"`,
				`CREATE TABLE "Mixed Case"."order.items *" ("The.Key" varchar(9) NOT NULL UNIQUE, "Väl""ue" text, "Tx Id" bigint NOT NULL DEFAULT txid_current(), "gone?" timestamptz)`,
				`INSERT INTO "Mixed Case"."order.items *" SELECT 'Key ' || g, 'v' FROM generate_series(1, 20) g`,
			},
			`UPDATE "Mixed Case"."order.items *" SET "gone?" = now(), "Tx Id" = txid_current() WHERE "The.Key" = 'Key 7'`,
		},
		{"xid8", "t", table{schema: "public", name: "t", txid: "txid", deleted: "deleted"}, []string{
			"CREATE TABLE t (k int PRIMARY KEY, txid xid8 NOT NULL DEFAULT pg_current_xact_id(), deleted boolean NOT NULL DEFAULT false)",
			"INSERT INTO t SELECT g FROM generate_series(1, 2000) g",
		}, "UPDATE t SET deleted = true, txid = pg_current_xact_id() WHERE k % 3 = 0"},
		{"partitioned", "t", named("t"), []string{
			"CREATE TABLE t (k int PRIMARY KEY, v text, txid bigint NOT NULL DEFAULT txid_current()) PARTITION BY RANGE (k)",
			"CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)", "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (100)",
			"CREATE INDEX ON t (txid)", "INSERT INTO t SELECT g, 'v' FROM generate_series(1, 30) g",
		}, "UPDATE t SET v = 'changed', txid = txid_current() WHERE k IN (3, 13)"},
		{"view", `joined(key=id+"Nr")`, named("joined"), []string{
			`CREATE TABLE o (id int PRIMARY KEY, who text, txid bigint NOT NULL DEFAULT txid_current())`,
			`CREATE TABLE l (id int, "Nr" int, what text, txid bigint NOT NULL DEFAULT txid_current(), PRIMARY KEY (id, "Nr"))`,
			`CREATE VIEW joined AS SELECT who, id, "Nr", what, greatest(o.txid, l.txid) AS txid FROM o JOIN l USING (id)`,
			"INSERT INTO o SELECT g, 'who' FROM generate_series(1, 10) g", "INSERT INTO l SELECT g, n, 'what' FROM generate_series(1, 10) g, generate_series(1, 5) n",
		}, "UPDATE o SET who = 'she', txid = txid_current() WHERE id = 3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, c.setup...)
			b := startBridge(t, db, broker.URL(), c.tables)
			f := follow(t, testenv.NATSConn(t, broker.URL()), c.rel)
			f.converge(conn)
			run(t, conn, c.change)
			f.converge(conn)
			b.stop()
			b.start()
			run(t, conn, c.change)
			f.converge(conn)
			if len(f.state()) == 0 {
				t.Error("nothing arrived")
			}
		})
	}
}
