package relation_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"bridge/internal/relation"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// runScript runs a script as psql does, one statement at a time: CONCURRENTLY needs
// that.
func runScript(t *testing.T, conn *pgx.Conn, script string) {
	t.Helper()
	for _, statement := range statements(script) {
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			t.Fatalf("%v in\n%s\nof\n%s", err, statement, script)
		}
	}
}

func statements(script string) []string {
	var list []string
	var b strings.Builder
	body, quote := false, "$lockstep$"
	if strings.Contains(script, "$lockstep_2$") {
		quote = "$lockstep_2$" // a name has the other
	}
	for _, line := range strings.Split(script, "\n") {
		if i := strings.Index(line, "-- "); i >= 0 && !body {
			line = strings.TrimSpace(line[:i])
		}
		if strings.Count(line, quote)%2 == 1 {
			body = !body
		}
		b.WriteString(line + "\n")
		if !body && strings.HasSuffix(line, ";") {
			list = append(list, b.String())
			b.Reset()
		}
	}
	return list
}

func setup(t *testing.T, conn *pgx.Conn, spec string) string {
	t.Helper()
	script, err := relation.SetupSQL(context.Background(), conn, mustParse(t, spec).List, relation.SetupOptions{Role: "lockstep_test_" + conn.Config().Database})
	if err != nil {
		t.Fatal(err)
	}
	return script
}

// setUp runs what SetupSQL prints, twice, then a script that SetupSQL printed
// afterwards. It returns the feed as the script's BRIDGE_TABLES names it.
func setUp(t *testing.T, conn *pgx.Conn, spec string) relation.Spec {
	t.Helper()
	t.Cleanup(func() {
		role := pgx.Identifier{"lockstep_test_" + conn.Config().Database}.Sanitize()
		_, err := conn.Exec(context.Background(), "RESET ROLE; RESET session_replication_role; DROP OWNED BY "+role+"; DROP ROLE "+role)
		if err != nil {
			t.Error(err)
		}
	})
	first := setup(t, conn, spec)
	runScript(t, conn, first)
	runScript(t, conn, first)
	again := setup(t, conn, spec)
	runScript(t, conn, again)
	_, value, ok := strings.Cut(again, "BRIDGE_TABLES=")
	if !ok {
		t.Fatalf("no BRIDGE_TABLES in %s", again)
	}
	value = strings.Trim(strings.TrimSpace(value), "'")
	return mustParse(t, value).List[0]
}

func query(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	rows, err := conn.Query(context.Background(), sql)
	if err != nil {
		t.Fatalf("%v in %s", err, sql)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%v in %s", err, sql)
	}
	return strings.Join(lines, " ")
}

