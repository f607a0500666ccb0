package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
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

// giveOutAgain crashes Postgres so that a row gets a transaction ID that a heartbeat's snapshot had shown as ended. It
// returns that heartbeat, and the row's ID. After each crash no ID may be below a since that was shown before it.
func giveOutAgain(t *testing.T, c *testenv.Cluster, db string, f *follower) (before seen, row int) {
	t.Helper()
	for try := range 5 {
		conn := connect(t, db)
		run(t, conn, "CHECKPOINT", "BEGIN; INSERT INTO t VALUES (1000); ROLLBACK", "BEGIN; INSERT INTO t VALUES (1001); ROLLBACK")
		hb := f.heartbeat(conn)
		f.caughtUp()
		shown := f.shown()
		c.Kill()
		c.Start()
		conn = connect(t, db)
		row = 2000 + try
		run(t, conn, fmt.Sprintf("INSERT INTO t VALUES (%d, 'again')", row))
		txid := query[uint64](t, conn, "SELECT max(txid) FROM t")
		if txid < shown {
			t.Fatalf("I5: since %d was shown, and the crash gave transaction ID %d out again", shown, txid)
		}
		f.convergeLate(conn)
		if txid < hb.snapshot.Xmin {
			return hb, row
		}
	}
	t.Fatal("no transaction ID was given out again")
	return seen{}, 0
}

// shown returns the highest since that the stream has shown.
func (f *follower) shown() (since uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.all {
		since = max(since, s.since)
	}
	return since
}

// After a crash, Postgres gives out transaction IDs again that a heartbeat's snapshot had shown as ended. Rows that get
// them are not lost. None of these IDs is below a since that was shown (issue 14, number 11).
func TestBridge_PostgresGivesTxidsOutAgain_I7(t *testing.T) {
	needServers(t)
	c, db, _, f := crashing(t)
	giveOutAgain(t, c, db, f)
}

// Also the broker loses the stream, and with it the row's place. A client that was away since before the crash still gets
// the row: it stands at or after the place at which the search for the client's since ends. No client gets 409, although
// Postgres is not yet where it was.
func TestBridge_TxidsGivenOutAgainThenTheStreamIsLost_I3(t *testing.T) {
	needServers(t)
	c, db, b, f := crashing(t)
	before, row := giveOutAgain(t, c, db, f)
	f.caughtUp()
	conn := connect(t, db)
	if now := snapshot(t, conn); now.Xmin > before.snapshot.Xmin {
		t.Fatalf("Postgres is at %s already, and was at %s before the crash: the test shows nothing", now, before.snapshot)
	}
	f.stop()
	if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
		t.Fatal(err)
	}
	again := follow(t, f.js.Conn(), f.rel)
	again.converge(conn)
	_, addr := start(t, f.js.Conn().ConnectedUrl())
	for _, s := range f.messages(stream.KindHeartbeat, 0) {
		if s.seq > before.seq { // from after the crash
			break
		}
		status, _, body := get(t, fmt.Sprintf("http://%s/t?follow=0&since=%d", addr, s.since))
		if status != http.StatusOK || !strings.Contains(body, fmt.Sprintf(`"id":%d,`, row)) {
			t.Fatalf("since %d, which was shown before the crash: status %d, want row %d in %s", s.since, status, row, body)
		}
	}
	b.running()
}

// A crash of Postgres comes while many transactions commit, asynchronously and not, or roll back. No ID that it gives out
// later is below a since that was shown before (issue 14, number 11).
func TestBridge_NoShownSinceIsGivenOutAgain_I5(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t, "fsync=on")
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "t", 10)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.set(func() { f.crashes = true })
	f.converge(connect(t, db))
	lower := 0 // how often the last snapshot shown was taken back
	for try := range 4 {
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for w := range 3 {
			conn := connect(t, db)
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					async := []string{"off", "on"}[n%8/7]
					for _, s := range []string{
						"SET synchronous_commit = " + async, "BEGIN", "SAVEPOINT a", fmt.Sprintf("UPDATE t SET v = '%d %d' WHERE id = %d", try, n, w+1),
						[]string{"RELEASE a", "ROLLBACK TO a"}[n%3/2], []string{"COMMIT", "COMMIT", "ROLLBACK"}[n/3%3],
					} {
						if _, err := conn.Exec(ctx, s); err != nil {
							return // the crash
						}
					}
				}
			})
		}
		from := f.caughtUp()
		f.await("heartbeats under load", from+200+50*uint64(try), func(s seen) bool { return s.kind == stream.KindHeartbeat })
		c.Kill()
		stop()
		wg.Wait()
		f.caughtUp() // nothing from before the crash comes later: the bridge has no connection
		shown := f.shown()
		hb := f.messages(stream.KindHeartbeat, 0)
		last := hb[len(hb)-1]
		c.Start()
		conn := connect(t, db)
		next := query[uint64](t, conn, "SELECT txid_current()")
		if next < shown {
			t.Fatalf("I5: since %d was shown, and the crash gave transaction ID %d out again", shown, next)
		}
		if next < last.snapshot.Xmin {
			lower++
		}
		t.Logf("crash %d: shown %d, last snapshot %s, next transaction ID %d", try+1, shown, last.snapshot, next)
		run(t, conn, "UPDATE t SET v = 'after' WHERE id = 5")
		f.convergeLate(conn)
	}
	t.Logf("%d of 4 crashes gave IDs out again that a heartbeat's snapshot had shown as ended", lower)
	b.running()
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
