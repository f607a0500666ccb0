package main_test

import (
	"fmt"
	"testing"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// crashing makes a cluster that writes WAL late, a table and a bridge that
// follows it.
func crashing(t *testing.T) (*testenv.Cluster, string, *bridge, *follower) {
	t.Helper()
	c := testenv.NewCluster(t, "wal_writer_delay=10s", "fsync=on")
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "t", 10)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.set(func() { f.crashes = true })
	f.converge(connect(t, db))
	return c, db, b, f
}

// A crash gives transaction IDs out again that a heartbeat had covered: the
// rows that then get them are not lost.
func TestBridge_PostgresGivesTxidsOutAgain_I7(t *testing.T) {
	needServers(t)
	c, db, _, f := crashing(t)
	for try := range 5 {
		conn := connect(t, db)
		run(t, conn, "CHECKPOINT", "BEGIN; INSERT INTO t VALUES (1000); ROLLBACK", "BEGIN; INSERT INTO t VALUES (1001); ROLLBACK")
		hb := f.heartbeat(conn)
		c.Kill()
		c.Start()
		conn = connect(t, db)
		run(t, conn, fmt.Sprintf("INSERT INTO t VALUES (%d, 'again')", 2000+try))
		txid := query[uint64](t, conn, "SELECT max(txid) FROM t")
		f.converge(conn)
		if txid < hb.snapshot.Xmax {
			return
		}
	}
	t.Fatal("no transaction ID was given out again")
}

// lose publishes what a transaction without synchronous commit did, and then
// crashes Postgres so that it never happened. commit may take several tries,
// because the WAL is written every 10 s, whenever that is.
func lose(t *testing.T, c *testenv.Cluster, db string, f *follower, commit func(conn *pgx.Conn, id int)) {
	t.Helper()
	for try := range 5 {
		id := 1000 + try
		conn := connect(t, db)
		commit(conn, id)
		f.heartbeat(conn)
		if err := f.differs(conn); err != nil {
			t.Fatal(err)
		}
		c.Kill()
		c.Start()
		conn = connect(t, db)
		lost := query[int](t, conn, "SELECT count(*) FROM t WHERE id = $1", id) == 0
		run(t, conn, "INSERT INTO t VALUES (5000, 'after') ON CONFLICT (id) DO UPDATE SET v = 'again'")
		f.converge(conn)
		if lost {
			return
		}
	}
	t.Fatal("no transaction was lost")
}

// A row that was committed asynchronously, published, and lost in a crash: the
// stream gets its old version back, or a delete.
func TestBridge_LostAsynchronousCommitIsRepaired_I1(t *testing.T) {
	needServers(t)
	c, db, b, f := crashing(t)
	lose(t, c, db, f, func(conn *pgx.Conn, id int) {
		run(t, conn, "SET synchronous_commit = off",
			fmt.Sprintf("BEGIN; INSERT INTO t VALUES (%d, 'ghost'); UPDATE t SET v = 'ghost' WHERE id = 1; COMMIT", id))
	})
	b.running()
}

// The same where the lost transaction had begun before a snapshot that is
// durable, in which it was still running.
func TestBridge_LostCommitOfAnOldTransactionIsRepaired_I1(t *testing.T) {
	needServers(t)
	c, db, b, f := crashing(t)
	lose(t, c, db, f, func(conn *pgx.Conn, id int) {
		run(t, conn, "SET synchronous_commit = off", "BEGIN", fmt.Sprintf("INSERT INTO t VALUES (%d, 'ghost')", id), "UPDATE t SET v = 'ghost' WHERE id = 1")
		xid := query[uint64](t, conn, "SELECT txid_current()")
		other := connect(t, db)
		for n := 0; ; n++ {
			run(t, other, "UPDATE t SET v = 'durable' WHERE id = 2")
			if hb := f.heartbeat(other); hb.durable > xid || n == 20 {
				break
			}
		}
		run(t, conn, "COMMIT")
	})
	b.running()
}
