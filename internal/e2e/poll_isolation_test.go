package e2e_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Twenty relations share at most twelve connections. All are live, while rows come and while nothing happens.
func TestBridge_MoreRelationsThanConnections_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, stampSQL)
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("t%d", i))
		run(t, conn, tableSQL(names[i], 1200)...)
	}
	b := startBridge(t, db, broker.URL(), strings.Join(names, ","))
	nc := testenv.NATSConn(t, broker.URL())
	var all []*follower
	for _, n := range names {
		all = append(all, follow(t, nc, named(n)))
	}
	for _, f := range all {
		f.converge(conn)
	}
	for _, n := range names {
		run(t, conn, "UPDATE "+n+" SET v = 'changed' WHERE id <= 1100")
	}
	for _, f := range all {
		f.converge(conn)
	}
	b.awaitReady()
	for _, f := range all {
		f.heartbeatFrom(f.last() + 1)
	}
	if n := query[int](t, conn, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lockstep bridge'"); n > 12 {
		t.Errorf("the bridge has %d connections, want at most 12: %s", n, query[string](t, conn, "SELECT string_agg(concat(pid, ' ', backend_start, ' ', state, ' ', left(query, 60)), E'\n') FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lockstep bridge'"))
	}
	b.stop()
}

// More relations are locked than the bridge has connections. They do not hold the others back, and no connection waits for
// a lock. /readyz says that they are locked.
func TestBridge_LockedRelationsStopOnlyThemselves_I10(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "free", 5)
	tables, locked := "free", []string{}
	for i := range 10 {
		name := fmt.Sprint("t", i)
		testenv.Exec(t, db, tableSQL(name, 5)...)
		tables, locked = tables+","+name, append(locked, name)
	}
	for i := range 30 {
		testenv.Exec(t, db, fmt.Sprintf("CREATE VIEW v%d AS SELECT * FROM t%d", i, i%len(locked)))
		tables += fmt.Sprintf(",v%d(key=id)", i)
	}
	conn, holder := connect(t, db), connect(t, db)
	b := startBridge(t, db, broker.URL(), tables)
	nc := testenv.NATSConn(t, broker.URL())
	free, one := follow(t, nc, named("free")), follow(t, nc, named("t3"))
	free.converge(conn)
	one.converge(conn)
	b.awaitReady()
	const waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lockstep bridge' AND datname = current_database() AND wait_event_type = 'Lock'"
	updates := func() {
		t.Helper()
		waiting := 0
		for range 40 {
			run(t, conn, "UPDATE free SET v = v || '!' WHERE id = 2")
			free.converge(conn)
			waiting += query[int](t, conn, waits)
		}
		if waiting > 0 {
			t.Errorf("I10: connections of the bridge were seen waiting for a lock %d times", waiting)
		}
	}
	run(t, holder, "BEGIN", "LOCK TABLE "+strings.Join(locked, ", ")+" IN ACCESS EXCLUSIVE MODE")
	run(t, conn, "UPDATE free SET v = v || '?' WHERE id = 2") // as long as nothing changes, nothing is read
	b.awaitReason("t3", "locked")
	// The same on new connections, without prepared statements, and after a restart, before the bridge knows the relations.
	run(t, conn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lockstep bridge' AND datname = current_database()")
	updates()
	b.restart()
	b.awaitReason("t3", "locked")
	updates()
	run(t, holder, "UPDATE t3 SET v = 'after' WHERE id = 1", "COMMIT")
	one.converge(conn)
	b.awaitReady()
}

