package main_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A changed shape is seen without a restart, and the whole relation is
// published again in the same incarnation, though no txid has changed.
func TestBridge_ChangedColumnsArePublishedAnew_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 2000)
	conn := connect(t, db)
	startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	life := f.meta().Incarnation
	for _, change := range []string{
		"ALTER TABLE t ADD COLUMN c int DEFAULT 7",
		"ALTER TABLE t RENAME v TO w",
		"ALTER TABLE t ALTER COLUMN c TYPE numeric(10, 2) USING c + 0.25",
		"ALTER TABLE t DROP COLUMN w",
	} {
		end := f.caughtUp()
		run(t, conn, change)
		f.converge(conn)
		if n := f.repeats(2000, end+1); n < 0 || n > resent {
			t.Errorf("%s: %d rows more than the relation has were sent", change, n)
		}
		if len(f.messages(stream.KindSchema, end+1)) == 0 {
			t.Errorf("%s: no schema was stored", change)
		}
		run(t, conn, "UPDATE t SET id = id WHERE id = 5")
		f.converge(conn)
	}
	if got := f.meta().Incarnation; got != life {
		t.Errorf("incarnation is %s, want %s still", got, life)
	}
}

// A changed shape is seen although the next poll runs on a new connection,
// where no statement was prepared for the old one.
func TestBridge_ChangedColumnsBehindANewConnection_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	conn := connect(t, db)
	startBridge(t, db, broker.URL(), "t", "BRIDGE_POLL_INTERVAL=3s")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	f.heartbeatFrom(f.last() + 1) // a poll has just been; the next comes in 3 s
	const ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'lockstep bridge' AND datname = current_database() AND state = 'idle'"
	run(t, conn, "BEGIN", "ALTER TABLE t ADD COLUMN c int DEFAULT 7, DROP COLUMN v")
	if n := query[int](t, conn, ended); n == 0 {
		t.Fatal("the bridge has no idle connection")
	}
	run(t, conn, "COMMIT", "UPDATE t SET c = 8 WHERE id = 3")
	f.converge(conn)
}

// What changes rows and leaves columns' names and types as they are is seen,
// too: by a running bridge where it reads rows, and at its start. New labels
// are stored before rows that have them, and leave the other rows alone.
func TestBridge_ChangedTypesArePublishedAnew_I1(t *testing.T) {
	needServers(t)
	const n = 2000
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", n)
	conn := connect(t, db)
	run(t, conn, "CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TYPE pair AS (a int, m mood)", "CREATE TYPE pairs AS (p pair[])",
		"ALTER TABLE t ADD m mood DEFAULT 'ok', ADD p pairs DEFAULT ROW(ARRAY[ROW(1, 'sad')::pair]), ADD c int DEFAULT 7")
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	life := f.meta().Incarnation
	const update = "UPDATE t SET id = id WHERE id = 5"
	for _, c := range []struct {
		changes []string
		away    bool // the bridge does not run meanwhile
		labels  bool // only labels are added
	}{
		{changes: []string{"BEGIN", "ALTER TABLE t DROP c", "ALTER TABLE t ADD c int DEFAULT 8", "COMMIT"}},
		{changes: []string{"ALTER TYPE pair ADD ATTRIBUTE z int CASCADE", update}},
		{changes: []string{"ALTER TYPE pair DROP ATTRIBUTE z CASCADE", update}},
		{changes: []string{"ALTER TYPE pair RENAME ATTRIBUTE a TO b"}, away: true},
		{changes: []string{"ALTER TYPE pair DROP ATTRIBUTE b", "ALTER TYPE pair ADD ATTRIBUTE b int"}, away: true},
		{changes: []string{"ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'"}, away: true},
		{changes: []string{"ALTER TYPE mood ADD VALUE 'glad'", "UPDATE t SET m = 'glad' WHERE id = 6"}, away: true, labels: true},
		{changes: []string{"BEGIN", "ALTER TABLE t DROP c", "ALTER TABLE t ADD c int DEFAULT 9", "COMMIT"}, away: true},
	} {
		end := f.caughtUp()
		if c.away {
			b.stop()
		}
		run(t, conn, c.changes...)
		if c.away {
			b.start()
		}
		schema := f.await("schema", end+1, func(s seen) bool { return s.kind == stream.KindSchema })
		f.heartbeatFrom(schema.seq)
		f.converge(conn)
		rows := f.messages(stream.KindRow, end+1)
		if c.labels && (len(rows) > n/2 || rows[0].seq < schema.seq) {
			t.Errorf("%s: %d rows were sent, the first at %d; want the one that changed, behind the schema at %d", c.changes, len(rows), rows[0].seq, schema.seq)
		}
		if !c.labels && (len(rows) < n || len(rows) > n+resent) {
			t.Errorf("%s: %d rows were sent, want the relation's %d", c.changes, len(rows), n)
		}
	}
	if got := f.meta().Incarnation; got != life {
		t.Errorf("incarnation is %s, want %s still", got, life)
	}
}

// meta is what the stream's configuration says.
func (f *follower) meta() stream.Meta {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := f.js.Stream(ctx, f.layout.Stream)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := stream.ReadMeta(s.CachedInfo().Config)
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// A relation that is dropped stops alone, and says so; made again it comes
// back by itself, with a floor above whatever was shown.
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
	r, err := b.readyz()
	if err != nil || !r.Relations["u"].Ready {
		t.Errorf("got %+v, %v; want u live", r, err)
	}
	high := f.messages(stream.KindHeartbeat, 0)
	for _, s := range tableSQL("t", 5) {
		run(t, conn, s)
	}
	f.converge(conn)
	b.awaitReady()
	after := f.meta()
	if last := high[len(high)-1]; after.Incarnation == before.Incarnation || after.Floor <= last.high || after.Floor <= last.since {
		t.Errorf("got incarnation %s with floor %d, was %s and showed %d", after.Incarnation, after.Floor, before.Incarnation, last.high)
	}
	run(t, conn, "INSERT INTO t VALUES (6)")
	f.converge(conn)
}

// What makes a relation unusable stops it until it is mended.
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
		if broken.reason != "key" { // a primary key that goes is seen at the next look at the catalog
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
