package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// If rows have no txid, the bridge logs how many; and which UPDATE to run, if the column is
// the bridge's. The rows come after that UPDATE.
func TestBridge_RowsWithoutTxidAreReported_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text, txid bigint)", "CREATE INDEX ON t (txid)",
		"COMMENT ON COLUMN t.txid IS 'lockstep bridge: ID of the transaction that last wrote the row'",
		"INSERT INTO t VALUES (1, 'stamped', txid_current()), (2, 'not', NULL), (3, 'not', NULL), (4, 'not', NULL)")
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	b.logged(`"level":"warn"`, `"rows":3`, "UPDATE", "txid IS NULL")
	f.heartbeat(conn)
	if got := f.state(); len(got) != 1 {
		t.Errorf("got %q, want only the row that has a txid", got)
	}
	run(t, conn, "UPDATE t SET txid = txid_current() WHERE txid IS NULL")
	f.converge(conn)
}

// A column that holds the application's own numbers may hold negative ones. Such rows are counted and left out, and the
// others go on, also in a comparison.
func TestBridge_NegativeTxidStopsNothing_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text, txid bigint NOT NULL DEFAULT txid_current())", "CREATE INDEX ON t (txid)",
		"INSERT INTO t VALUES (1, 'a'), (2, 'b')", "INSERT INTO t VALUES (3, 'odd', -5), (4, 'odd', -1::bigint << 62)")
	b := startBridge(t, db, broker.URL(), "t")
	rel := named("t")
	rel.published = "txid >= 0"
	f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
	f.converge(conn)
	b.logged(`"level":"warn"`, `"rows":2`, "rows have no txid")
	run(t, conn, "UPDATE t SET v = 'c', txid = txid_current() WHERE id = 1", "INSERT INTO t VALUES (5, 'odd', -6)")
	f.converge(conn)
	reconciled(t, broker.URL(), "t", "2 rows compared: 0 missing, 0 stale, 0 zombies")
	b.restart()
	run(t, conn, "UPDATE t SET v = 'd', txid = txid_current() WHERE id = 2")
	f.converge(conn)
	b.awaitReady()
}

// Rows of a restored dump have txids above the cluster's own. They arrive once and raise no position. Later polls and
// starts do not send them again, once they are known to be durable.
func TestBridge_RestoredStampsComeOnce_I3(t *testing.T) {
	needServers(t)
	// In a shared cluster, transactions of other tests would hold the durable snapshot back.
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	const ahead, restored = 1_000_000_000, 2500
	run(t, conn, "SET session_replication_role = replica", fmt.Sprintf("INSERT INTO t SELECT g, 'restored', %d + g FROM generate_series(100, %d) g", ahead, 100+restored-1), "RESET session_replication_role")
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b.logged(`"level":"warn"`, fmt.Sprintf(`"rows":%d`, restored), "UPDATE")
	for range 2 {
		run(t, conn, "UPDATE t SET v = v || '!' WHERE id = 1")
		hb := f.converge(conn)
		if hb.high >= ahead || hb.since >= ahead {
			t.Errorf("the restored rows raised High to %d, and since to %d", hb.high, hb.since)
		}
		f.await("heartbeat that knows the rows to be durable", hb.seq, func(s seen) bool {
			return s.kind == stream.KindHeartbeat && s.durable >= hb.snapshot.Xmax
		})
		b.stop()
		b.start()
		f.heartbeatFrom(f.await("fence", hb.seq, func(s seen) bool { return s.kind == stream.KindFence }).seq)
	}
	run(t, conn, "UPDATE t SET v = 'stamped again' WHERE id = 100")
	f.converge(conn)
	if n := f.repeats(10+restored, 0); n > 100 {
		t.Errorf("%d rows were sent again", n)
	}
	f.heartbeatFrom(f.caughtUp() + 1)
}