// Tables of every kind, from start to end: the script runs twice, Load finds no
// problem in the feed, and each change of the table shows in the feed with the ID
// of the transaction that made it.
func TestSetupSQL_Feed(t *testing.T) {
	const long = "Very long namé of a table that Postgres still accepts, all 63"
	tests := []struct{ name, create, table, key, spec, feed string }{
		{"plain", `CREATE TABLE items (id int PRIMARY KEY, k2 int NOT NULL DEFAULT 1, v text)`, `items`, `id`, "items", "items_lockstep(key=id)"},
		{
			"mixed case, composite, domain, enum", `CREATE SCHEMA "My s"; CREATE DOMAIN num AS int NOT NULL; CREATE TYPE mood AS ENUM ('a');
			CREATE TABLE "My s"."It""ems" (v num, m mood, "Id" int, found int DEFAULT 1, k2 num DEFAULT 1, PRIMARY KEY ("Id", found))`,
			`"My s"."It""ems"`, `"Id"`, `"My s"."It""ems"`, `"My s"."It""ems_lockstep"(key="Id"+found)`,
		},
		{
			"own txid column, data in deleted", `CREATE TABLE items (id int PRIMARY KEY, k2 int DEFAULT 1, "Tx" xid8, v text, deleted int); INSERT INTO items VALUES (99, 1);
			COMMENT ON COLUMN items."Tx" IS 'lockstep bridge: ID of the transaction that last wrote the row'`,
			`items`, `id`, `items(txid="Tx")`, `items_lockstep(key=id;txid="Tx";deleted=lockstep_deleted)`,
		},
		{
			"partitioned", `CREATE TABLE items (id int PRIMARY KEY, k2 int DEFAULT 1, v text) PARTITION BY RANGE (id);
			CREATE TABLE items_low PARTITION OF items FOR VALUES FROM (0) TO (5); CREATE TABLE items_high PARTITION OF items DEFAULT`,
			`items`, `id`, "items", "items_lockstep(key=id)",
		},
		{"nullable key", `CREATE TABLE items (id int UNIQUE, k2 int DEFAULT 1, v text)`, `items`, `id`, "items", "items_lockstep(key=id)"},
		{
			"named key, long name", fmt.Sprintf(`CREATE TABLE %q (id int NOT NULL UNIQUE, k2 text DEFAULT 1, v text)`, long),
			`"` + long + `"`, `id`, `"` + long + `"(key=id)`, "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := ready(t, tt.create)
			ctx := context.Background()
			feed := setUp(t, conn, tt.spec)
			if tt.feed != "" && feed.String() != tt.feed {
				t.Errorf("the feed is %s, want %s", feed, tt.feed)
			}
			rel, warnings, err := relation.Load(ctx, conn, feed)
			if err != nil || len(warnings) > 0 {
				t.Fatalf("Load of the feed: %v %v", err, warnings)
			}
			if !rel.Unique {
				t.Error("the feed's key is not known to be unique")
			}
			mark := feed.Deleted
			if mark == "" {
				mark = "deleted"
			}
			txid := pgx.Identifier{feed.Txid}.Sanitize()
			role := pgx.Identifier{"app_" + conn.Config().Database}.Sanitize()
			exec := func(sql string) string {
				t.Helper()
				now := ""
				sql = strings.NewReplacer("{t}", tt.table, "{k}", tt.key).Replace(sql)
				err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, sql); err != nil {
						return err
					}
					return tx.QueryRow(ctx, "SELECT txid_current()::text").Scan(&now)
				})
				if err != nil {
					t.Fatalf("%v in %s", err, sql)
				}
				return now
			}
			check := func(what string, want ...string) {
				t.Helper()
				got := query(t, conn, fmt.Sprintf(`SELECT %s || CASE WHEN %s THEN '-' ELSE '+' END || %s FROM %s WHERE %[1]s < 99 ORDER BY %[1]s`, tt.key, mark, txid, feed.Name.SQL()))
				if got != strings.Join(want, " ") {
					t.Errorf("%s: the feed has %q, want %q", what, got, want)
				}
			}
			a := exec(`INSERT INTO {t} ({k}, v) VALUES (1, 5), (2, 5), (3, 5)`)
			check("INSERT", "1+"+a, "2+"+a, "3+"+a)
			b := exec(`UPDATE {t} SET v = 6, ` + txid + ` = '7' WHERE {k} = 2`)
			c := exec(`DELETE FROM {t} WHERE {k} = 1`)
			check("UPDATE, DELETE", "1-"+c, "2+"+b, "3+"+a)
			d := exec(`DELETE FROM {t} WHERE {k} = 2; INSERT INTO {t} ({k}, v) VALUES (2, 5)`)
			check("deleted and inserted again", "1-"+c, "2+"+d, "3+"+a)
			e := exec(`UPDATE {t} SET {k} = 7 WHERE {k} = 3`) // to another partition, if there are any
			check("key change", "1-"+c, "2+"+d, "3-"+e, "7+"+e)
			f := exec(`SET LOCAL session_replication_role = replica; UPDATE {t} SET {k} = 8, v = 9 WHERE {k} = 7; DELETE FROM {t} WHERE {k} = 2; INSERT INTO {t} ({k}, v) VALUES (4, 5)`)
			check("replica", "1-"+c, "2-"+f, "3-"+e, "4+"+f, "7-"+f, "8+"+f)
			exec(`CREATE ROLE ` + role + `; GRANT ALL ON {t} TO ` + role)
			if s := feed.Name.Schema; s != "public" {
				exec(`GRANT USAGE ON SCHEMA ` + pgx.Identifier{s}.Sanitize() + ` TO ` + role)
			}
			g := exec(`SET LOCAL ROLE ` + role + `; DELETE FROM {t} WHERE {k} = 4; INSERT INTO {t} ({k}, v) VALUES (1, 5)`)
			exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role)
			check("another role", "1+"+g, "2-"+f, "3-"+e, "4-"+g, "7-"+f, "8+"+f)
			h := exec("SELECT 1")
			if _, err := conn.PgConn().CopyFrom(ctx, strings.NewReader("5\t1\t9\n"), fmt.Sprintf("COPY %s (%s, %s, v) FROM STDIN", tt.table, tt.key, txid)); err != nil {
				t.Fatal(err)
			}
			if got := query(t, conn, fmt.Sprintf("SELECT (%s::text::bigint > %s)::text FROM %s WHERE %s = 5", txid, h, feed.Name.SQL(), tt.key)); got != "true" {
				t.Error("COPY kept the txid that it brought")
			}
			i := exec(`TRUNCATE {t}`)
			check("TRUNCATE", "1-"+i, "2-"+f, "3-"+e, "4-"+g, "5-"+i, "7-"+f, "8-"+i)

			exec(`ALTER TABLE {t} ADD COLUMN more int`)
			runScript(t, conn, setup(t, conn, tt.spec))
			if got := query(t, conn, fmt.Sprintf("SELECT count(more)::text FROM %s", feed.Name.SQL())); got != "0" {
				t.Errorf("the new column: got %s", got)
			}
			exec(`SET ROLE "lockstep_test_` + conn.Config().Database + `"`)
			if _, _, err := relation.Load(ctx, conn, feed); err != nil {
				t.Error("as the bridge's role:", err)
			}
			if _, err := conn.Exec(ctx, "SELECT * FROM "+tt.table); err == nil {
				t.Error("the bridge's role may read more than the feed")
			}
		})
	}
}

