package e2e_test

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// The bridge notices changed columns without a restart. It publishes the whole relation again in the same incarnation,
// although no txid has changed.
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
			t.Errorf("%s: %d rows more than the relation has were sent, want 0 to %d", change, n, resent)
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

// A row is committed before ALTER TABLE rewrites the table, and the poll that should find it meets the ALTER TABLE. The
// row arrives. It would be lost under a snapshot from before the rewrite, which sees the new table empty.
func TestBridge_RewrittenTableLosesNothing_I1(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	conn := connect(t, db)
	startBridge(t, db, broker.URL(), "t", "BRIDGE_POLL_INTERVAL=500ms")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	watcher := connect(t, db)
	for _, change := range []string{"SET UNLOGGED", "SET LOGGED", "ALTER COLUMN v TYPE text USING v || ''"} {
		f.heartbeatFrom(f.caughtUp() + 1)
		run(t, conn, "UPDATE t SET v = v || '!' WHERE id = 7", "BEGIN", "ALTER TABLE t "+change)
		changed := query[time.Time](t, watcher, "SELECT clock_timestamp()")
		testenv.Eventually(t, long, func() error {
			const polls = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lockstep bridge' AND datname = current_database() AND query_start > $1"
			if query[int](t, watcher, polls, changed) == 0 {
				return errors.New("no poll has met the change")
			}
			return nil
		})
		run(t, conn, "COMMIT")
		f.converge(conn)
	}
}

// A view's definition changes, and its columns stay. The bridge publishes the view again, because rows that are new in it
// have old txids.
func TestBridge_ReplacedViewIsPublishedAnew_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	conn := connect(t, db)
	run(t, conn, "CREATE VIEW below AS SELECT * FROM t WHERE id < 10", "CREATE VIEW v AS SELECT * FROM below")
	b := startBridge(t, db, broker.URL(), "v(key=id)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("v"))
	f.converge(conn)
	f.set(func() { f.repairs = true }) // rows of old transactions come after heartbeats that cover them
	// A running bridge would notice within a minute, at its start it does so immediately.
	b.Kill()
	run(t, conn, "CREATE OR REPLACE VIEW below AS SELECT * FROM t")
	b.start()
	f.converge(conn)
}

// Another key begins another incarnation, because the stream has the rows under the old key.
func TestBridge_ChangedKeyBeginsAnew_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	conn := connect(t, db)
	run(t, conn, "ALTER TABLE t ADD u uuid NOT NULL UNIQUE DEFAULT gen_random_uuid()")
	rel := named("t")
	b := startBridge(t, db, broker.URL(), "t(key=v)")
	run(t, conn, "ALTER TABLE t ALTER v SET NOT NULL", "ALTER TABLE t ADD UNIQUE (v)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
	f.converge(conn)
	life := f.meta()
	b.env = append(b.env, "BRIDGE_TABLES=t(key=u)")
	b.Kill()
	run(t, conn, "UPDATE t SET v = v || '!'")
	b.start()
	f.converge(conn)
	if now := f.meta(); now.Incarnation == life.Incarnation || now.Floor <= life.Floor {
		t.Errorf("got incarnation %s with floor %d, want another one than %s, and a floor above %d", now.Incarnation, now.Floor, life.Incarnation, life.Floor)
	}
	b.awaitReady()
}

// Row level security hides rows from the bridge, and they change meanwhile. The bridge says so, and publishes them when it
// may see them again.
func TestBridge_HiddenRowsComeWhenTheyMay_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	conn := connect(t, db)
	role := "reader_" + query[string](t, conn, "SELECT current_database()")
	run(t, conn, "CREATE ROLE "+role+" LOGIN PASSWORD 'reader'", "GRANT SELECT ON t TO "+role)
	defer run(t, conn, "DROP OWNED BY "+role, "DROP ROLE "+role)
	u, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "reader")
	b := startBridge(t, u.String(), broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	run(t, conn, "CREATE POLICY half ON t FOR SELECT TO "+role+" USING (id > 10)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
		"UPDATE t SET v = 'hidden' WHERE id < 10")
	b.awaitReason("t", "row level security")
	run(t, conn, "ALTER TABLE t DISABLE ROW LEVEL SECURITY")
	f.converge(conn)
	b.awaitReady()
}

// The bridge notices changed columns also if its next poll uses a new connection, on which it has prepared no statement
// for the old columns.
func TestBridge_ChangedColumnsBehindANewConnection_I1(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	newTable(t, db, "t", 100)
	conn := connect(t, db)
	startBridge(t, db, broker.URL(), "t", "BRIDGE_POLL_INTERVAL=3s")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	f.heartbeatFrom(f.last() + 1) // a poll has just ended; the next comes in 3 s
	const ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'lockstep bridge' AND datname = current_database() AND state = 'idle'"
	run(t, conn, "BEGIN", "ALTER TABLE t ADD COLUMN c int DEFAULT 7, DROP COLUMN v")
	if n := query[int](t, conn, ended); n == 0 {
		t.Fatal("the bridge has no idle connection")
	}
	run(t, conn, "COMMIT", "UPDATE t SET c = 8 WHERE id = 3")
	f.converge(conn)
}

// Rows can change while the names and types of the columns stay: a column is made again, an attribute or a label changes.
// The bridge notices at its start, and while it runs, when it reads rows. Then it publishes all rows again. If only labels
// were added, it stores them before the rows that have them, and sends no other row.
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
		away    bool // the bridge is stopped meanwhile
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
			t.Errorf("%s: %d rows were sent, the first at %d; want the one that changed, after the schema at %d", c.changes, len(rows), rows[0].seq, schema.seq)
		}
		if !c.labels && (len(rows) < n || len(rows) > n+resent) {
			t.Errorf("%s: %d rows were sent, want all %d of the relation, and at most %d more", c.changes, len(rows), n, resent)
		}
	}
	if got := f.meta().Incarnation; got != life {
		t.Errorf("incarnation is %s, want %s still", got, life)
	}
}
