package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// manyWriters creates a table whose n rows were written by n transactions, in the order of their keys.
func manyWriters(t *testing.T, db string, n int) {
	t.Helper()
	newTable(t, db, "t", 0)
	run(t, connect(t, db), "SET synchronous_commit = off",
		fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP INSERT INTO t VALUES (i, 'row ' || i); COMMIT; END LOOP; END $$", n), "SET synchronous_commit = on", "CHECKPOINT")
}

// In a first load of a table that many transactions wrote, each row has a position of its own. A client that comes with
// the middle of them gets half, one with the end gets the end, also after the broker lost its store. The next start finds
// no row suspect without looking at any (issue 14, number 11).
func TestBridge_PositionsInsideAFirstLoad_I3(t *testing.T) {
	needServers(t)
	const n = 3000
	db, broker := ownDatabase(t), testenv.NATS(t)
	manyWriters(t, db, n)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	_, addr := start(t, broker.URL())
	half := func() {
		t.Helper()
		for from, want := range map[int]int{1: n, n / 2: n/2 + 1, n: 1} {
			txid := query[uint64](t, conn, "SELECT txid FROM t WHERE id = $1", from)
			status, _, body := get(t, fmt.Sprintf("http://%s/t?follow=0&since=%d", addr, txid))
			if got := strings.Count(body, `"data":`); status != http.StatusOK || got != want {
				t.Errorf("since %d, of row %d of %d: status %d and %d rows, want %d", txid, from, n, status, got, want)
			}
		}
	}
	half()
	// What must be looked at after a crash of Postgres is what has a High of at least D's xmin.
	hb := f.messages(stream.KindHeartbeat, 0)
	safe := hb[len(hb)-1].durableXmin
	rows := f.messages(stream.KindRow, 0)
	if last := rows[len(rows)-1]; last.high >= safe {
		t.Errorf("the last row has High %d, and everything from %d on is suspect", last.high, safe)
	}
	b.stop()
	b.start()
	f.await("heartbeat of the next process", f.caughtUp()+1, func(s seen) bool { return s.kind == stream.KindHeartbeat })
	if got := f.repeats(n, 0); got > 0 {
		t.Errorf("%d rows were sent again", got)
	}
	f.stop()
	if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
		t.Fatal(err)
	}
	f = follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	half()
}

// While nothing is known to be on disk, rows and heartbeats show no position. As soon as Postgres has flushed its WAL, one
// more heartbeat says so; clients need not wait for the interval (issue 14, number 11).
func TestBridge_NoSinceBeforeSomethingIsDurable_I5(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t, "fsync=on", "wal_writer_delay=10s", "autovacuum=off"), testenv.NATS(t)
	for range 5 {
		db := c.Database()
		newTable(t, db, "t", 10)
		conn := connect(t, db)
		run(t, conn, "SET synchronous_commit = off", "INSERT INTO t VALUES (11, 'asynchronous')")
		txid := query[uint64](t, conn, "SELECT max(txid) FROM t")
		b := startBridge(t, db, broker.URL(), "t", "BRIDGE_HEARTBEAT_INTERVAL=1m", "BRIDGE_POLL_INTERVAL=1m", "BRIDGE_STREAM_PREFIX="+db[strings.LastIndex(db, "/")+1:strings.Index(db, "?")])
		f := newFollower(t, testenv.NATSConn(t, broker.URL()), named("t"))
		f.layout = stream.NewLayout(db[strings.LastIndex(db, "/")+1:strings.Index(db, "?")], "public", "t", false)
		f.begin()
		first := f.heartbeatFrom(0)
		if first.since > 0 { // the WAL writer came in between
			b.stop()
			continue
		}
		for _, s := range f.messages(stream.KindRow, 0) {
			if s.since != 0 || s.row.CurrentXmin != 0 {
				t.Errorf("a row shows current_xmin %d and since %d, although nothing is known to be durable", s.row.CurrentXmin, s.since)
			}
		}
		run(t, conn, "CHECKPOINT") // flushes the WAL
		begun := time.Now()
		hb := f.await("one more heartbeat", first.seq+1, func(s seen) bool { return s.kind == stream.KindHeartbeat && s.since > txid })
		t.Logf("it came after %s, with since %d", time.Since(begun).Round(time.Millisecond), hb.since)
		// A steady relation in a quiet database needs no other.
		f.await("sign of life", hb.seq+1, func(s seen) bool { return s.kind == stream.KindAlive })
		if more := f.messages(stream.KindHeartbeat, hb.seq+1); len(more) > 0 {
			t.Errorf("%d more heartbeats came, want none before the interval is over", len(more))
		}
		return
	}
	t.Fatal("the WAL was flushed each time before the first load: the test shows nothing")
}

