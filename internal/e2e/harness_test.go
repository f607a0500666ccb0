package e2e_test

import (
	"flag"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// long limits every wait for something that must come. Where users are promised a time, the test has a limit of its own.
var long = testenv.Patience()

// TestMain lets six tests run at the same time, on however few processors: most of the time they wait, for a lease or
// a standby. With the race detector it is three.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(6/min(scale, 2)))
	}
	testenv.Main(m)
}

// needServers marks a test that needs Postgres or NATS: it runs in parallel, and -short skips it.
func needServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
}

// ownDatabase returns a database in a cluster of the test's own. A test that holds a transaction open needs it: in the
// shared cluster that transaction would hold back xmin, and all first loads from the WAL, for every other test.
func ownDatabase(t *testing.T) string {
	t.Helper()
	return testenv.NewCluster(t).Database()
}

// stampSQL creates the trigger function that the tables of tableSQL use.
const stampSQL = `CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN NEW.txid := txid_current(); RETURN NEW; END$$`

// tableSQL creates a table (id, v) that can be polled. One transaction writes its rows 1 to n.
func tableSQL(name string, n int) []string {
	return []string{
		fmt.Sprintf("CREATE TABLE %s (id bigint PRIMARY KEY, v text, txid bigint NOT NULL DEFAULT txid_current())", name),
		fmt.Sprintf("INSERT INTO %s SELECT g, 'row ' || g FROM generate_series(1, %d) g", name, n),
		fmt.Sprintf("CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION stamp()", name),
		fmt.Sprintf("CREATE INDEX ON %s (txid, id)", name),
	}
}

// newTable creates the trigger function and one table that can be polled.
func newTable(t *testing.T, db, name string, n int) {
	t.Helper()
	testenv.Exec(t, db, append([]string{stampSQL}, tableSQL(name, n)...)...)
}

// newBare creates a table (id, v) without anything for the bridge: it has no txid and no trigger.
func newBare(t *testing.T, db, name string, n int) {
	t.Helper()
	testenv.Exec(t, db,
		fmt.Sprintf("CREATE TABLE %s (id bigint PRIMARY KEY, v text)", name),
		fmt.Sprintf("INSERT INTO %s SELECT g, 'row ' || g FROM generate_series(1, %d) g", name, n))
}

// big is the number of rows of a table that takes about a second to load.
const big = 60_000 / scale

// bigTable creates a table of n rows, which all have the same txid.
func bigTable(t *testing.T, n int) (db string, broker *testenv.ExternalNATS, conn *pgx.Conn) {
	t.Helper()
	db, broker = testenv.Postgres(t), testenv.NATSProcess(t)
	newTable(t, db, "t", n)
	conn = connect(t, db)
	if n := query[int](t, conn, "SELECT count(DISTINCT txid) FROM t"); n != 1 {
		t.Fatalf("the table has %d transaction IDs, want 1", n)
	}
	return db, broker, conn
}

// resent is how many rows may be sent again after a kill.
const resent = 5000

// unstamped runs statements without triggers, so that the rows keep their txid.
func unstamped(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	run(t, conn, "SET session_replication_role = replica")
	run(t, conn, statements...)
	run(t, conn, "RESET session_replication_role")
}

// psql feeds a script to psql, as users do. The test fails at the script's first error.
func psql(t *testing.T, db, script string) {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", db)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s\n%s", err, out, script)
	}
}

// connect opens a connection on which Postgres prints values as they are in the bridge's documents.
func connect(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn := testenv.Conn(t, db)
	for _, s := range []string{"TimeZone = 'UTC'", "DateStyle = 'ISO, MDY'", "IntervalStyle = postgres", "bytea_output = hex", "extra_float_digits = 1"} {
		if _, err := conn.Exec(t.Context(), "SET "+s); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

// query returns the only value that a query gives.
func query[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// run executes statements, one by one.
func run(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// snapshot returns the current snapshot of Postgres.
func snapshot(t *testing.T, conn *pgx.Conn) capture.Snapshot {
	t.Helper()
	s, err := capture.ParseSnapshot(query[string](t, conn, "SELECT pg_current_snapshot()::text"))
	if err != nil {
		t.Fatal(err)
	}
	if query[bool](t, conn, "SELECT pg_is_in_recovery()") { // a standby's snapshots do not list who was running
		return capture.Snapshot{Xmin: s.Xmin, Xmax: s.Xmin}
	}
	return s
}

// covers reports whether everything that is visible in b is visible in a.
func covers(a, b capture.Snapshot) bool {
	if a.Xmax < b.Xmax {
		return false
	}
	return !slices.ContainsFunc(a.Xip, b.Visible)
}

// table is a relation as the tests compare it. Where the name of the txid column or of the deleted column is empty, the
// relation has no such column.
type table struct {
	schema, name  string
	txid, deleted string
	log           bool
	// key, if set, is the column by whose JSON the follower tells rows, as clients do. Else it tells them by their subjects.
	key string
	// published, if set, is the condition that a row r is published.
	published string
}

func (r table) layout() stream.Layout {
	return stream.NewLayout(stream.DefaultPrefix, r.schema, r.name, r.log)
}

// bare returns a table of schema public without a txid column.
func bare(name string) table { return table{schema: "public", name: name} }

// named returns a table of schema public whose txid column is named txid.
func named(name string) table { return table{schema: "public", name: name, txid: "txid"} }

// rows returns the relation's rows as Postgres has them, sorted: the txid and the document of each.
func (r table) rows(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	columns := query[[]string](t, conn, `SELECT COALESCE(array_agg(quote_ident(attname) ORDER BY attnum), '{}') FROM pg_attribute
		WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attname <> $2 AND attname <> $3`,
		r.sql(), r.txid, r.deleted)
	where := ""
	if r.deleted != "" {
		where = fmt.Sprintf(" WHERE COALESCE(nullif(%s::text, 'false'), '') = ''", pgx.Identifier{r.deleted}.Sanitize())
	}
	if r.published != "" {
		where += map[bool]string{true: " WHERE ", false: " AND "}[where == ""] + r.published
	}
	txid := "''"
	if r.txid != "" {
		txid = pgx.Identifier{r.txid}.Sanitize() + "::text || ' '"
	}
	rows, err := conn.Query(t.Context(), fmt.Sprintf("SELECT %s || (SELECT row_to_json(d)::text FROM (SELECT %s) d) FROM %s%s",
		txid, "r."+strings.Join(columns, ", r."), r.sql()+" r", where))
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func (r table) sql() string { return pgx.Identifier{r.schema, r.name}.Sanitize() }
