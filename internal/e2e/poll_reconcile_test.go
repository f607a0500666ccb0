package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// reconciled runs bridge reconcile and checks what it prints.
func reconciled(t *testing.T, nats, rel, want string) {
	t.Helper()
	code, stdout, stderr := command(t, []string{"NATS_URL=" + nats}, "reconcile", rel)
	if code != 0 || stdout != rel+": "+want+"\n" || !strings.Contains(stderr, "comparing") {
		t.Errorf("bridge reconcile: exit status %d, %q, want %q; stderr %q", code, stdout, want, stderr)
	}
}

// bridge reconcile finds and repairs what polls do not see: hard deletes, changed keys, rows without a new txid, rows that
// left a view, and rows that are missing in the stream. A second run finds nothing and publishes nothing.
func TestBridge_ReconcileFindsHardDeletes_I1(t *testing.T) {
	needServers(t)
	// In a shared cluster, transactions of other tests could hold xmin below the rows' txid. A comparison leaves rows of a
	// view alone that are not below its last heartbeat's xmin.
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 1000)
	testenv.Exec(t, db, "CREATE VIEW w AS SELECT * FROM t WHERE v <> 'hidden'")
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t,w(key=id)")
	nc := testenv.NATSConn(t, broker.URL())
	f, view := follow(t, nc, named("t")), follow(t, nc, named("w"))
	f.set(func() { f.repairs = true })
	view.set(func() { view.repairs = true })
	f.converge(conn)
	view.converge(conn)
	run(t, conn, "DELETE FROM t WHERE id IN (3, 4)", "UPDATE t SET v = 'hidden' WHERE id = 10")
	unstamped(t, conn, "UPDATE t SET id = 5000 WHERE id = 5", "UPDATE t SET v = 'unstamped' WHERE id IN (6, 7)", "INSERT INTO t VALUES (8000, 'old stamp', 3)")
	f.heartbeat(conn)
	if err := f.differs(conn); err == nil {
		t.Fatal("polls have seen all changes: the test shows nothing")
	}
	f.forget("9")
	reconciled(t, broker.URL(), "t", "999 rows compared: 3 missing, 2 stale, 3 zombies, repaired")
	f.converge(conn)
	follow(t, nc, named("t")).converge(conn) // one that reads the stream from its start
	reconciled(t, broker.URL(), "w", "998 rows compared: 2 missing, 2 stale, 4 zombies, repaired")
	view.converge(conn)
	b.logged(`"level":"warn"`, `"table":"t"`, `"missing":3`, `"zombie":3`)

	// Now nothing differs, and nothing is published.
	end := f.caughtUp()
	reconciled(t, broker.URL(), "t", "999 rows compared: 0 missing, 0 stale, 0 zombies")
	f.heartbeatFrom(end + 1)
	if rows := f.messages(stream.KindRow, end+1); len(rows) != 0 {
		t.Errorf("%d rows were published, although nothing differed", len(rows))
	}
	for _, m := range []string{
		`reconcile_missing_total{relation="public.t"} 3`, `reconcile_stale_total{relation="public.t"} 2`, `reconcile_zombie_total{relation="public.t"} 3`,
		`reconcile_seconds_count{relation="public.t"} 2`, `reconcile_last_success_timestamp_seconds{relation="public.t"} 1.`,
	} {
		if text := b.metrics(); !strings.Contains(text, "lockstep_bridge_"+m) {
			t.Errorf("no metric %s in\n%s", m, regexp.MustCompile("(?m)^.*reconcile.*$").FindAllString(text, -1))
		}
	}
}

// Twenty comparisons run while two writers insert, change and delete all rows without pause. No version of a row comes
// after a newer one. In the end the stream has what Postgres has.
func TestBridge_ReconcileIsSafeWhileWritesGoOn_I4(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	conn := connect(t, db)
	startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.set(func() { f.repairs = true })
	f.converge(conn)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 2 {
		c := connect(t, db)
		writers.Go(func() { hammer(t, c, 10*w, stop) })
	}
	counts := map[string]int{}
	for range 20 {
		code, stdout, stderr := command(t, []string{"NATS_URL=" + broker.URL()}, "reconcile", "t")
		if code != 0 || !strings.Contains(stdout, " rows compared: ") {
			t.Errorf("bridge reconcile: exit status %d, %q, %q", code, stdout, stderr)
		}
		counts[stdout[strings.LastIndex(stdout, ":")+1:]]++
	}
	close(stop)
	writers.Wait()
	t.Logf("found: %v", counts)
	command(t, []string{"NATS_URL=" + broker.URL()}, "reconcile", "t") // repairs what was deleted after the last one
	f.converge(conn)
	newest := map[string]uint64{}
	for _, m := range f.messages(stream.KindRow, 0) {
		if m.row.Deleted {
			continue // its txid is the xmin of the snapshot that found it
		}
		if m.row.Txid < newest[m.key] { // one session writes a key, so its txids only rise
			t.Errorf("message %d: %s of transaction %d comes after that of %d", m.seq, m.key, m.row.Txid, newest[m.key])
		}
		newest[m.key] = m.row.Txid
	}
	reconciled(t, broker.URL(), "t", fmt.Sprintf("%d rows compared: 0 missing, 0 stale, 0 zombies", query[int](t, conn, "SELECT count(*) FROM t")))
}

