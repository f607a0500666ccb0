package e2e_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// newBare makes a table (id, v) to which nothing was added for the bridge.
func newBare(t *testing.T, db, name string, n int) {
	t.Helper()
	testenv.Exec(t, db,
		fmt.Sprintf("CREATE TABLE %s (id bigint PRIMARY KEY, v text)", name),
		fmt.Sprintf("INSERT INTO %s SELECT g, 'row ' || g FROM generate_series(1, %d) g", name, n))
}

// startWAL starts a bridge whose slot no other test has.
func startWAL(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	return startBridge(t, db, nats, tables, append([]string{"BRIDGE_NAME=" + slotOf(db)}, env...)...)
}

// slotOf names a slot after the database, which is the test's own.
func slotOf(db string) string { return "slot_" + databaseOf(db) }

// scene is a bridge that captures tables of the test's own from the WAL, and a
// follower of one of them.
type scene struct {
	t        *testing.T
	db, nats string
	// broker is nil but in a scene of newScene's.
	broker *testenv.ExternalNATS
	conn   *pgx.Conn
	b      *bridge
	f      *follower
}

// newScene captures a table t(id, v) to a broker that can be killed.
func newScene(t *testing.T, rows int) *scene {
	t.Helper()
	needServers(t)
	broker := testenv.NATSProcess(t)
	s := &scene{t: t, db: testenv.Postgres(t), nats: broker.URL(), broker: broker}
	newBare(t, s.db, "t", rows)
	s.begin("t(capture=wal)", bare("t"))
	s.f.converge(s.conn)
	return s
}

// newSceneOf captures tables that the statements make, and follows rel.
func newSceneOf(t *testing.T, tables string, rel table, setup ...string) *scene {
	t.Helper()
	needServers(t)
	s := &scene{t: t, db: testenv.Postgres(t), nats: testenv.NATS(t).URL()}
	testenv.Exec(t, s.db, setup...)
	s.begin(tables, rel)
	return s
}

func (s *scene) begin(tables string, rel table) {
	s.t.Helper()
	s.conn = connect(s.t, s.db)
	s.b = startWAL(s.t, s.db, s.nats, tables)
	s.f = followAll(s.t, s.nats, rel)
}

// run runs statements of the application.
func (s *scene) run(statements ...string) {
	s.t.Helper()
	run(s.t, s.conn, statements...)
}

// whileAway kills the bridge, lets the application run statements, and starts the
// bridge again.
func (s *scene) whileAway(statements ...string) {
	s.t.Helper()
	s.b.Kill()
	s.run(statements...)
	s.b.start()
}

// converge waits until the follower has what the relation has; it may take the
// bridge a while to notice that it does not.
func (s *scene) converge() {
	s.t.Helper()
	s.f.convergeLate(s.conn)
}

func TestWAL_LoadsThenFollows_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10_000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	b.awaitReady()
	run(t, conn, "INSERT INTO t VALUES (0, 'new')", "UPDATE t SET v = 'changed' WHERE id <= 3", "DELETE FROM t WHERE id = 4",
		"UPDATE t SET id = 20000 WHERE id = 5")
	f.converge(conn)
	run(t, conn, "TRUNCATE t", "INSERT INTO t VALUES (1, 'after')")
	f.converge(conn)
	f.wantEpochs(1, b)
}

func databaseOf(db string) string {
	return db[strings.LastIndex(db, "/")+1 : strings.IndexByte(db, '?')]
}

// setTables changes BRIDGE_TABLES for the next start.
func (b *bridge) setTables(tables string) {
	for i, e := range b.env {
		if strings.HasPrefix(e, "BRIDGE_TABLES=") {
			b.env[i] = "BRIDGE_TABLES=" + tables
		}
	}
}

// What bridge sql prints, run by the owner, is all that a role with least rights
// needs; bridge check says what is missing before, and nothing after.
func TestWAL_LeastRights(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t), testenv.NATS(t)
	db := c.Database()
	newBare(t, db, "t", 10)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE u (id int UNIQUE NOT NULL, v text)", "INSERT INTO u VALUES (1, 'a')", "CREATE ROLE reader LOGIN PASSWORD 'sesame-3f9c'",
		"GRANT SELECT ON t, u TO reader", "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'", "SELECT pg_reload_conf()")
	as, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword("reader", "sesame-3f9c")
	env := []string{"DATABASE_URL=" + as.String(), "NATS_URL=" + broker.URL(), "BRIDGE_TABLES=t(capture=wal),u(capture=wal)", "BRIDGE_NAME=" + slotOf(db)}
	code, out, _ := command(t, env, "check")
	for _, part := range []string{"ALTER ROLE", "REPLICATION", "may not create it", "REPLICA IDENTITY USING INDEX"} {
		if code != 2 || !strings.Contains(out, part) {
			t.Errorf("bridge check: exit status %d, and no %q in\n%s", code, part, out)
		}
	}
	for _, name := range []string{"t(capture=wal)", "u(capture=wal)"} {
		code, sql, stderr := command(t, append(env, "DATABASE_URL="+db), "sql", "-role", "reader", name)
		if code != 0 {
			t.Fatalf("bridge sql: %s", stderr)
		}
		psql(t, db, sql)
		psql(t, db, sql) // it may be run again
	}
	if code, out, stderr := command(t, env, "check"); code != 0 || !strings.Contains(out, "0 warnings") {
		t.Errorf("bridge check: exit status %d\n%s%s", code, out, stderr)
	}
	startBridge(t, as.String(), broker.URL(), "t(capture=wal),u(capture=wal)", env[3])
	nc := testenv.NATSConn(t, broker.URL())
	f, g := follow(t, nc, bare("t")), follow(t, nc, bare("u"))
	run(t, conn, "DELETE FROM t WHERE id = 3", "UPDATE u SET v = 'b'", "UPDATE u SET id = 2")
	f.converge(conn)
	g.converge(conn)
}
