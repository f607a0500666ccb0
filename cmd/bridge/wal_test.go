package main_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// newBare makes a table (id, v) to which nothing was added for the bridge.
func newBare(t *testing.T, db, name string, n int) {
	t.Helper()
	testenv.Exec(t, db,
		fmt.Sprintf("CREATE TABLE %s (id bigint PRIMARY KEY, v text)", name),
		fmt.Sprintf("INSERT INTO %s SELECT g, 'row ' || g FROM generate_series(1, %d) g", name, n))
}

// startWAL starts a bridge whose slot no other test has.
func startWAL(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	return startBridge(t, db, nats, tables, append([]string{"BRIDGE_NAME=" + slotOf(db)}, env...)...)
}

// slotOf names a slot after the database, which is the test's own.
func slotOf(db string) string { return "slot_" + databaseOf(db) }

func TestWAL_LoadsThenFollows_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10_000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	b.awaitReady()
	run(t, conn, "INSERT INTO t VALUES (0, 'new')", "UPDATE t SET v = 'changed' WHERE id <= 3", "DELETE FROM t WHERE id = 4",
		"UPDATE t SET id = 20000 WHERE id = 5")
	f.converge(conn)
	run(t, conn, "TRUNCATE t", "INSERT INTO t VALUES (1, 'after')")
	f.converge(conn)
	if n := len(f.messages(stream.KindFence, 0)); n != 1 {
		t.Errorf("%d epochs, want 1", n)
	}
}

func databaseOf(db string) string {
	return db[strings.LastIndex(db, "/")+1 : strings.IndexByte(db, '?')]
}

// setTables changes BRIDGE_TABLES for the next start.
func (b *bridge) setTables(tables string) {
	for i, e := range b.env {
		if strings.HasPrefix(e, "BRIDGE_TABLES=") {
			b.env[i] = "BRIDGE_TABLES=" + tables
		}
	}
}
