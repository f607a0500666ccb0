package e2e_test

import (
	"strings"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// command runs one of the bridge's commands to its end, with its relations in
// the environment.
func command(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), env, args...)
	code, err := p.Wait(long)
	if err != nil {
		t.Fatal(err)
	}
	return code, p.Stdout(), p.Stderr()
}

// A stream is not filled from another database by mistake; adopt says that it
// is meant, and a bridge that runs takes it up.
func TestBridge_OtherSourceStopsUntilAdopted_I8(t *testing.T) {
	needServers(t)
	db, other, broker := testenv.Postgres(t), testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	newTable(t, other, "t", 5)
	conn, otherConn := connect(t, db), connect(t, other)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL()}
	if code, stdout, _ := command(t, env, "adopt", "t"); code != 0 || !strings.Contains(stdout, "nothing to adopt") {
		t.Errorf("bridge adopt of its own stream: exit status %d, %s", code, stdout)
	}
	b.stop()
	end := f.caughtUp()
	shown := f.messages(stream.KindHeartbeat, 0)
	before := f.meta()

	b = startBridge(t, other, broker.URL(), "t")
	const name = "SELECT current_database()"
	b.awaitReason("t", query[string](t, conn, name), query[string](t, otherConn, name), "bridge adopt")
	if got := f.caughtUp(); got != end {
		t.Errorf("the stream of another source grew from %d to %d", end, got)
	}
	env = []string{"DATABASE_URL=" + other, "NATS_URL=" + broker.URL()}
	if code, stdout, stderr := command(t, env, "adopt", "t"); code != 0 || !strings.Contains(stdout, "starts over") {
		t.Fatalf("bridge adopt: exit status %d\n%s%s", code, stdout, stderr)
	}
	f.convergeLate(otherConn)
	after, last := f.meta(), shown[len(shown)-1]
	if after.Incarnation == before.Incarnation || after.Floor <= last.since || after.Floor <= last.high {
		t.Errorf("got incarnation %s with floor %d, was %s and showed %d", after.Incarnation, after.Floor, before.Incarnation, last.high)
	}
	b.awaitReady()
}

// A history=log stream keeps every version.
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
	late := follow(t, nc, rel) // from the start, when all has happened
	late.converge(conn)
	if n := late.repeats(10, 0); n < 6 {
		t.Errorf("the log holds %d versions more than the first load's, want 6", n)
	}
	late.wantEpochs(2, b)
}

// A notification brings a row far sooner than the timer.
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
