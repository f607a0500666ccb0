package e2e_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// crashing starts a cluster that flushes WAL late, so that a crash loses transactions, and a bridge that captures a table
// of it.
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

// giveOutAgain crashes Postgres so that a row gets a transaction ID below a since that was shown before the crash. It
// returns the heartbeat with that since, and the row's ID.
func giveOutAgain(t *testing.T, c *testenv.Cluster, db string, f *follower) (shown seen, row int) {
	t.Helper()
	for try := range 5 {
		conn := connect(t, db)
		run(t, conn, "CHECKPOINT", "BEGIN; INSERT INTO t VALUES (1000); ROLLBACK", "BEGIN; INSERT INTO t VALUES (1001); ROLLBACK")
		hb := f.heartbeat(conn)
		c.Kill()
		c.Start()
		conn = connect(t, db)
		row = 2000 + try
		run(t, conn, fmt.Sprintf("INSERT INTO t VALUES (%d, 'again')", row))
		txid := query[uint64](t, conn, "SELECT max(txid) FROM t")
		f.convergeLate(conn)
		if txid < hb.since {
			return hb, row
		}
	}
	t.Fatal("no transaction ID was given out again")
	return seen{}, 0
}

// After a crash, Postgres gives out transaction IDs again that a heartbeat had covered. Rows that get them are not lost.
func TestBridge_PostgresGivesTxidsOutAgain_I7(t *testing.T) {
	needServers(t)
	c, db, _, f := crashing(t)
	giveOutAgain(t, c, db, f)
}

// Also the broker loses the stream, and with it the row's place. A client that was away since before the crash still gets
// the row: it stands at or after the place at which the search for the client's since ends.
func TestBridge_TxidsGivenOutAgainThenTheStreamIsLost_I3(t *testing.T) {
	needServers(t)
	c, db, _, f := crashing(t)
	shown, row := giveOutAgain(t, c, db, f)
	conn := connect(t, db)
	for snapshot(t, conn).Xmin <= shown.since {
		run(t, conn, "UPDATE t SET v = 'later' WHERE id = 1")
	}
	if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
		t.Fatal(err)
	}
	again := follow(t, f.js.Conn(), f.rel)
	again.set(func() { again.crashes = true })
	again.converge(conn)
	subject := again.layout.Rows()
	subject = subject[:len(subject)-1] + strconv.Itoa(row)
	for _, s := range again.messages(stream.KindRow, 0) {
		switch {
		case s.high >= shown.since:
			return // the search begins here, or before
		case strings.HasPrefix(s.key, subject+" "):
			t.Fatalf("row %d has High %d: a client that was shown since %d starts after it", row, s.high, shown.since)
		}
	}
	t.Fatalf("no message has a High of at least %d", shown.since)
}

// lose waits until an asynchronous commit is published, and then crashes Postgres, so that the transaction never
// happened. It may take several tries, because Postgres writes the WAL every 10 s, and the test does not know when.
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
		f.convergeLate(conn)
		if lost {
			return
		}
	}
	t.Fatal("no transaction was lost: the test shows nothing")
}

// Rows were committed asynchronously and published, and a crash of Postgres lost the commit. The stream gets the old
// version back, or a delete if there is none.
func TestBridge_LostAsynchronousCommitIsRepaired_I1(t *testing.T) {
	needServers(t)
	c, db, b, f := crashing(t)
	lose(t, c, db, f, func(conn *pgx.Conn, id int) {
		run(t, conn, "SET synchronous_commit = off",
			fmt.Sprintf("BEGIN; INSERT INTO t VALUES (%d, 'ghost'); UPDATE t SET v = 'ghost' WHERE id = 1; COMMIT", id))
	})
	b.running()
}

// The same, but the lost transaction began before a durable snapshot was taken, and was still running in it.
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
