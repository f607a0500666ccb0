package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A relation joins BRIDGE_TABLES, leaves, and joins again, each time over a restart. The publication follows, and the
// other relation is not read again.
func TestWAL_TablesComeAndGo(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	for _, name := range []string{"t", "u"} {
		newBare(t, db, name, 100)
	}
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	nc := testenv.NATSConn(t, broker.URL())
	f := follow(t, nc, bare("t"))
	f.converge(conn)
	tables := func(names string) {
		b.Kill()
		b.setTables(names)
		run(t, conn, "DELETE FROM t WHERE id = (SELECT min(id) FROM t)")
		b.start()
	}
	tables("t(capture=wal),u(capture=wal)")
	g := follow(t, nc, bare("u"))
	g.converge(conn)
	f.converge(conn)
	tables("t(capture=wal)")
	f.converge(conn)
	testenv.Eventually(t, long, func() error {
		if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 1 {
			return fmt.Errorf("%d tables are published, want 1", n)
		}
		return nil
	})
	if n := len(f.messages(stream.KindRow, 0)); n > 110 {
		t.Errorf("%d rows of t were sent for 100 rows and 2 deletes, want at most 110", n)
	}
	run(t, conn, "DELETE FROM u WHERE id < 50", "INSERT INTO u VALUES (1000, 'while it was out')")
	tables("t(capture=wal),u(capture=wal)")
	g.converge(conn)
}

// A relation moves from polling to the WAL and back, several times. Stream and incarnation stay, and only rows that
// changed are sent. Back at polling, the log says to run bridge reconcile.
func TestWAL_SwitchOfCapture_I3(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 2000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	incarnation := f.incarnation
	for i, tables := range []string{"t(capture=wal)", "t", "t(capture=wal)", "t(capture=wal)", "t"} {
		b.Kill()
		was := f.caughtUp()
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'away %d' WHERE id <= 10", i), fmt.Sprintf("INSERT INTO t (id, v) VALUES (%d, 'new')", 5000+i))
		if strings.Contains(tables, "wal") { // the WAL has what polls do not see
			run(t, conn, fmt.Sprintf("DELETE FROM t WHERE id = %d", 100+i), fmt.Sprintf("UPDATE t SET id = %d WHERE id = %d", 9000+i, 200+i))
		}
		b.setTables(tables)
		b.start()
		f.converge(conn)
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'live %d' WHERE id <= 10", i))
		f.converge(conn)
		if f.incarnation != incarnation {
			t.Fatalf("switch %d: another incarnation began", i)
		}
		if sent := f.end() - was; sent > 400 {
			t.Errorf("switch %d: %d messages for some 30 rows that changed, want at most 400", i, sent)
		}
	}
	b.logged("captured from the WAL before", "bridge reconcile", `"table":"t"`)
	b.logged("no relation has capture=wal", "pg_drop_replication_slot", `"slot":"`+slotOf(db)+`"`)
}
