package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Two epochs that die before their first heartbeat stand in the list all the
// same, so that a place in what they stored, or in a tail that was lost, is
// told from another.
func TestBridge_EpochThatDiesBeforeItsFirstHeartbeat_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
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
			t.Fatalf("the epoch published a heartbeat")
		}
		fences = append(fences, fence.seq)
	}
	b.start()
	f.converge(conn)
	list := f.epochs()
	if len(list) != 4 || list[1].First != fences[0] || list[2].First != fences[1] {
		t.Fatalf("got epochs %s, want 4 with the dead ones at %d", list, fences)
	}
	end := f.end()
	if dead := list[1].ID; !list.Holds(dead, fences[0]+1, end) || list.Holds(dead, fences[1], end) {
		t.Errorf("epoch %s of %s holds not what it stored, or more", dead, list)
	}
}

// takeover is how long a standby may take; the race detector slows it.
const takeover = 10 * time.Second

func TestBridge_StandbyTakesOver_I6(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	conn := connect(t, db)
	a := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b := startBridge(t, db, broker.URL(), "t")
	b.logged("standing by")
	b.awaitReady()
	if r, err := b.readyz(); err != nil || !strings.Contains(r.Relations["t"].Reason, "another bridge") {
		t.Errorf("the standby says %+v, %v", r, err)
	}
	a.Kill()
	run(t, conn, "INSERT INTO t VALUES (101, 'for the standby')")
	txid := query[uint64](t, conn, "SELECT txid FROM t WHERE id = 101")
	killed := time.Now()
	row := f.awaitWithin(takeover, "row from the standby", 0, func(s seen) bool { return s.kind == stream.KindRow && s.row.Txid == txid })
	t.Logf("taken over after %s", row.at.Sub(killed).Round(time.Millisecond))
	f.converge(conn)
	f.wantEpochs(2, a, b)
}

// A writer that is paused in the middle of its first load, deposed, and wakes
// writes nothing more.
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
	b.logged("taking over")
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
	f.wantEpochs(2, b) // the woken one may begin none, whatever ended its own
	if n := f.repeats(big+3, 0); n > resent {
		t.Errorf("%d rows were sent again", n)
	}
	b.running()
}