// hammer inserts, changes and deletes the ten rows after first until stop is closed. Some of them remain.
func hammer(t *testing.T, conn *pgx.Conn, first int, stop chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		id := first + i%10 + 1
		sql := "INSERT INTO t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
		args := []any{id, fmt.Sprint(i)}
		if i%7 == 0 {
			sql, args = "DELETE FROM t WHERE id = $1", args[:1]
		}
		if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
			t.Error(err)
			return
		}
	}
}

// A row was too large for the broker. It becomes small, and polls do not see it. bridge reconcile brings it back.
func TestBridge_ReconcileBringsBackWhatShrank_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t")
	b.awaitReady()
	run(t, conn, "UPDATE t SET v = repeat('x', 2 << 20) WHERE id = 5")
	b.logged("too large")
	unstamped(t, conn, "UPDATE t SET v = 'small' WHERE id = 5")
	reconciled(t, broker.URL(), "t", "10 rows compared: 0 missing, 1 stale, 0 zombies, repaired")
	// The follower starts only now: for it, the oversize control row, which the row replaces, would be a fault.
	f := newFollower(t, testenv.NATSConn(t, broker.URL()), named("t"))
	testenv.Eventually(t, long, func() error {
		msg, _, err := stream.Last(t.Context(), f.js, f.layout.Stream, f.layout.Rows())
		if err == nil && !strings.Contains(string(msg.Data), "small") {
			err = fmt.Errorf("the last row is %s", msg.Data)
		}
		return err
	})
	f.repairs = true // the heartbeat from before the repair may still be there
	f.begin()
	f.converge(conn)
}

// The bridge also compares by itself, every BRIDGE_RECONCILE_INTERVAL.
func TestBridge_ReconcilesFromTimeToTime_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t", "BRIDGE_RECONCILE_INTERVAL=1s")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b.logged(`"level":"info"`, "stream compared with the relation", `"rows":100`, `"zombie":0`)
	run(t, conn, "DELETE FROM t WHERE id = 3")
	testenv.Eventually(t, long, func() error { return f.differs(conn) })
	b.logged(`"level":"warn"`, "stream compared with the relation", `"rows":99`, `"zombie":1`)
}

// Of two bridges, the one that captures the relation answers bridge reconcile. If no bridge captures it, the command says
// so within 10 s, and says why; a busy machine gets twice that.
func TestBridge_ReconcileIsAnsweredByWhoCaptures(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	testenv.Exec(t, db, tableSQL("l", 10)...)
	conn := connect(t, db)
	refused := func(rel string, want ...string) {
		t.Helper()
		begun := time.Now()
		code, stdout, stderr := command(t, []string{"NATS_URL=" + broker.URL()}, "reconcile", rel)
		for _, w := range want {
			if code != 1 || stdout != "" || !strings.Contains(stderr, w) {
				t.Errorf("bridge reconcile %s: exit status %d, %q, want %q", rel, code, stderr, w)
			}
		}
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("bridge reconcile %s took %s, want at most 20 s", rel, took)
		}
	}
	refused("t", "no stream for t")
	a := startBridge(t, db, broker.URL(), "t,l(history=log;max_age=1h)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	b := startBridge(t, db, broker.URL(), "t,l(history=log;max_age=1h)")
	b.logged("standing by")
	run(t, conn, "DELETE FROM t WHERE id = 3")
	reconciled(t, broker.URL(), "t", "99 rows compared: 0 missing, 0 stale, 1 zombie, repaired")
	refused("l", "history=log")
	a.Kill()
	run(t, conn, "DELETE FROM t WHERE id = 4")
	testenv.Eventually(t, long, func() error {
		if code, stdout, stderr := command(t, []string{"NATS_URL=" + broker.URL()}, "reconcile", "t"); code != 0 || !strings.Contains(stdout, "98 rows compared") {
			return errors.New(stderr)
		}
		return nil
	})
	f.converge(conn)
	testenv.Exec(t, db, "ALTER TABLE t DROP txid")
	b.awaitReason("t", "txid")
	refused("t", "not being captured", "txid")
	b.stop()
	refused("t", "no bridge captures t")
}
