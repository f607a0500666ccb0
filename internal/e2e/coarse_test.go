package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// coarse is a type with two values that Postgres calls equal and prints differently.
type coarse struct{ name, create, column, a, b string }

var coarseTypes = []coarse{
	{"numeric", "", "k numeric", "1.0", "1.00"},
	{"float8", "", "k float8", "0", "-0"},
	{"float4", "", "k float4", "0", "-0"},
	{"interval", "", "k interval", "1 day", "24:00:00"},
	{"jsonb", "", "k jsonb", `{"a": 1.0}`, `{"a": 1.00}`},
	{"array", "", "k numeric[]", "{1.0}", "{1.00}"},
	{"range", "", "k numrange", "[1.0,2]", "[1.00,2]"},
	{"multirange", "", "k nummultirange", "{[1.0,2]}", "{[1.00,2]}"},
	{"composite", "CREATE TYPE pair AS (a int, b numeric)", "k pair", "(1,1.0)", "(1,1.00)"},
	{"citext", "CREATE EXTENSION citext", "k citext", "Ab", "AB"},
	{"domain", "CREATE DOMAIN price AS numeric NOT NULL", "k price", "1.0", "1.00"},
	{"collation", "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)", "k text COLLATE ci", "Ab", "AB"},
	{"bpchar", "", "k bpchar", "a", "a "},
	{"composite key", "", `o int DEFAULT 7, k numeric, spelling int DEFAULT 8, PRIMARY KEY (o, k, spelling)`, "1.0", "1.00"},
}

func (c coarse) table() string { return "t_" + strings.ReplaceAll(c.name, " ", "_") }

// A key is its text, as clients see it, whatever Postgres calls equal. So a row that moves from a key to an equal one leaves
// the old one, in both captures, in whatever order keys are deleted and inserted, and also while no bridge runs.
func TestBridge_CoarseKeys_I1(t *testing.T) {
	needServers(t)
	for _, capture := range []string{"poll", "wal"} {
		t.Run(capture, func(t *testing.T) {
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			var script strings.Builder
			var entries []string
			rels := map[string]table{}
			for _, c := range coarseTypes {
				if c.create != "" {
					run(t, conn, c.create)
				}
				columns := c.column
				if !strings.Contains(columns, "PRIMARY KEY") {
					columns += " PRIMARY KEY"
				}
				run(t, conn, fmt.Sprintf("CREATE TABLE %s (%s, v int)", c.table(), columns), "INSERT INTO "+c.table()+" (k, v) VALUES ("+quoted(c.a)+", 1)")
				if capture == "wal" {
					entries, rels[c.name] = append(entries, c.table()+"(capture=wal)"), table{schema: "public", name: c.table(), key: "k"}
					continue
				}
				sql := setupSQL(t, conn, db, c.table())
				script.WriteString(sql)
				entries = append(entries, entryOf(t, sql))
				rels[c.name] = table{schema: "public", name: c.table() + "_lockstep", txid: "txid", deleted: "deleted", key: "k"}
			}
			psql(t, db, script.String())
			psql(t, db, script.String()) // it may run again
			b := startWAL(t, db, broker.URL(), strings.Join(entries, ","))
			followers := map[string]*follower{}
			for _, c := range coarseTypes {
				followers[c.name] = follow(t, testenv.NATSConn(t, broker.URL()), rels[c.name])
			}
			// step runs statements on every table, and waits until every follower has their outcome.
			step := func(statements ...string) {
				t.Helper()
				for _, c := range coarseTypes {
					for _, s := range statements {
						run(t, conn, strings.NewReplacer("{t}", c.table(), "{a}", quoted(c.a), "{b}", quoted(c.b)).Replace(s))
					}
				}
				for _, c := range coarseTypes {
					t.Log(c.name, statements)
					followers[c.name].convergeLate(conn)
				}
			}
			step()
			step("UPDATE {t} SET k = {b}")
			for _, c := range coarseTypes { // also a client to which both keys are one ends with the row
				rows := followers[c.name].messages(stream.KindRow, 0)
				moved := slices.IndexFunc(rows, func(s seen) bool { return s.key != rows[0].key })
				if !slices.ContainsFunc(rows[:moved], func(s seen) bool { return s.row.Deleted }) {
					t.Errorf("%s: the row comes under its new key before its old key is deleted", c.name)
				}
			}
			step("UPDATE {t} SET k = {a}, v = 2", "UPDATE {t} SET k = {b}, v = 3")
			step("DELETE FROM {t}", "INSERT INTO {t} (k, v) VALUES ({a}, 4)", "DELETE FROM {t}")
			step("INSERT INTO {t} (k, v) VALUES ({b}, 5)")
			step("BEGIN", "DELETE FROM {t}", "INSERT INTO {t} (k, v) VALUES ({a}, 6)", "DELETE FROM {t}", "INSERT INTO {t} (k, v) VALUES ({b}, 7)", "COMMIT")
			b.Kill()
			for _, c := range coarseTypes {
				run(t, conn, "UPDATE "+c.table()+" SET k = "+quoted(c.a))
			}
			b.start()
			step()
			step("TRUNCATE {t}")
			step("INSERT INTO {t} (k, v) VALUES ({b}, 8)")
			for _, c := range coarseTypes {
				reconciled(t, broker.URL(), rels[c.name].name, "1 rows compared: 0 missing, 0 stale, 0 zombies")
			}
		})
	}
}

