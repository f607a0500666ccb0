package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// sqlOf runs what bridge sql prints for a relation, twice, and returns what it says to put into BRIDGE_TABLES.
func sqlOf(t *testing.T, db, tables string) string {
	t.Helper()
	conn := connect(t, db)
	code, sql, stderr := command(t, []string{"DATABASE_URL=" + db}, "sql", "-role", query[string](t, conn, "SELECT current_user"), tables)
	if code != 0 {
		t.Fatalf("bridge sql: exit status %d\n%s", code, stderr)
	}
	psql(t, db, sql)
	psql(t, db, sql) // it may run again
	return entryOf(t, sql)
}

// awaitKeyless waits until the metric says how many rows are left out.
func (b *bridge) awaitKeyless(relation string, want int) {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		if n := b.metric(`lockstep_bridge_keyless_rows{relation="` + relation + `"}`); n != want {
			return fmt.Errorf("the metric says that %d rows have no key, want %d", n, want)
		}
		return nil
	})
}

// Some rows of a table have NULL in their key: its only unique index allows that. They are counted, reported and left out,
// and the table goes on. An UPDATE that sets a key to NULL deletes the old key. The table's own DELETE and TRUNCATE still
// work.
func TestBridge_NullKeyOfATableIsLeftOut_I10(t *testing.T) {
	needServers(t)
	for name, unique := range map[string]string{"nulls distinct": "UNIQUE", "nulls not distinct": "UNIQUE NULLS NOT DISTINCT"} {
		t.Run(name, func(t *testing.T) {
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, "CREATE TABLE domains (name text "+unique+", v int)", "INSERT INTO domains VALUES ('a', 1), (NULL, 2), ('c', 3), ('d', 4)")
			b := startBridge(t, db, broker.URL(), sqlOf(t, db, "domains"))
			rel := table{schema: "public", name: "domains_lockstep", txid: "txid", deleted: "deleted", key: "name", published: "name IS NOT NULL"}
			f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
			f.converge(conn)
			b.logged(`"level":"warn"`, `"rows":1`, "rows are not published", "NULL")
			b.awaitKeyless("public.domains_lockstep", 1)
			run(t, conn, "DELETE FROM domains WHERE name IS NULL", "UPDATE domains SET name = NULL, v = 5 WHERE name = 'a'", "UPDATE domains SET v = 6 WHERE name = 'c'")
			f.converge(conn)
			run(t, conn, "UPDATE domains SET name = 'e' WHERE name IS NULL", "DELETE FROM domains WHERE name = 'c'")
			f.converge(conn)
			run(t, conn, "INSERT INTO domains VALUES (NULL, 7)", "UPDATE domains SET name = 'a' WHERE name = 'e'")
			f.converge(conn)
			b.restart()
			run(t, conn, "UPDATE domains SET v = 8")
			f.converge(conn)
			b.awaitKeyless("public.domains_lockstep", 1)
			run(t, conn, "TRUNCATE domains")
			f.converge(conn)
			b.awaitReady()
		})
	}
}

// Some rows of a view have NULL in their key. They are left out, in batches and in comparisons, and a comparison deletes
// the key of a row that has none any more.
func TestBridge_NullKeyOfAViewIsLeftOut_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 2000)
	conn := connect(t, db)
	run(t, conn, "CREATE VIEW v AS SELECT CASE WHEN v <> 'none' THEN id END AS k, id % 10 AS l, v, txid FROM t", "UPDATE t SET v = 'none' WHERE id % 100 = 3")
	b := startBridge(t, db, broker.URL(), "v(key=k+l)")
	rel := named("v")
	rel.published = "k IS NOT NULL"
	f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
	f.set(func() { f.repairs = true })
	f.converge(conn)
	b.awaitKeyless("public.v", 20)
	run(t, conn, "UPDATE t SET v = 'none' WHERE id = 7", "UPDATE t SET v = 'some' WHERE id = 103", "INSERT INTO t VALUES (3001, 'none')")
	reconciled(t, broker.URL(), "v", "1980 rows compared: 0 missing, 0 stale, 1 zombie, repaired")
	f.converge(conn)
	reconciled(t, broker.URL(), "v", "1980 rows compared: 0 missing, 0 stale, 0 zombies")
	b.running()
}

