package e2e_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// A first load arrives, and then changes. A heartbeat follows each batch. The heartbeats of a quiet relation move on with
// Postgres' transactions, and send no row again.
func TestBridge_LoadsThenFollows_I1(t *testing.T) {
	needServers(t)
	// In a shared cluster, transactions of other tests would hold xmin back.
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 2500)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	first := f.converge(conn)
	if rows := f.messages(stream.KindRow, 0); len(rows) != 2500 || rows[2499].seq > first.seq {
		t.Errorf("got %d rows, want 2500, all before the first heartbeat", len(rows))
	}
	b.awaitReady()
	for i := range 5 {
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'changed %d' WHERE id <= 3", i), "INSERT INTO t (id) SELECT max(id) + 1 FROM t")
		xmin := snapshot(t, conn).Xmin
		if hb := f.converge(conn); hb.since < xmin {
			t.Errorf("the heartbeat's since is %d, want at least %d, xmin before it", hb.since, xmin)
		}
	}
	// Each batch ends with a heartbeat: after every row comes one that covers it.
	rows := f.messages(stream.KindRow, first.seq)
	for _, r := range rows {
		f.await("heartbeat after a row", r.seq, func(s seen) bool { return s.kind == stream.KindHeartbeat && s.snapshot.Visible(r.row.Txid) })
	}
	end := f.caughtUp()
	run(t, conn, "SELECT txid_current()")
	if hb := f.heartbeat(conn); hb.seq <= end || hb.since <= first.since {
		t.Errorf("the quiet relation's heartbeat at %d has since %d, want it after %d and above %d", hb.seq, hb.since, end, first.since)
	}
	if rows := f.messages(stream.KindRow, end+1); len(rows) != 0 {
		t.Errorf("%d rows of a quiet relation were sent again", len(rows))
	}
}

// A stream with history=log keeps every version of a row. A reader that comes late, after a restart of the bridge too,
// finds them all.
func TestBridge_LogKeepsEveryVersion_I4(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t(history=log;max_age=1h)")
	rel := named("t")
	rel.log = true
	nc := testenv.NATSConn(t, broker.URL())
	f := follow(t, nc, rel)
	f.converge(conn)
	for range 5 {
		run(t, conn, "UPDATE t SET v = v || '!' WHERE id = 3")
		f.converge(conn)
	}
	b.restart()
	run(t, conn, "UPDATE t SET v = v || '!' WHERE id = 3")
	f.converge(conn)
	late := follow(t, nc, rel) // from the start, after all of it
	late.converge(conn)
	if n := late.repeats(10, 0); n < 6 {
		t.Errorf("the log has %d versions more than the first load, want 6", n)
	}
	late.wantEpochs(2, b)
}

// With the trigger of bridge sql, a notification brings a row within 5 s, though the bridge polls once a minute.
func TestBridge_NotificationWakes(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	env := []string{"DATABASE_URL=" + db}
	code, sql, stderr := command(t, env, "sql", "-no-tombstones", "t")
	if code != 0 {
		t.Fatalf("bridge sql: exit status %d\n%s", code, stderr)
	}
	psql(t, db, sql)
	startBridge(t, db, broker.URL(), "t", "BRIDGE_POLL_INTERVAL=1m", "BRIDGE_HEARTBEAT_INTERVAL=10s")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.heartbeatFrom(0)
	testenv.Eventually(t, long, func() error { return listens(t, conn) })
	for range 3 {
		begun := time.Now()
		run(t, conn, "UPDATE t SET v = v || '!' WHERE id = 1")
		txid := query[uint64](t, conn, "SELECT txid FROM t WHERE id = 1")
		row := f.awaitWithin(5*time.Second, "row", 0, func(s seen) bool { return s.kind == stream.KindRow && s.row.Txid == txid })
		t.Logf("the row took %s", row.at.Sub(begun))
	}
	f.converge(conn)
}

// listens returns an error until the bridge listens for notifications.
func listens(t *testing.T, conn *pgx.Conn) error {
	t.Helper()
	if !query[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN lockstep')") {
		return errors.New("the bridge does not listen")
	}
	return nil
}

// The server drops a batch that is silent for 10 s. A query that takes longer does not end the epoch, because the bridge
// sends signs of life.
func TestBridge_SlowQueryKeepsTheEpoch_I6(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	testenv.Exec(t, db, "CREATE TABLE slow (until timestamptz)", `CREATE FUNCTION wait() RETURNS boolean STABLE LANGUAGE plpgsql AS
		$$BEGIN PERFORM pg_sleep(extract(epoch FROM max(until) - clock_timestamp())) FROM slow; RETURN true; END$$`,
		"CREATE VIEW lazy AS SELECT * FROM t WHERE wait()")
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "lazy(key=id)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("lazy"))
	first := f.converge(conn)
	run(t, conn, "INSERT INTO slow VALUES (now() + interval '12 s')", "UPDATE t SET v = 'slow' WHERE id = 1")
	begun := first.at
	hb := f.converge(conn)
	if took := hb.at.Sub(begun).Seconds(); took < 11 {
		t.Fatalf("the query took %.1f s, want at least 11: the test shows nothing", took)
	}
	f.wantEpochs(1, b)
	b.awaitReady()
}