// Nothing records that a key changed to an equal one, as without tombstones. A comparison finds it.
func TestBridge_ReconcileFindsCoarseKeys_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, stampSQL, "CREATE EXTENSION citext", "CREATE TABLE t (k citext PRIMARY KEY, txid bigint NOT NULL DEFAULT txid_current())",
		"CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION stamp()", "INSERT INTO t VALUES ('Ab'), ('c')")
	startBridge(t, db, broker.URL(), "t")
	rel := named("t")
	rel.key = "k"
	f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
	f.set(func() { f.repairs = true })
	f.converge(conn)
	run(t, conn, "UPDATE t SET k = 'AB' WHERE k = 'ab'")
	f.heartbeat(conn)
	reconciled(t, broker.URL(), "t", "2 rows compared: 0 missing, 0 stale, 1 zombie, repaired")
	f.converge(conn)
	reconciled(t, broker.URL(), "t", "2 rows compared: 0 missing, 0 stale, 0 zombies")
}

// A first load reads pages of rows in the order of their keys. Where the keys of all rows are equal, none is left out
// between two pages.
func TestWAL_LoadOfEqualKeys_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=k)", table{schema: "public", name: "t", key: "k"}, "CREATE TABLE t (k numeric NOT NULL, v int)", "ALTER TABLE t REPLICA IDENTITY FULL",
		"INSERT INTO t SELECT ('1.' || repeat('0', g))::numeric, g FROM generate_series(1, 400) g")
	s.f.converge(s.conn)
	s.run("DELETE FROM t WHERE v % 2 = 0")
	s.f.converge(s.conn)
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// setupSQL returns what bridge sql prints for a table. It runs the program: the mutants break programs, not this test.
func setupSQL(t *testing.T, conn *pgx.Conn, db, name string) string {
	t.Helper()
	code, sql, stderr := command(t, []string{"DATABASE_URL=" + db}, "sql", "-role", query[string](t, conn, "SELECT current_user"), name)
	if code != 0 {
		t.Fatalf("bridge sql %s: exit status %d\n%s", name, code, stderr)
	}
	return sql
}

// entryOf returns what a script of bridge sql says to put into BRIDGE_TABLES.
func entryOf(t *testing.T, sql string) string {
	t.Helper()
	_, entry, ok := strings.Cut(sql, "BRIDGE_TABLES=")
	if !ok {
		t.Fatalf("no BRIDGE_TABLES in\n%s", sql)
	}
	return strings.Trim(strings.TrimSpace(entry), "'")
}