// Rows of a view share a key. The bridge says so, as it does for a table without a unique index.
func TestBridge_SharedKeyOfAViewIsReported_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	run(t, connect(t, db), "CREATE VIEW twice AS SELECT id / 2 AS k, v, txid FROM t", "CREATE VIEW each AS SELECT id AS k, v, txid FROM t")
	b := startBridge(t, db, broker.URL(), "twice(key=k),each(key=k)")
	b.logged(`"level":"warn"`, "relation captured with a problem", "twice", "is not unique")
	b.awaitReady()
	if log := b.Stderr(); strings.Contains(log, `each: its key`) {
		t.Errorf("the view whose key is unique is reported:\n%s", log)
	}
}

// NULL keys in the WAL, in a state and in a log.
func TestWAL_NullKeyIsLeftOut_I10(t *testing.T) {
	needServers(t)
	for name, options := range map[string]string{"latest": "", "log": ";history=log;max_age=1h"} {
		t.Run(name, func(t *testing.T) {
			db := testenv.Postgres(t)
			testenv.Exec(t, db, "CREATE TABLE domains (name text UNIQUE, v int)", "INSERT INTO domains VALUES ('a', 1), (NULL, 2), ('c', 3), (NULL, 4)")
			tables := sqlOf(t, db, "domains(capture=wal"+options+")")
			s := newSceneIn(t, db, tables, table{schema: "public", name: "domains", key: "name", published: "name IS NOT NULL", log: options != ""})
			s.f.converge(s.conn)
			s.b.awaitKeyless("public.domains", 2)
			s.run("DELETE FROM domains WHERE v = 2", "UPDATE domains SET name = NULL, v = 5 WHERE name = 'a'", "UPDATE domains SET v = 6 WHERE name = 'c'", "INSERT INTO domains VALUES (NULL, 7), ('d', 8)")
			s.f.converge(s.conn)
			s.run("UPDATE domains SET name = 'e' WHERE v = 5", "DELETE FROM domains WHERE name = 'c'", "UPDATE domains SET v = v + 1")
			s.f.converge(s.conn)
			s.whileAway("UPDATE domains SET name = NULL WHERE name = 'e'", "UPDATE domains SET name = 'f' WHERE name = 'd'")
			s.converge()
		})
	}
}

// A whole relation is read from a table where the rows of the first pages have NULL in the last column of their keys.
func TestWAL_LoadPassesNullKeys_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", table{schema: "public", name: "t", published: "b IS NOT NULL"}, "CREATE TABLE t (a int, b int, UNIQUE (a, b))", "ALTER TABLE t REPLICA IDENTITY FULL",
		"INSERT INTO t SELECT g, CASE WHEN g > 3000 THEN 1 END FROM generate_series(1, 4000) g")
	s.f.converge(s.conn)
	s.b.awaitKeyless("public.t", 1000) // it counts no further
}

// Two array keys differ in where they begin, and have the same JSON. Clients could not tell them apart: the one that does
// not begin with element 1 is left out, and so is its delete. If a key becomes such a one, its row is deleted.
func TestBridge_ArrayKeysOfOneJSON_I1(t *testing.T) {
	needServers(t)
	for _, capture := range []string{"poll", "wal"} {
		t.Run(capture, func(t *testing.T) {
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, "CREATE TABLE t (k int[] PRIMARY KEY, v int)", "INSERT INTO t VALUES ('{1,2}', 1), ('[0:1]={1,2}', 2), ('{}', 3)")
			rel := table{schema: "public", name: "t_lockstep", txid: "txid", deleted: "deleted", key: "k", published: "ascii(k::text) <> ascii('[')"}
			tables := "t"
			if capture == "wal" {
				rel.name, rel.txid, rel.deleted, tables = "t", "", "", "t(capture=wal)"
			}
			b := startWAL(t, db, broker.URL(), sqlOf(t, db, tables))
			f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
			f.converge(conn)
			b.awaitKeyless("public."+rel.name, 1)
			for _, change := range []string{
				"UPDATE t SET v = v + 1", "DELETE FROM t WHERE k = '[0:1]={1,2}'", "UPDATE t SET k = '[5:6]={1,2}' WHERE k = '{1,2}'",
				"INSERT INTO t VALUES ('{1,2}', 4)", "DELETE FROM t WHERE k = '{1,2}'", "UPDATE t SET k = '{1,2}' WHERE k <> '{}'", "INSERT INTO t VALUES ('[7:8]={1,2}', 5)",
			} {
				run(t, conn, change)
				f.converge(conn)
			}
			reconciled(t, broker.URL(), rel.name, "2 rows compared: 0 missing, 0 stale, 0 zombies")
		})
	}
}
