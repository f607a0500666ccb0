package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// Postgres is away when the bridge starts. Later it is restarted and killed. The bridge stays up, says why it is not
// ready, and goes on by itself, with few rows sent again.
func TestBridge_RidesOutPostgres_I7(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "t", 1500)
	c.Stop()
	b := startBridge(t, db, broker.URL(), "t")
	b.awaitReason("t", "connect")
	c.Start()
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.set(func() { f.crashes = true })
	f.converge(connect(t, db))
	for i, end := range []func(){func() { c.Restart() }, func() { c.Kill(); c.Start() }, func() { c.Kill(); b.awaitReason("t", "connect"); c.Start() }} {
		run(t, connect(t, db), fmt.Sprintf("UPDATE t SET v = 'before %d' WHERE id <= 3", i))
		end()
		conn := connect(t, db)
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'after %d' WHERE id IN (1, 4)", i))
		f.converge(conn)
		b.running()
		b.awaitReady()
	}
	if n := f.repeats(1500, 0); n > 100 {
		t.Errorf("%d rows more than the relation has were sent for some 20 changes, want at most 100", n)
	}
	if strings.Contains(b.Stderr(), "sesame") {
		t.Error("the log contains the password")
	}
}

// The broker is away when the bridge starts. Later it is restarted and killed, while rows change. The bridge stays up,
// says why it is not ready, and goes on by itself.
func TestBridge_RidesOutTheBroker_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newTable(t, db, "t", 5000)
	conn := connect(t, db)
	broker.Kill()
	b := startBridge(t, db, broker.URL(), "t")
	b.awaitReason("", "broker")
	broker.Start()
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	for i, end := range []func(){broker.Kill, broker.Stop, broker.Kill} {
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'before %d' WHERE id <= 2000", i))
		f.stop()
		end()
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'meanwhile %d' WHERE id BETWEEN 1000 AND 3000", i))
		b.awaitReason("", "broker")
		broker.Start()
		// The broker may have lost what it had stored, so the follower reads from the start.
		f = follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
		f.converge(conn)
		b.running()
		b.awaitReady()
	}
}
