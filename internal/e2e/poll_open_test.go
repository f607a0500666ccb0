package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A transaction that has written and stays open holds since back, but not the rows of others. Its own rows come when it
// commits. A restart of the bridge meanwhile changes nothing.
func TestBridge_OpenTransactionHoldsSinceNotRows_I3(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "t", 10)
	conn, open := connect(t, db), connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	first := f.converge(conn)

	run(t, open, "BEGIN", "UPDATE t SET v = 'late' WHERE id = 1", "INSERT INTO t VALUES (-1, 'late')")
	xid := query[uint64](t, open, "SELECT txid_current()")
	insert := func(from, to int) seen {
		for i := from; i < to; i++ {
			run(t, conn, fmt.Sprintf("INSERT INTO t SELECT g, 'flows' FROM generate_series(%d, %d) g", 1000*i, 1000*i+299))
		}
		hb := f.converge(conn)
		if hb.since != xid {
			t.Errorf("the heartbeat's since is %d, want %d, the transaction that is still open", hb.since, xid)
		}
		return hb
	}
	insert(1, 5)
	if n := f.repeats(4*300, first.seq); n > 1200 { // a session's first poll reads from the durable snapshot on
		t.Errorf("%d rows were sent again", n)
	}
	insert(5, 10)
	b.restart()
	again := insert(10, 12)
	end := f.caughtUp()
	insert(12, 13)
	if n := f.repeats(300, end+1); n > 4000 { // if the pool made another connection, all since the transaction began come once more
		t.Errorf("%d rows were sent again in one session", n)
	}
	run(t, open, "COMMIT")
	hb := f.converge(conn)
	f.await("heartbeat with a since above the transaction's ID", hb.seq, func(s seen) bool { return s.kind == stream.KindHeartbeat && s.since > xid })
	late := f.await("row of the open transaction", again.seq, func(s seen) bool { return s.kind == stream.KindRow && s.row.Txid == xid })
	if late.seq > hb.seq {
		t.Errorf("I2: the row is at %d, after the heartbeat at %d that covers it", late.seq, hb.seq)
	}
}

// Prepared transactions hold since back, also over a restart of Postgres. Their rows come after COMMIT PREPARED, and
// never after ROLLBACK PREPARED.
func TestBridge_PreparedTransactionsComeWhenTheyCommit_I3(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	run(t, conn, "BEGIN", "UPDATE t SET v = 'committed' WHERE id = 1")
	xid := query[uint64](t, conn, "SELECT txid_current()")
	run(t, conn, "PREPARE TRANSACTION 'one'", "BEGIN", "UPDATE t SET v = 'undone' WHERE id = 2", "PREPARE TRANSACTION 'two'")
	run(t, conn, "UPDATE t SET v = 'flows' WHERE id = 3")
	if hb := f.converge(conn); hb.since != xid {
		t.Errorf("the heartbeat's since is %d, want %d, the transaction that is prepared", hb.since, xid)
	}
	c.Restart() // prepared transactions stay
	conn = connect(t, db)
	run(t, conn, "COMMIT PREPARED 'one'", "ROLLBACK PREPARED 'two'")
	if hb := f.converge(conn); hb.since <= xid+1 {
		t.Errorf("the heartbeat's since is %d after both transactions have ended, want it above %d", hb.since, xid+1)
	}
	b.running()
}
