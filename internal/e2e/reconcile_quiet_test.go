package e2e_test

import (
	"errors"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go/jetstream"
)

// A comparison of what did not change finds nothing, twice in a row, and publishes nothing: for every kind of row and column,
// in both captures. Some rows are too large for the broker. Some views have the columns of the oldest lockstep views, which
// change with every transaction. Only a column that gives another value each time is always found; the log and bridge check warn of it.
// (Issue 14, number 9.)
func TestBridge_ReconcileFindsNothingWhereNothingChanged_I1(t *testing.T) {
	needServers(t)
	const types = `CREATE TYPE pair AS (a int, "B c" text); CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN small AS int CHECK (VALUE < 1000);`
	const xmin = "txid_snapshot_xmin(txid_current_snapshot())"
	large := func(n string) string { // 1.6 MB
		return "(SELECT string_agg(md5(" + n + "::text || i), '') FROM generate_series(1, 50000) i)"
	}
	cases := []struct {
		name, options string
		// columns and values are those of a table; query is that of a view over it.
		columns, values, query string
		log                    bool
		pollOnly               bool
		always                 bool // found each time
	}{
		{name: "plain", columns: "v text", values: "'row ' || g"},
		{name: "oversize", columns: "v text", values: "CASE WHEN g % 5 = 0 THEN " + large("g") + " ELSE 'small' END"},
		{name: "oversize_log", options: "history=log;max_age=1h", columns: "v text", values: "CASE WHEN g = 5 THEN " + large("g") + " END", log: true},
		{name: "medium", columns: "v text", values: "repeat(g::text, 700)"},
		{name: "generated", columns: "n int, g int GENERATED ALWAYS AS (n * 2) STORED, v text", values: "g"},
		{name: "server_printed", columns: "o odder, os odder[]", values: "'a', '{a,b}'"},
		{
			name: "types", columns: `a numeric, b float8, c timestamptz, d interval, e bytea, f jsonb, g json, h text[], i pair, j mood, k int4range, l small, m bit(3), n inet, o "char", p xml, q tsvector`,
			values: `'1.00', 1e-7, 'infinity', '-1 mons +2 days', '\x00ff', '{"a": [1, 2.50]}', E'{"a" :\n1,\r"a":2}', '{"a b",NULL,""}', '(1,"x ""y""")', 'glad', '[1,5)', 7, '101', '10.0.0.1/8', 'x', '<a/>', 'a:1 b:2'`,
		},
		{name: "nulls", columns: "v text, w int[]", values: "NULL, NULL"},
		{name: "marked", columns: "v text, deleted boolean NOT NULL DEFAULT false", values: "'x', g % 2 = 0"},
		{name: "stale_names", columns: "since date, current_xmin bigint", values: "'2024-02-29', g"},
		{name: "old_view", columns: "v text", values: "'x'", query: "SELECT *, " + xmin + " AS current_xmin, least(txid, " + xmin + ") AS since FROM %", pollOnly: true},
		{name: "old_view_below", columns: "v text", values: "'x'", query: "SELECT o.* FROM (SELECT id, v, txid, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS x FROM %) o", pollOnly: true},
		{name: "old_view_large", columns: "v text", values: "CASE WHEN g = 5 THEN " + large("g") + " END", query: "SELECT *, " + xmin + " AS current_xmin FROM %", pollOnly: true},
		{name: "null_key", columns: "v text", values: "'x'", query: "SELECT nullif(id, 3) AS id, v, txid FROM %", pollOnly: true},
		{name: "grouped", columns: "v int", values: "g % 3", query: "SELECT v AS id, count(*) AS n, max(txid) AS txid FROM % GROUP BY v", pollOnly: true},
		{name: "clock", columns: "v text", values: "'x'", query: "SELECT id, clock_timestamp() AS seen, txid FROM %", pollOnly: true, always: true},
	}
	for _, capture := range []string{"poll", "wal"} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			// In a shared cluster, transactions of other tests could hold xmin below the rows' txid: such rows are left alone.
			cluster := testenv.NewCluster(t, "wal_level=logical")
			db, broker := cluster.Database(), testenv.NATS(t)
			testenv.Exec(t, db, append(odderSQL(), stampSQL, types)...)
			var tables []string
			for _, c := range cases {
				if c.pollOnly && capture == "wal" {
					continue
				}
				columns := "id bigint PRIMARY KEY, " + c.columns
				names := "id"
				for column := range strings.SplitSeq(c.columns, ", ") {
					if !strings.Contains(column, "GENERATED") {
						names += ", " + strings.Fields(column)[0]
					}
				}
				if c.name == "generated" {
					names = "id, n"
				}
				if capture == "poll" {
					columns += ", txid bigint NOT NULL DEFAULT txid_current()"
				}
				testenv.Exec(t, db, "CREATE TABLE "+c.name+"_t ("+columns+")", "INSERT INTO "+c.name+"_t ("+names+") SELECT g, "+c.values+" FROM generate_series(1, 20) g")
				if c.log && capture == "wal" {
					testenv.Exec(t, db, "ALTER TABLE "+c.name+"_t REPLICA IDENTITY FULL")
				}
				options := c.options
				if c.query != "" {
					testenv.Exec(t, db, "CREATE VIEW "+c.name+" AS "+strings.ReplaceAll(c.query, "%", c.name+"_t"))
					options = strings.TrimSuffix("key=id;"+options, ";")
				} else {
					testenv.Exec(t, db, "ALTER TABLE "+c.name+"_t RENAME TO "+c.name)
				}
				if capture == "wal" {
					options = strings.TrimSuffix("capture=wal;"+options, ";")
				}
				tables = append(tables, c.name+"("+options+")")
			}
			for i := range tables {
				tables[i] = strings.TrimSuffix(tables[i], "()")
			}
			env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL(), "BRIDGE_NAME=" + slotOf(db)}
			b := startBridge(t, db, broker.URL(), strings.Join(tables, ","), "BRIDGE_NAME="+slotOf(db))
			b.awaitReady()
			conn, js := connect(t, db), testenv.JetStream(t, broker.URL())
			last := func(name string) uint64 {
				l := named(name).layout()
				_, seq, err := stream.Last(t.Context(), js, l.Stream, l.Rows())
				if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
					t.Fatal(err)
				}
				return seq
			}
			for _, c := range cases {
				if c.pollOnly && capture == "wal" {
					continue
				}
				before := last(c.name)
				for n := range 2 {
					run(t, conn, "SELECT txid_current()") // so that xmin is another
					code, out, stderr := command(t, env, "reconcile", c.name)
					found := !strings.Contains(out, "0 missing, 0 stale, 0 zombies")
					switch {
					case c.log:
						if code == 0 || !strings.Contains(stderr, "history=log") {
							t.Errorf("%s: a log was compared: exit status %d, %s%s", c.name, code, out, stderr)
						}
					case code != 0 || found != c.always:
						t.Errorf("%s: comparison %d: exit status %d, %s%s", c.name, n+1, code, out, stderr)
					}
				}
				if after := last(c.name); after != before && !c.always {
					t.Errorf("%s: the comparisons published rows: the last was message %d, and is message %d", c.name, before, after)
				}
			}
			if capture == "wal" {
				return
			}
			b.logged("relation captured with a problem", "clock_timestamp(), whose result changes although no row does")
			b.logged("relation captured with a problem", "it has GROUP BY and an aggregate")
			_, out, _ := command(t, append(env, "BRIDGE_TABLES=clock(key=id),grouped(key=id)"), "check")
			for _, want := range []string{"clock_timestamp(), whose result changes although no row does", "it has GROUP BY and an aggregate", "grouped(key=id;reconcile=10s)"} {
				if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
					t.Errorf("bridge check does not say %q:\n%s", want, out)
				}
			}
		})
	}
}

