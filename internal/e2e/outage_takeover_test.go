package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Two epochs end before their first heartbeat. The list of epochs has them all the same. So a cursor into what they
// stored, or into a tail that the broker lost, can be told from any other.
func TestBridge_EpochThatDiesBeforeItsFirstHeartbeat_I7(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	conn, lock := connect(t, db), connect(t, db)
	run(t, conn, "ANALYZE t")
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b.Kill()
	var fences []uint64
	for i := range 2 {
		end := f.caughtUp()
		run(t, lock, "BEGIN", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE", fmt.Sprintf("UPDATE t SET v = 'while it was dead %d' WHERE id = 7", i))
		b.start()
		fence := f.await("fence", end+1, func(s seen) bool { return s.kind == stream.KindFence })
		f.await("sign of life", fence.seq, func(s seen) bool { return s.kind == stream.KindAlive })
		b.Kill()
		run(t, lock, "COMMIT")
		if hb := f.messages(stream.KindHeartbeat, fence.seq); len(hb) > 0 {
			t.Fatal("the epoch published a heartbeat: the test shows nothing")
		}
		fences = append(fences, fence.seq)
	}
	b.start()
	f.converge(conn)
	list := f.epochs()
	if len(list) != 4 || list[1].First != fences[0] || list[2].First != fences[1] {
		t.Fatalf("got epochs %s, want 4, and the dead ones at %d", list, fences)
	}
	end := f.end()
	if dead := list[1].ID; !list.Holds(dead, fences[0]+1, end) || list.Holds(dead, fences[1], end) {
		t.Errorf("epoch %s of %s: the list must hold what the epoch stored, and no more", dead, list)
	}
}

// takeover is how long a standby may take to write its first row. Users are told 5 s; a busy machine gets twice that.
const takeover = 10 * time.Second

// The bridge that writes is killed. The standby, which said that it stands by, writes the next row within 10 s, in one
// epoch of its own. The bridges are built as users build them: this test holds production's times.
func TestBridge_StandbyTakesOver_I6(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	conn := connect(t, db)
	a, b := newBridge(t, db, broker.URL(), "t"), newBridge(t, db, broker.URL(), "t")
	a.program = testenv.BuildShipped(t, "./cmd/bridge")
	b.program = a.program
	a.start()
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b.start()
	b.logged("standing by")
	b.awaitReady()
	if r, err := b.readyz(); err != nil || !strings.Contains(r.Relations["t"].Reason, "another bridge") {
		t.Errorf("/readyz of the standby is %+v, %v; want the reason \"another bridge\"", r, err)
	}
	a.Kill()
	run(t, conn, "INSERT INTO t VALUES (101, 'for the standby')")
	txid := query[uint64](t, conn, "SELECT txid FROM t WHERE id = 101")
	killed := time.Now()
	row := f.awaitWithin(takeover, "row from the standby", 0, func(s seen) bool { return s.kind == stream.KindRow && s.row.Txid == txid })
	t.Logf("the standby took over after %s", row.at.Sub(killed).Round(time.Millisecond))
	f.converge(conn)
	f.wantEpochs(2, a, b)
}

// A writer is paused in the middle of its first load, and another takes over. When the first one wakes, it writes nothing
// more, and stands by.
func TestBridge_WokenWriterWritesNothing_I6(t *testing.T) {
	needServers(t)
	db, broker, conn := bigTable(t, big)
	a := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	testenv.Eventually(t, long, func() error {
		if f.end() < big/4 {
			return fmt.Errorf("the load has not begun")
		}
		return nil
	})
	a.Pause()
	b := startBridge(t, db, broker.URL(), "t")
	b.logged("epoch begun") // it need not have waited for the lease: that may have ended before it came
	run(t, conn, fmt.Sprintf("UPDATE t SET v = 'while it slept' WHERE id IN (1, %d, %d)", big/2, big))
	f.converge(conn)
	end := f.caughtUp()
	a.Resume()
	a.logged("standing by")
	run(t, conn, "UPDATE t SET v = 'after it woke' WHERE id IN (1, 2)")
	f.converge(conn)
	f.caughtUp()
	if n := len(f.messages(stream.KindRow, end+1)); n != 2 {
		t.Errorf("%d rows came after the first writer woke, want 2", n)
	}
	f.wantEpochs(2, b) // the one that woke must not begin an epoch, whatever ended its own
	if n := f.repeats(big+3, 0); n > resent && f.beganDurable() {
		t.Errorf("%d rows were sent again, want at most %d", n, resent)
	}
	b.running()
}
