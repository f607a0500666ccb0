package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go/jetstream"
)

// The bridge is killed after it announced its first load, and before the first row. The next one continues that batch.
func TestBridge_AnnouncedBatchKilledBeforeItsFirstRow_I7(t *testing.T) {
	needServers(t)
	db, broker, conn := bigTable(t, big)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.await("announcement", 0, func(s seen) bool { return s.kind == stream.KindBatch })
	b.Kill()
	// The kill may have come after some rows. The test removes them, so that the announcement is the end. Who has read them
	// would see High fall.
	f.settled() // the broker may have received more than it has stored
	f.stop()
	s, err := f.js.Stream(t.Context(), f.layout.Stream)
	if err == nil {
		err = s.Purge(t.Context(), jetstream.WithPurgeSubject(f.layout.Rows()))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	f = follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b.logged(`"whole":true`, `"begun":false`, "continuing the batch")
}

// The bridge is killed twice in the middle of a first load whose rows all have one txid. Each time the load goes on after
// the last row that was stored, and sends few rows again.
func TestBridge_AnnouncedBatchKilledInItsMiddleTwice_I7(t *testing.T) {
	needServers(t)
	const rows = 200_000 / scale
	db, broker, conn := bigTable(t, rows)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	for range 2 {
		f.killAt(b, f.end(), rows/4)
		if hb := f.messages(stream.KindHeartbeat, 0); len(hb) > 0 {
			t.Fatalf("there is a heartbeat at %d, before the first load is complete", hb[0].seq)
		}
		if got := len(f.state()); got >= rows {
			t.Fatalf("all %d rows were stored before the kill: the test shows nothing", got)
		}
		// One of these rows was sent, the other was not.
		run(t, conn, "UPDATE t SET v = v || '!' WHERE id IN (1, 39999)")
		b.start()
		b.logged(`"whole":true`, `"begun":true`, "continuing the batch")
	}
	f.converge(conn)
	if n := f.repeats(rows, 0); n > resent && f.beganDurable() {
		t.Errorf("%d rows were sent again, want at most %d", n, resent)
	}
	if n := len(f.messages(stream.KindBatch, 0)); n != 1 {
		t.Errorf("got %d announcements, want 1", n)
	}
}

// The bridge is killed in the middle of a batch, in which one transaction updates 50,000 rows. An older transaction holds
// xmin back. The batch is continued.
func TestBridge_AnnouncedDeltaKilledInItsMiddle_I7(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	db, broker := c.Database(), testenv.NATSProcess(t)
	newTable(t, db, "t", big)
	conn, open := connect(t, db), connect(t, db)
	run(t, open, "BEGIN", "INSERT INTO t VALUES (0, 'late')")
	run(t, conn, "SELECT pg_logical_emit_message(true, '', '')") // its commit flushes what the open transaction wrote
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	first := f.converge(conn)
	if n := f.repeats(big, 0); n > resent {
		t.Errorf("%d rows of the first load were sent again, want at most %d", n, resent)
	}
	var loaded uint64
	for _, s := range f.messages(stream.KindRow, 0) {
		loaded = max(loaded, s.row.Txid)
	}
	// Until the load is durable, a new connection to Postgres makes the bridge read it again.
	f.await("heartbeat after the load is durable", first.seq, func(s seen) bool { return s.durableXmin > loaded })
	first.seq = f.caughtUp()
	const updated = 50_000 / scale
	run(t, conn, fmt.Sprintf("UPDATE t SET v = 'new' WHERE id <= %d", updated))
	f.killAt(b, first.seq, updated/10)
	if n := len(f.messages(stream.KindRow, first.seq)); n >= updated {
		t.Fatalf("all %d rows were stored before the kill: the test shows nothing", n)
	}
	run(t, conn, fmt.Sprintf("UPDATE t SET v = 'newer' WHERE id IN (1, %d, %d)", updated, big))
	run(t, open, "COMMIT")
	b.start()
	b.logged(`"whole":false`, `"begun":true`, "continuing the batch")
	f.converge(conn)
	// After each connect the bridge reads the rows again from the oldest open transaction on, but not those of the
	// announced batch.
	if n := f.repeats(updated, first.seq); n > 2*updated+resent {
		t.Errorf("%d rows were sent again, want at most %d", n, 2*updated+resent)
	}
}