// Polls of a feed use the indexes of both its halves.
func TestSetupSQL_FeedUsesIndexes(t *testing.T) {
	conn := ready(t, `CREATE DOMAIN num AS bigint; CREATE TABLE items (id num PRIMARY KEY, v num)`)
	feed := setUp(t, conn, "items")
	if _, err := conn.Exec(context.Background(), `
		INSERT INTO items SELECT generate_series(1, 20000); DELETE FROM items WHERE id > 15000; ANALYZE items, lockstep."public.items"`); err != nil {
		t.Fatal(err)
	}
	plan := query(t, conn, "EXPLAIN SELECT * FROM "+feed.Name.SQL()+" WHERE txid >= 99999999 ORDER BY txid, id")
	if strings.Contains(plan, "Seq Scan") || !strings.Contains(plan, "items_lockstep_idx") || !strings.Contains(plan, "public.items_txid") {
		t.Error(plan)
	}
}

func TestSetupSQL_Notify(t *testing.T) {
	conn := ready(t, `CREATE TABLE "Items" (id int PRIMARY KEY)`)
	setUp(t, conn, `"Items"`)
	ctx := context.Background()
	if _, err := conn.Exec(ctx, "LISTEN "+relation.NotifyChannel); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`INSERT INTO "Items" SELECT generate_series(1, 9)`, `SET session_replication_role = replica`, `UPDATE "Items" SET id = id + 100`, `DELETE FROM "Items"`, `TRUNCATE "Items"`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(sql, "SET") {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		n, err := conn.WaitForNotification(ctx)
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if want := (relation.Name{Schema: "public", Table: "Items"}).Payload(); n.Payload != want {
			t.Errorf("%s: got %q, want %q", sql, n.Payload, want)
		}
	}
}

