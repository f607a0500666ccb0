package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A first load, then changes; a heartbeat behind each batch, and, where
// nothing happens, heartbeats that move on with Postgres.
func TestBridge_LoadsThenFollows_I1(t *testing.T) {
	needServers(t)
	// Others' transactions would hold xmin back in a cluster that is shared.
	db, broker := testenv.NewCluster(t).Database(), testenv.NATS(t)
	newTable(t, db, "t", 2500)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	first := f.converge(conn)
	if rows := f.messages(stream.KindRow, 0); len(rows) != 2500 || rows[2499].seq > first.seq {
		t.Errorf("got %d rows before the first heartbeat, want 2500", len(rows))
	}
	b.awaitReady()
	for i := range 5 {
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'changed %d' WHERE id <= 3", i), "INSERT INTO t (id) SELECT max(id) + 1 FROM t")
		xmin := snapshot(t, conn).Xmin
		if hb := f.converge(conn); hb.since < xmin {
			t.Errorf("heartbeat's since is %d, xmin was %d", hb.since, xmin)
		}
	}
	// Each heartbeat closes its batch: a row behind the last one has its own.
	rows := f.messages(stream.KindRow, first.seq)
	for _, r := range rows {
		f.await("heartbeat behind a row", r.seq, func(s seen) bool { return s.kind == stream.KindHeartbeat && s.snapshot.Visible(r.row.Txid) })
	}
	end := f.caughtUp()
	run(t, conn, "SELECT txid_current()")
	if hb := f.heartbeat(conn); hb.seq <= end || hb.since <= first.since {
		t.Errorf("heartbeat of the quiet relation at %d says %d, want it behind %d and above %d", hb.seq, hb.since, end, first.since)
	}
	if rows := f.messages(stream.KindRow, end+1); len(rows) != 0 {
		t.Errorf("%d rows of a quiet relation were sent again", len(rows))
	}
}
