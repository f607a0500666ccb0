package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bridge/internal/relation"
	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// TestMain lets more tests run at once than there are processors: most wait
// for a lease or a standby.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(8/min(scale, 2)))
	}
	testenv.Main(m)
}

func needServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
}

// stampSQL makes the trigger function of the tables that tableSQL makes.
const stampSQL = `CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN NEW.txid := txid_current(); RETURN NEW; END$$`

// tableSQL makes a table (id, v) that can be polled, with rows 1 to n of one
// transaction.
func tableSQL(name string, n int) []string {
	return []string{
		fmt.Sprintf("CREATE TABLE %s (id bigint PRIMARY KEY, v text, txid bigint NOT NULL DEFAULT txid_current())", name),
		fmt.Sprintf("INSERT INTO %s SELECT g, 'row ' || g FROM generate_series(1, %d) g", name, n),
		fmt.Sprintf("CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION stamp()", name),
		fmt.Sprintf("CREATE INDEX ON %s (txid, id)", name),
	}
}

// newTable makes the function and one table.
func newTable(t *testing.T, db, name string, n int) {
	t.Helper()
	testenv.Exec(t, db, append([]string{stampSQL}, tableSQL(name, n)...)...)
}

// bridge is a bridge process that can be killed and started again.
type bridge struct {
	*testenv.Process
	t       *testing.T
	program string
	env     []string
	past    []*testenv.Process // those before the last start
}

// startBridge starts a bridge with fast polls and heartbeats. env comes last,
// and wins.
func startBridge(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	b := newBridge(t, db, nats, tables, env...)
	b.start()
	return b
}

// newBridge is startBridge that leaves the start to the test.
func newBridge(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	return &bridge{t: t, program: testenv.Build(t, "./cmd/bridge"), env: append([]string{
		"DATABASE_URL=" + db, "NATS_URL=" + nats, "BRIDGE_TABLES=" + tables, "BRIDGE_LISTEN=127.0.0.1:0",
		"BRIDGE_POLL_INTERVAL=20ms", "BRIDGE_HEARTBEAT_INTERVAL=300ms",
	}, env...)}
}

func (b *bridge) start() {
	b.t.Helper()
	if b.Process != nil {
		b.past = append(b.past, b.Process)
	}
	b.Process = testenv.Start(b.t, b.program, b.env)
}

// restart kills the process and starts another.
func (b *bridge) restart() {
	b.t.Helper()
	b.Kill()
	b.start()
}

// readiness is the answer of /readyz.
type readiness struct {
	Status    int `json:"-"`
	Ready     bool
	Reason    string
	Relations map[string]struct {
		Ready         bool
		State, Reason string
	}
}

// get asks the bridge's own listener, whose address the log tells.
func (b *bridge) get(path string) (*http.Response, error) {
	_, rest, ok := strings.Cut(b.Stderr(), `"component":"ops","remote":"`)
	addr, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		return nil, errors.New("the bridge does not listen yet")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	b.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	return (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
}

func (b *bridge) readyz() (readiness, error) {
	resp, err := b.get("/readyz")
	if err != nil {
		return readiness{}, err
	}
	defer resp.Body.Close()
	r := readiness{Status: resp.StatusCode}
	err = json.NewDecoder(resp.Body).Decode(&r)
	return r, err
}

// awaitReady waits until every relation is live.
func (b *bridge) awaitReady() {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		r, err := b.readyz()
		if err == nil && (r.Status != http.StatusOK || !r.Ready) {
			err = fmt.Errorf("not ready: %+v", r)
		}
		return err
	})
}

// awaitReason waits until /readyz says why a relation ("" for the bridge as a
// whole) is not live, in a text that holds each of parts.
func (b *bridge) awaitReason(rel string, parts ...string) {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		r, err := b.readyz()
		if err != nil {
			return err
		}
		reason := r.Reason
		if rel != "" {
			reason = r.Relations[rel].Reason
		}
		for _, p := range parts {
			if !strings.Contains(reason, p) || r.Status != http.StatusServiceUnavailable {
				return fmt.Errorf("got %+v, want a reason with %q", r, p)
			}
		}
		return nil
	})
}

// logged waits until the bridge has logged a line that holds each of parts.
func (b *bridge) logged(parts ...string) {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		for line := range strings.Lines(b.Stderr()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return nil
			}
		}
		return fmt.Errorf("no line of the log holds %q", parts)
	})
}

// slowness is what the log says of an epoch that a slow machine alone can end. With a broker that takes more than 1.3 s
// to acknowledge, jetstreamext v0.3.0 asks about a message that it has not sent yet, and the broker says "gap".
var slowness = []string{"fast batch gap detected", "the lease was lost", "and is not stored", "the connection to the broker was lost"}

// endedBySlowness is how many epochs of the bridge a slow machine has ended, in all runs of its process.
func (b *bridge) endedBySlowness() int {
	n := 0
	for _, p := range append(b.past, b.Process) {
		for line := range strings.Lines(p.Stderr()) {
			if slices.ContainsFunc(slowness, func(s string) bool { return strings.Contains(line, s) }) {
				n++
			}
		}
	}
	return n
}

func (b *bridge) running() {
	b.t.Helper()
	select {
	case <-b.Exited():
		b.t.Fatal("the bridge has ended")
	default:
	}
}

// connect opens a connection on which Postgres writes values as the bridge's
// documents have them.
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

func query[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func run(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func snapshot(t *testing.T, conn *pgx.Conn) relation.Snapshot {
	t.Helper()
	s, err := relation.ParseSnapshot(query[string](t, conn, "SELECT pg_current_snapshot()::text"))
	if err != nil {
		t.Fatal(err)
	}
	if query[bool](t, conn, "SELECT pg_is_in_recovery()") { // its snapshots have no xip
		return relation.Snapshot{Xmin: s.Xmin, Xmax: s.Xmin}
	}
	return s
}

// covers says that everything visible in b is visible in a.
func covers(a, b relation.Snapshot) bool {
	if a.Xmax < b.Xmax {
		return false
	}
	return !slices.ContainsFunc(a.Xip, b.Visible)
}

// table is a relation as the tests compare it; the zero values of the columns
// are txid, and no deleted column.
type table struct {
	schema, name  string
	txid, deleted string
	log           bool
}

func (r table) layout() stream.Layout {
	return stream.NewLayout(stream.DefaultPrefix, r.schema, r.name, r.log)
}

// bare returns a table of schema public without a txid column.
func bare(name string) table { return table{schema: "public", name: name} }

// named returns a table of schema public.
func named(name string) table { return table{schema: "public", name: name, txid: "txid"} }

// rows returns the relation's rows as Postgres says them: txid and document.
func (r table) rows(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	columns := query[[]string](t, conn, `SELECT COALESCE(array_agg(quote_ident(attname) ORDER BY attnum), '{}') FROM pg_attribute
		WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attname <> $2 AND attname <> $3`,
		r.sql(), r.txid, r.deleted)
	where := ""
	if r.deleted != "" {
		where = fmt.Sprintf(" WHERE COALESCE(nullif(%s::text, 'false'), '') = ''", pgx.Identifier{r.deleted}.Sanitize())
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