func TestSetupSQL_View(t *testing.T) {
	conn := ready(t, `CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, note text);
		CREATE VIEW v AS SELECT a.id, note FROM a JOIN b ON b.id = a.b; CREATE VIEW w AS SELECT v.* FROM v`)
	use := setUp(t, conn, "w")
	if got, want := use.String(), "w(key=id;reconcile=10s)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := conn.Exec(context.Background(), `DROP VIEW w; DROP VIEW v;
		CREATE VIEW w AS SELECT a.id, note, greatest(a.txid, b.txid) AS txid FROM a JOIN b ON b.id = a.b`); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err := relation.Load(context.Background(), conn, use); err != nil || len(warnings) > 0 {
		t.Error(err, warnings)
	}
}

// The script says so if a table already has a trigger and an index. A relation of
// a kind that can't be polled is refused.
func TestSetupSQL_Others(t *testing.T) {
	conn := ready(t, `CREATE MATERIALIZED VIEW m AS SELECT * FROM users`)
	for spec, wants := range map[string][]string{
		"users": {"Trigger \"s\" already sets the column", "Polls use the index \"users_txid_idx\"", "Deleted rows are marked in the table", "BRIDGE_TABLES=users\n", `GRANT SELECT ON "public"."users" TO`},
	} {
		script := setup(t, conn, spec)
		for _, want := range wants {
			if !strings.Contains(script, want) {
				t.Errorf("%s: %q is not in\n%s", spec, want, script)
			}
		}
	}
	_, err := relation.SetupSQL(context.Background(), conn, mustParse(t, "m").List, relation.SetupOptions{})
	if err == nil || !strings.Contains(err.Error(), "materialized view") {
		t.Errorf("got %v", err)
	}
	script, err := relation.SetupSQL(context.Background(), conn, mustParse(t, "users(key=name)").List, relation.SetupOptions{NoNotify: true, NoTombstones: true})
	if err != nil || strings.Contains(script, "notify(") || !strings.Contains(script, "no index makes its key unique") || !strings.Contains(script, `TO "lockstep"`) {
		t.Errorf("got %v\n%s", err, script)
	}
}

// A table without a key, or with a wrong one, gets an error, and a script of only
// comments that say what to do.
func TestSetupSQL_NoKey(t *testing.T) {
	conn := ready(t, `CREATE TABLE k (v text)`)
	for spec, want := range map[string]string{
		"k":        "no primary key",
		"k(key=w)": "no column w",
	} {
		script, err := relation.SetupSQL(context.Background(), conn, mustParse(t, spec).List, relation.SetupOptions{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(script, want) || strings.Contains(script, "BRIDGE_TABLES=") {
			t.Errorf("%s: got %v\n%s", spec, err, script)
		}
		mustBeComments(t, script)
		if spec == "k" && (!strings.Contains(script, `ALTER TABLE "public"."k" ADD PRIMARY KEY (…);`) || !strings.Contains(script, "k(key=…)")) {
			t.Errorf("does not say what to do:\n%s", script)
		}
	}
	if _, err := relation.SetupSQL(context.Background(), conn, mustParse(t, "users(key=id)").List, relation.SetupOptions{}); err != nil {
		t.Error(err)
	}
}

// mustBeComments checks that the script has only comments.
func mustBeComments(t *testing.T, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		if line != "\n" && !strings.HasPrefix(line, "-- ") {
			t.Errorf("%q is no comment", line)
		}
	}
}

// The script is for people: look at one with -v.
func TestSetupSQL_Golden(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	conn := testenv.Conn(t, testenv.Postgres(t))
	if _, err := conn.Exec(context.Background(), `CREATE TABLE orders (region text, id bigint, total numeric(12,2), PRIMARY KEY (region, id))`); err != nil {
		t.Fatal(err)
	}
	script, err := relation.SetupSQL(context.Background(), conn, mustParse(t, "orders").List, relation.SetupOptions{})
	if err != nil {
		t.Fatal(err)
	}
	script = strings.ReplaceAll(script, conn.Config().Database, "shop")
	const golden = "testdata/setup_orders.sql"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if script != string(want) {
		t.Errorf("differs from %s (UPDATE_GOLDEN=1 rewrites it):\n%s", golden, script)
	}
}

// A script often finds what an earlier one has made. Postgres prints no notice for that. So the output of psql shows only
// what matters.
func TestSetupSQL_RunsWithoutNotices(t *testing.T) {
	url := ready(t, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`).Config().ConnString()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { t.Errorf("%s: %s", n.Severity, n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	dropTestRole(t, conn)
	first := setup(t, conn, "a,b")
	for range 2 {
		runScript(t, conn, first)
	}
	runScript(t, conn, setup(t, conn, "a,b"))
}
