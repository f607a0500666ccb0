package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

const (
	docs    = `CREATE TABLE docs (id int PRIMARY KEY, body text, ts tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED)`
	docsLog = "docs(capture=wal;history=log;max_age=1h)"
)

// generatedSent reports whether the server can publish generated columns: since version 18.
func generatedSent(t *testing.T, conn *pgx.Conn) bool {
	t.Helper()
	return query[int](t, conn, "SELECT current_setting('server_version_num')::int") >= 180000
}

// The application's own UPDATE goes on after the SQL of bridge sql: the table has REPLICA IDENTITY FULL, and Postgres 18
// refuses writes of such a table if its generated columns are not published (issue 14, number 1).
func TestWAL_GeneratedColumnInTheIdentity_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, docs, "ALTER TABLE docs REPLICA IDENTITY FULL", "INSERT INTO docs VALUES (1, 'old words')")
	role := "role_" + databaseOf(db)
	t.Cleanup(func() { testenv.Exec(t, db, "DROP OWNED BY "+role, "DROP ROLE "+role) })
	env := []string{"DATABASE_URL=" + db, "BRIDGE_NAME=" + slotOf(db), "BRIDGE_TABLES=" + docsLog}
	code, sql, stderr := command(t, env, "sql", "-role", role, docsLog)
	if code != 0 {
		t.Fatalf("bridge sql: exit status %d\n%s\n%s", code, sql, stderr)
	}
	psql(t, db, sql)
	run(t, conn, "UPDATE docs SET body = 'new words'")
	startWAL(t, db, broker.URL(), docsLog)
	rel := bare("docs")
	rel.log = true
	f := followAll(t, broker.URL(), rel)
	f.awaitKept(1)
	run(t, conn, "UPDATE docs SET body = 'newest'", "DELETE FROM docs")
	want := []string{`read {"id":1,"body":"new words"} `, `update {"id":1,"body":"newest"} {"id":1,"body":"new words"}`, `delete {"id":1} {"id":1,"body":"newest"}`}
	if generatedSent(t, conn) {
		want = []string{
			`read {"id":1,"body":"new words","ts":"'new':1 'word':2"} `, `update {"id":1,"body":"newest","ts":"'newest':1"} {"id":1,"body":"new words","ts":"'new':1 'word':2"}`,
			`delete {"id":1} {"id":1,"body":"newest","ts":"'newest':1"}`,
		}
	}
	for i, r := range f.awaitKept(3) {
		if got := fmt.Sprintf("%s %s %s", r.Action, r.Data, r.Old); got != want[i] {
			t.Errorf("change %d: got %s, want %s", i, got, want[i])
		}
	}
}

// A publication that leaves generated columns out was there before. On Postgres 18 the table is refused by bridge sql,
// by bridge check and by the bridge itself, before the application's writes fail. All say what to do; then it is captured.
func TestWAL_GeneratedColumnIsNotPublished_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	if !generatedSent(t, conn) {
		t.Skip("no publication of this version of Postgres has generated columns, and none harms a table that has some")
	}
	run(t, conn, docs, "ALTER TABLE docs REPLICA IDENTITY FULL", "INSERT INTO docs VALUES (1, 'old')", "CREATE TABLE k (a int, b int GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY)",
		"CREATE TABLE virt (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id + 1) VIRTUAL)", "ALTER TABLE virt REPLICA IDENTITY FULL", "INSERT INTO virt VALUES (1)",
		"CREATE PUBLICATION "+slotOf(db)+" WITH (publish_via_partition_root = true)", "COMMENT ON PUBLICATION "+slotOf(db)+" IS 'made by the lockstep bridge'")
	tables := docsLog + ",k(capture=wal),virt(capture=wal)"
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL(), "BRIDGE_NAME=" + slotOf(db), "BRIDGE_TABLES=" + tables}
	const do = "(publish_generated_columns = stored)"
	_, report, _ := command(t, env, "check")
	for _, want := range []string{"would refuse UPDATE and DELETE of it in publication " + slotOf(db) + ": its replica identity has ts, a generated column", do, "v, a virtual generated column, which Postgres can't publish"} {
		if !strings.Contains(report, want) {
			t.Errorf("bridge check lacks %q:\n%s", want, report)
		}
	}
	code, sql, _ := command(t, env, "sql", docsLog)
	if code != 1 || !strings.Contains(sql, do) {
		t.Errorf("bridge sql: exit status %d\n%s", code, sql)
	}
	psql(t, db, sql) // comments
	b := startWAL(t, db, broker.URL(), tables)
	b.awaitReason("docs", "would refuse UPDATE and DELETE", do)
	b.awaitReason("k", "would refuse", do)
	b.awaitReason("virt", "virtual generated column", `"virt" REPLICA IDENTITY DEFAULT`)
	run(t, conn, "UPDATE docs SET body = 'new'", "INSERT INTO k VALUES (1)", "UPDATE k SET a = 2", "DELETE FROM k", "UPDATE virt SET id = 2")
	if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 0 {
		t.Errorf("%d tables are published, want none", n)
	}
	run(t, conn, "ALTER PUBLICATION "+slotOf(db)+" SET "+do, "ALTER TABLE virt REPLICA IDENTITY DEFAULT")
	rel := bare("docs")
	rel.log = true
	f := followAll(t, broker.URL(), rel)
	f.awaitKept(1)
	k := followAll(t, broker.URL(), bare("k"))
	run(t, conn, "UPDATE docs SET body = 'newest'", "INSERT INTO k VALUES (5)", "UPDATE k SET a = 6", "UPDATE virt SET id = 3")
	f.awaitKept(2)
	k.convergeLate(conn)
}