// REINDEX locks indexes, which LOCK TABLE ... NOWAIT does not test. The bridge must wait for such a lock, but not for
// long: updates of another table take at most four times as long, plus 5 s.
func TestBridge_IndexesLocked_I10(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "free", 5)
	conn, holder := connect(t, db), connect(t, db)
	tables, reindex := "free", []string{"BEGIN"}
	for i := range 30 {
		name := fmt.Sprint("t", i)
		testenv.Exec(t, db, tableSQL(name, 5)...)
		tables, reindex = tables+","+name, append(reindex, "REINDEX TABLE "+name)
	}
	// A plan that reads the table alone would need no lock of its index. Small tables get one after their first REINDEX.
	run(t, conn, "ALTER DATABASE "+databaseOf(db)+" SET enable_seqscan = off")
	b := startBridge(t, db, broker.URL(), tables)
	free := follow(t, testenv.NATSConn(t, broker.URL()), named("free"))
	free.converge(conn)
	b.awaitReady()
	updates := func(limit time.Duration) time.Duration {
		begun := time.Now()
		for n := 0; n < 40 && time.Since(begun) < limit; n++ {
			run(t, conn, "UPDATE free SET v = v || '!' WHERE id = 2")
			free.converge(conn)
		}
		return time.Since(begun)
	}
	// A busy machine may slow one round. A bridge that waits for locks slows every round.
	for round := 1; ; round++ {
		before := updates(long)
		limit := 4*before + 5*time.Second
		run(t, holder, reindex...)
		run(t, conn, "UPDATE free SET v = v || '?' WHERE id = 2") // as long as nothing changes, nothing is read
		b.awaitReason("t3", "locked")
		during := updates(limit)
		t.Logf("40 updates took %s, and %s while indexes of others were locked", before, during)
		run(t, holder, "COMMIT")
		b.awaitReady()
		if during < limit {
			return
		}
		if round == 3 {
			t.Fatalf("I10: updates of a free table took %s before, and %s or more while indexes of others were locked", before, during)
		}
	}
}

// A relation that is dropped stops alone, and says so. When it is made again, it comes back by itself, in a new
// incarnation with a floor above everything that was shown.
func TestBridge_DroppedRelationStopsAloneAndComesBack_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	testenv.Exec(t, db, tableSQL("u", 10)...)
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t,u")
	nc := testenv.NATSConn(t, broker.URL())
	f, u := follow(t, nc, named("t")), follow(t, nc, named("u"))
	f.converge(conn)
	u.converge(conn)
	before := f.meta()
	run(t, conn, "DROP TABLE t", "INSERT INTO u VALUES (11)")
	b.awaitReason("t", "no such table")
	u.converge(conn)
	testenv.Eventually(t, long, func() error {
		r, err := b.readyz()
		if err == nil && !r.Relations["u"].Ready {
			err = fmt.Errorf("got %+v, want u live", r)
		}
		return err
	})
	high := f.messages(stream.KindHeartbeat, 0)
	for _, s := range tableSQL("t", 5) {
		run(t, conn, s)
	}
	f.converge(conn)
	b.awaitReady()
	after := f.meta()
	if last := high[len(high)-1]; after.Incarnation == before.Incarnation || after.Floor <= last.high || after.Floor <= last.since {
		t.Errorf("got incarnation %s with floor %d, want another one than %s, and a floor above %d", after.Incarnation, after.Floor, before.Incarnation, last.high)
	}
	run(t, conn, "INSERT INTO t VALUES (6)")
	f.converge(conn)
}

// A relation that becomes unusable stops, alone, until it is mended. Then it comes back by itself.
func TestBridge_UnusableRelationComesBackWhenMended_I10(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "t", 10)
	testenv.Exec(t, db, tableSQL("u", 10)...)
	conn := connect(t, db)
	run(t, conn, "CREATE ROLE reader LOGIN PASSWORD 'reader'", "GRANT SELECT ON t, u TO reader")
	as, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword("reader", "reader")
	b := startBridge(t, as.String(), broker.URL(), "t,u")
	nc := testenv.NATSConn(t, broker.URL())
	f, u := follow(t, nc, named("t")), follow(t, nc, named("u"))
	f.converge(conn)
	u.converge(conn)
	for _, broken := range []struct{ harm, heal, reason string }{
		{"REVOKE SELECT ON t FROM reader", "GRANT SELECT ON t TO reader", "SELECT"},
		{"ALTER TABLE t RENAME txid TO x", "ALTER TABLE t RENAME x TO txid", "txid"},
		{"ALTER TABLE t DROP CONSTRAINT t_pkey", "ALTER TABLE t ADD PRIMARY KEY (id)", "key"},
		{"ALTER TABLE t DROP COLUMN txid", "ALTER TABLE t ADD COLUMN txid bigint NOT NULL DEFAULT txid_current()", "txid"},
	} {
		run(t, conn, broken.harm)
		if broken.reason != "key" { // a running bridge notices that within a minute
			b.awaitReason("t", broken.reason)
		}
		run(t, conn, "INSERT INTO u SELECT max(id) + 1 FROM u")
		u.converge(conn)
		run(t, conn, broken.heal)
		if broken.harm != "ALTER TABLE t DROP COLUMN txid" {
			run(t, conn, "INSERT INTO t SELECT max(id) + 1 FROM t")
		}
		f.converge(conn)
		b.awaitReady()
	}
}