// A view over GROUP BY whose entry says reconcile=2s: what polls don't see comes with the next comparison, and is no warning.
// (Issue 14, number 8.)
func TestBridge_ReconcileAsOftenAsAnEntrySays_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.NewCluster(t).Database(), testenv.NATS(t)
	newTable(t, db, "t", 30)
	testenv.Exec(t, db, "CREATE VIEW totals AS SELECT id % 3 AS id, count(*) AS n, max(txid) AS txid FROM t GROUP BY id % 3")
	conn := connect(t, db)
	b := startBridge(t, db, broker.URL(), "t,totals(key=id;reconcile=2s)", "BRIDGE_RECONCILE_INTERVAL=0", "LOG_LEVEL=debug")
	// By then the rows are known to be durable: polls on new connections don't read them again.
	b.logged(`"level":"debug"`, "stream compared with the relation", `"table":"totals"`, `"stale":0`)
	run(t, conn, "DELETE FROM t WHERE id IN (1, 2, 4)")
	js, l := testenv.JetStream(t, broker.URL()), named("totals").layout()
	for id, want := range map[string]string{"1": `"n":8`, "2": `"n":9`} {
		testenv.Eventually(t, long, func() error {
			msg, _, err := stream.Last(t.Context(), js, l.Stream, strings.Replace(l.Rows(), ">", id, 1))
			if err == nil && !strings.Contains(string(msg.Data), want) {
				err = errors.New("the stream has " + string(msg.Data))
			}
			return err
		})
	}
	b.logged(`"level":"info"`, "stream compared with the relation", `"table":"totals"`, `"stale":2`)
	for line := range strings.Lines(b.Stderr()) {
		if strings.Contains(line, `"table":"t"`) && strings.Contains(line, "compared") || strings.Contains(line, "relation captured with a problem") && strings.Contains(line, "GROUP BY") {
			t.Errorf("the log has %s", line)
		}
	}
}