// The broker loses the stream, and the next bridge does not know yet what is on disk. Its heartbeats show no since, but
// they say how far Postgres is. So a client with a position from before is served, not refused (issue 14, number 11).
func TestBridge_NotYetDurableIsNoReasonToRefuse_I3(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t, "fsync=on", "wal_writer_delay=10s", "autovacuum=off"), testenv.NATS(t)
	db := c.Database()
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE other (id int)")
	b := startBridge(t, db, broker.URL(), "t", "BRIDGE_HEARTBEAT_INTERVAL=1s")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	shown := f.converge(conn).since
	if last := query[uint64](t, conn, "SELECT max(txid) FROM t"); shown <= last {
		t.Fatalf("since %d is not above the last row's transaction, %d: the test shows nothing", shown, last)
	}
	_, addr := start(t, broker.URL())
	for range 15 {
		b.stop()
		f.stop()
		if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
			t.Fatal(err)
		}
		run(t, conn, "SET synchronous_commit = off", "INSERT INTO other VALUES (1)")
		b.start()
		f = follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
		if first := f.heartbeatFrom(0); first.since > 0 { // the WAL writer came in between
			continue
		}
		status, _, body := get(t, fmt.Sprintf("http://%s/t?follow=0&since=%d", addr, shown))
		if beats := f.messages(stream.KindHeartbeat, 0); beats[len(beats)-1].since > 0 { // or meanwhile
			continue
		}
		if status != http.StatusOK {
			t.Errorf("since %d, which was shown: status %d, want 200: %s", shown, status, body)
		}
		return
	}
	t.Fatal("the WAL was flushed each time before the first load: the test shows nothing")
}

// A batch that continues after a kill shows no position above the D that was announced with it, nor above the xmin of the
// announced snapshot: what follows it may be all that is not visible in D (issue 14, number 11).
func TestBridge_ContinuedBatchShowsWhatWasAnnounced_I5(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t, "fsync=on", "wal_writer_delay=10s", "autovacuum=off"), testenv.NATSProcess(t)
	db := c.Database()
	const rows = 20_000
	newTable(t, db, "t", rows)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	nc := testenv.NATSConn(t, broker.URL())
	f := follow(t, nc, named("t"))
	f.converge(conn)
	for try := range 5 {
		from := f.caughtUp()
		run(t, conn, "SET synchronous_commit = off", fmt.Sprintf("UPDATE t SET v = 'try %d'", try))
		f.killAt(b, from, rows/10)
		stored := len(f.messages(stream.KindRow, from+1))
		limit, lags := announced(t, f)
		end := f.caughtUp()
		b.start()
		f.converge(conn)
		// After the rest of the batch, all that is not visible in D comes again, by an ordinary one.
		for _, s := range f.messages(stream.KindRow, from+1)[:rows] {
			if s.row.CurrentXmin > limit {
				t.Fatalf("row at %d shows current_xmin %d, want at most %d; the batch goes on after %d", s.seq, s.row.CurrentXmin, limit, end)
			}
		}
		if lags && stored < rows {
			return
		}
	}
	t.Fatal("each time the WAL was flushed before the announcement, or all was stored before the kill: the test shows nothing")
}

// announced returns the highest position that rows of the announced batch may show, and whether D lags behind the batch's
// snapshot.
func announced(t *testing.T, f *follower) (limit uint64, lags bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	msg, _, err := stream.Last(ctx, f.js, f.layout.Stream, f.layout.Batch())
	if err != nil {
		t.Fatal(err)
	}
	batch, err := stream.ParseBatch(msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	of, err := capture.ParseSnapshot(batch.Snapshot)
	if err != nil {
		t.Fatal(err)
	}
	d, err := capture.ParseSnapshot(batch.Durable)
	if err != nil {
		t.Fatal(err)
	}
	return min(of.Xmin, d.Xmin), d.Xmin < of.Xmin
}

// Postgres fails over, and the broker loses the stream. The new primary may give out again what the old one had not sent
// it. So every position from before is refused, and the new ones are served (issue 14, number 11).
func TestBridge_StreamLostAfterAFailover_I3(t *testing.T) {
	needServers(t)
	standby, db, copied := primaryAndStandby(t, 100)
	broker := testenv.NATS(t)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	shown := f.converge(connect(t, db)).since
	b.stop()
	f.stop()
	replayed(t, connect(t, db), connect(t, copied))
	standby.Promote()
	conn := connect(t, copied)
	run(t, conn, "UPDATE t SET v = 'later' WHERE id < 5", "INSERT INTO t VALUES (1000, 'later')")
	if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
		t.Fatal(err)
	}
	startBridge(t, copied, broker.URL(), "t")
	f = follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	hb := f.converge(conn)
	_, addr := start(t, broker.URL())
	if status, _, body := get(t, fmt.Sprintf("http://%s/t?follow=0&since=%d", addr, shown)); status != http.StatusGone {
		t.Errorf("since %d, shown before the failover: status %d, want 410: %s", shown, status, body)
	}
	if status, _, body := get(t, fmt.Sprintf("http://%s/t?follow=0&since=%d", addr, hb.since)); status != http.StatusOK {
		t.Errorf("since %d, shown after the failover: status %d, want 200: %s", hb.since, status, body)
	}
}