// While the bridge runs, a table loses its replica identity. In the bridge's own publication its UPDATE then fails. The
// bridge takes the table out, though no row tells it to look, and the application's writes go on. When the identity is
// back, the table is compared and captured again.
func TestWAL_IdentityLostWhileItRuns_I10(t *testing.T) {
	needServers(t)
	for name, c := range map[string]struct{ create, lose, restore string }{
		"table": {
			"CREATE TABLE t (id int PRIMARY KEY, v text)",
			"ALTER TABLE t REPLICA IDENTITY NOTHING", "ALTER TABLE t REPLICA IDENTITY DEFAULT",
		},
		"no key any more": {
			"CREATE TABLE t (id int CONSTRAINT k PRIMARY KEY, v text)",
			"ALTER TABLE t DROP CONSTRAINT k", "ALTER TABLE t ADD CONSTRAINT k PRIMARY KEY (id)",
		},
		"partition attached": {
			"CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
			"CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20); ALTER TABLE t2 REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (11, 'old')", "ALTER TABLE t2 REPLICA IDENTITY DEFAULT",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSceneOf(t, "t(capture=wal),u(capture=wal)", bare("t"), c.create, "INSERT INTO t VALUES (1, 'old'), (2, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
			s.f.converge(s.conn)
			s.run(c.lose)
			update := func(v string) error {
				_, err := s.conn.Exec(t.Context(), "UPDATE t SET v = $1", v)
				return err
			}
			if name == "table" && update("new") == nil {
				t.Error("the UPDATE does not fail in the publication: the test shows nothing")
			}
			testenv.Eventually(t, time.Minute+long, func() error { return update("new") })
			s.b.awaitReason("t", "would refuse")
			s.b.logged("table taken out of the publication")
			s.run("DELETE FROM t WHERE id = 2", "INSERT INTO u VALUES (1)")
			s.run(c.restore)
			s.converge()
			s.run("UPDATE t SET v = 'newest'")
			s.converge()
		})
	}
}

// Somebody else made the publication. The bridge does not change it, and says what to run.
func TestWAL_IdentityLostInAnothersPublication_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old')", "CREATE PUBLICATION "+slotOf(db)+" FOR TABLE t")
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "ALTER TABLE t REPLICA IDENTITY NOTHING", "INSERT INTO t VALUES (2, 'new')")
	b.awaitReason("t", "Postgres refuses UPDATE and DELETE of it in publication", `"t" REPLICA IDENTITY DEFAULT`, "DROP TABLE")
	if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 1 {
		t.Errorf("%d tables are published, want 1", n)
	}
	run(t, conn, "ALTER TABLE t REPLICA IDENTITY DEFAULT", "UPDATE t SET v = 'newest'")
	f.convergeLate(conn)
}
