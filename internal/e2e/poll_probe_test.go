package e2e_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// busy writes to a table that no bridge captures, all the time until stop.
func busy(t *testing.T, db, table string) (stop func()) {
	t.Helper()
	conn := connect(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := conn.Exec(t.Context(), "UPDATE "+table+" SET v = v WHERE id = 1"); err != nil {
				t.Errorf("write to %s: %v", table, err)
				return
			}
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

// Other tables are written all the time. Relations with an index on txid are not polled for that: a table, and the feed
// view of bridge sql. Their rows arrive long before a heartbeat is due, also those of a transaction that ends after a later
// one. Relations without such an index are polled as ever.
func TestBridge_QuietRelationsAreProbed_I1(t *testing.T) {
	needServers(t)
	// In a shared cluster, transactions of other tests would hold xmin back.
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "plain", 10)
	testenv.Exec(t, db, tableSQL("noindex", 10)[:3]...)
	newBare(t, db, "fed", 10)
	newBare(t, db, "other", 1)
	conn, early := connect(t, db), connect(t, db)
	run(t, conn, "CREATE VIEW groups AS SELECT min(id) AS id, max(txid) AS txid FROM plain")
	code, sql, stderr := command(t, []string{"DATABASE_URL=" + db}, "sql", "-no-notify", "fed")
	if code != 0 {
		t.Fatalf("bridge sql: exit status %d\n%s", code, stderr)
	}
	psql(t, db, sql)
	b := startBridge(t, db, broker.URL(), "plain,noindex,groups(key=id),fed_lockstep(key=id)",
		"BRIDGE_POLL_INTERVAL=50ms", "BRIDGE_HEARTBEAT_INTERVAL=1m")
	b.awaitReady()
	defer busy(t, db, "other")()

	polls := func(name string) int {
		return b.metric(fmt.Sprintf(`lockstep_bridge_poll_seconds_count{relation="public.%s"}`, name))
	}
	all := []string{"plain", "fed_lockstep", "noindex", "groups"}
	// quiet waits for 40 polls of each relation that is polled, in which the others are polled a few times at most.
	quiet := func() {
		t.Helper()
		begun := make(map[string]int)
		testenv.Eventually(t, long, func() error {
			since := make(map[string]int)
			for _, name := range all {
				since[name] = polls(name) - begun[name]
			}
			switch fewest, most := min(since["noindex"], since["groups"]), max(since["plain"], since["fed_lockstep"]); {
			case most > 4:
				for _, name := range all {
					begun[name] += since[name]
				}
				fallthrough
			case fewest < 40:
				return fmt.Errorf("polls: %v", since)
			}
			return nil
		})
	}
	quiet()
	for _, rel := range []struct{ name, table string }{{"plain", "plain"}, {"fed_lockstep", "fed"}} {
		f := follow(t, testenv.NATSConn(t, broker.URL()), named(rel.name))
		end := f.caughtUp()
		arrives := func(id int) {
			t.Helper()
			txid := query[uint64](t, conn, fmt.Sprintf("SELECT txid FROM %s WHERE id = %d", rel.table, id))
			f.awaitWithin(30*time.Second, fmt.Sprintf("row %d", id), end, func(s seen) bool { return s.kind == stream.KindRow && s.row.Txid == txid })
		}
		update := func(id int) string { return fmt.Sprintf("UPDATE %s SET v = v || '!' WHERE id = %d", rel.table, id) }
		run(t, early, "BEGIN", update(1))
		run(t, conn, update(2))
		arrives(2)
		run(t, early, "COMMIT")
		arrives(1)
		quiet()
		run(t, conn, fmt.Sprintf("DELETE FROM %s WHERE id = 3", rel.table), update(4))
		arrives(4)
	}
}

// One relation is locked, another was dropped. The others are probed as before, and the locked one's rows arrive when it
// is free.
func TestBridge_ProbesBesideALockedRelation_I10(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	for _, name := range []string{"locked", "gone"} {
		testenv.Exec(t, db, tableSQL(name, 10)...)
	}
	newBare(t, db, "other", 1)
	conn, locker := connect(t, db), connect(t, db)
	b := startBridge(t, db, broker.URL(), "locked,gone,t", "BRIDGE_POLL_INTERVAL=50ms", "BRIDGE_HEARTBEAT_INTERVAL=1m")
	b.awaitReady()
	defer busy(t, db, "other")()
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	run(t, locker, "BEGIN", "LOCK locked", "UPDATE locked SET v = 'new' WHERE id = 1")
	run(t, conn, "DROP TABLE gone")
	b.awaitReason("gone", "does not exist")
	for range 3 {
		end := f.caughtUp()
		run(t, conn, "UPDATE t SET v = v || '!' WHERE id = 1")
		f.awaitWithin(30*time.Second, "row", end+1, func(s seen) bool { return s.kind == stream.KindRow })
	}
	g := follow(t, testenv.NATSConn(t, broker.URL()), named("locked"))
	end := g.caughtUp()
	run(t, locker, "COMMIT")
	g.awaitWithin(30*time.Second, "row of the relation that was locked", end+1, func(s seen) bool { return s.kind == stream.KindRow })
}
