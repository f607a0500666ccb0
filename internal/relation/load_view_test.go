package relation_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"bridge/internal/relation"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// belowViews are the tables below the views of these tests: users, of prepared, marks deleted rows; items and owners don't,
// and items has tombstones with a feed view like that of bridge sql.
const belowViews = `
CREATE TABLE items (id bigint PRIMARY KEY, owner bigint, n int, tags text[] NOT NULL DEFAULT '{}', at timestamptz, txid bigint NOT NULL DEFAULT 0);
CREATE TABLE owners (id bigint PRIMARY KEY, name text, txid bigint NOT NULL DEFAULT 0);
CREATE TABLE items_gone (id bigint PRIMARY KEY, txid bigint NOT NULL);
CREATE INDEX ON items (txid);
CREATE INDEX ON owners (txid);
CREATE INDEX ON items_gone (txid);
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON owners FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON items_gone FOR EACH ROW EXECUTE FUNCTION stamp();
ALTER TABLE items ENABLE ALWAYS TRIGGER s;
ALTER TABLE owners ENABLE ALWAYS TRIGGER s;
ALTER TABLE items_gone ENABLE ALWAYS TRIGGER s;
CREATE VIEW feed AS
SELECT false AS deleted, t.id, t.owner, t.n, t.at, t.txid FROM items t
UNION ALL
SELECT true, d.id, NULL::bigint, NULL::int, NULL::timestamptz, d.txid FROM items_gone d WHERE NOT EXISTS (SELECT FROM items t WHERE t.id = d.id);
CREATE VIEW totals AS SELECT owner AS id, sum(n) AS n, max(txid) AS txid FROM items GROUP BY owner;
CREATE FUNCTION unsteady(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION steady(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1';
`

// loadView makes the view v with this query and loads it.
func loadView(t *testing.T, conn *pgx.Conn, query, options string) (*relation.Relation, string) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), "DROP VIEW IF EXISTS v CASCADE; CREATE VIEW v AS "+query); err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	rel, warnings, err := relation.Load(context.Background(), conn, mustParse(t, "v(key=id"+options+")").List[0])
	if err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	var text []string
	for _, w := range warnings {
		if w.Relation.Table == "v" {
			text = append(text, w.Error())
		}
	}
	return rel, strings.Join(text, "\n")
}

// A row of some views can change or vanish without a new transaction ID: then Load says which construct is to blame, and what
// helps. Rows that only leave a plain filter, and views whose deletes stay, have no warning. (Issue 14, number 8.)
func TestLoad_ViewsWhoseRowsVanish(t *testing.T) {
	conn := ready(t, belowViews)
	tests := []struct{ name, query, want string }{
		{"plain", "SELECT id, n, txid FROM items", ""},
		{"filter", "SELECT id, n, txid FROM items WHERE n > 3", ""},
		{"order", "SELECT id, n, txid FROM items ORDER BY n", ""},
		{"expressions", "SELECT id, n + 1 AS n, CASE WHEN n > 3 THEN 'many' END AS much, at::text, txid FROM items", ""},
		{"subquery in from", "SELECT * FROM (SELECT id, txid FROM items WHERE n > 3) s", ""},
		{"with", "WITH w AS (SELECT id, txid FROM items) SELECT * FROM w", ""},
		{"view of a view", "SELECT id, txid FROM (SELECT * FROM feed) f", ""},
		{"feed", "SELECT * FROM feed", ""},
		{"feed of its own", "SELECT id, txid, false AS deleted FROM items WHERE n > 3 UNION ALL SELECT d.id, d.txid, true FROM items_gone d WHERE NOT EXISTS (SELECT FROM items i WHERE i.id = d.id)", ""},
		{"outer join of kept rows", "SELECT f.id, u.name, greatest(f.txid, u.txid) AS txid, f.deleted FROM feed f LEFT JOIN users u ON u.id = f.owner", ""},
		{"outer joins of kept rows by their keys", "SELECT u.id, greatest(u.txid, f.txid, w.txid) AS txid FROM users u LEFT JOIN (SELECT id::text::bigint AS k, txid FROM feed) f ON f.k = u.id AND u.name <> 'x' FULL JOIN users w ON w.id = u.id LEFT JOIN (VALUES (1, 'one')) c (n, word) ON c.n = u.id AND c.word > u.name", ""},
		{"right join of kept rows by their keys", "SELECT f.id, greatest(f.txid, u.txid) AS txid FROM users u RIGHT JOIN feed f ON u.id = f.owner", ""},
		{"inner join of marked rows", "SELECT a.id, greatest(a.txid, b.txid) AS txid FROM users a JOIN users b USING (id)", ""},
		{"values", "SELECT i.id, i.txid, w.word FROM items i LEFT JOIN (VALUES (1, 'one'), (2, 'two')) w (n, word) USING (n)", ""},
		{"several rows of a constant", "SELECT id + 1000 * g AS id, txid FROM items, generate_series(1, 2) g", ""},
		{"steady function", "SELECT id, txid FROM items WHERE steady(id) > 3", ""},

		{"group", "SELECT owner AS id, max(txid) AS txid FROM items GROUP BY owner", "it has GROUP BY and an aggregate, so"},
		{"group without aggregate", "SELECT owner AS id, txid FROM items GROUP BY owner, txid", "it has GROUP BY, so"},
		{"group by key", "SELECT id, txid, n FROM items GROUP BY id", "it has GROUP BY, so"},
		{"having", "SELECT owner AS id, max(txid) AS txid FROM items GROUP BY owner HAVING count(*) > 1", "it has GROUP BY, an aggregate and HAVING, so"},
		{"grouping sets", "SELECT coalesce(owner, 0) AS id, max(txid) AS txid FROM items GROUP BY GROUPING SETS ((owner), ())", "GROUP BY"},
		{"aggregate", "SELECT 1 AS id, count(*) AS n, max(txid) AS txid FROM items", "it has an aggregate, so"},
		{"aggregate over a feed", "SELECT owner AS id, count(*) FILTER (WHERE NOT deleted) AS n, max(txid) AS txid FROM feed GROUP BY owner", "it has GROUP BY and an aggregate, so"},
		{"distinct", "SELECT DISTINCT owner AS id, txid FROM items", "it has DISTINCT, so"},
		{"distinct on", "SELECT DISTINCT ON (owner) owner AS id, txid FROM items ORDER BY owner, txid DESC", "it has DISTINCT, so"},
		{"limit", "SELECT id, txid FROM items ORDER BY n LIMIT 10", "it has LIMIT, so"},
		{"offset", "SELECT id, txid FROM items ORDER BY n OFFSET 10", "it has OFFSET, so"},
		{"fetch first", "SELECT id, txid FROM items ORDER BY n FETCH FIRST 10 ROWS WITH TIES", "it has LIMIT, so"},
		{"window", "SELECT id, rank() OVER (ORDER BY n) AS place, txid FROM items", "it has a window function, so"},
		{"union", "SELECT id, txid FROM items UNION SELECT id, txid FROM owners", "it has UNION, so"},
		{"union all", "SELECT id, txid FROM items UNION ALL SELECT id + 1000, txid FROM owners", "it has UNION ALL, so"},
		{"intersect", "SELECT id, txid FROM items INTERSECT SELECT id, txid FROM owners", "it has INTERSECT, so"},
		{"except", "SELECT id, txid FROM items EXCEPT SELECT id, txid FROM owners", "it has EXCEPT, so"},
		{"union all and except", "(SELECT id, txid FROM users UNION ALL SELECT id + 1000, txid FROM users) EXCEPT ALL SELECT id, txid FROM owners", "it has EXCEPT, so"},
		{"join", "SELECT i.id, o.name, greatest(i.txid, o.txid) AS txid FROM items i JOIN owners o ON o.id = i.owner", "it has JOIN, so"},
		{"comma", "SELECT i.id, o.name, greatest(i.txid, o.txid) AS txid FROM items i, owners o WHERE o.id = i.owner", "it has JOIN, so"},
		{"cross join", "SELECT i.id, greatest(i.txid, o.txid) AS txid FROM items i CROSS JOIN owners o", "it has JOIN, so"},
		{"left join", "SELECT i.id, o.name, greatest(i.txid, o.txid) AS txid FROM items i LEFT JOIN owners o ON o.id = i.owner", "it has LEFT JOIN, so"},
		{"left join on rows that vanish", "SELECT f.id, o.name, greatest(f.txid, o.txid) AS txid FROM feed f LEFT JOIN owners o ON o.id = f.owner", "it has LEFT JOIN, so"},
		{"right join", "SELECT i.id, o.name, greatest(i.txid, o.txid) AS txid FROM owners o RIGHT JOIN items i ON o.id = i.owner", "it has RIGHT JOIN, so"},
		{"full join", "SELECT coalesce(i.id, o.id) AS id, greatest(i.txid, o.txid) AS txid FROM items i FULL JOIN owners o ON o.id = i.id", "it has FULL JOIN, so"},
		{"inner join of a feed", "SELECT f.id, u.name, greatest(f.txid, u.txid) AS txid, f.deleted FROM feed f JOIN users u ON u.id = f.owner", "it has JOIN, so"},
		{"join with a filtered feed", "SELECT u.id, greatest(f.txid, u.txid) AS txid FROM users u LEFT JOIN (SELECT * FROM feed WHERE NOT deleted) f ON f.owner = u.id", "it has LEFT JOIN, so"},
		{"left join of a feed by no key", "SELECT u.id, greatest(f.txid, u.txid) AS txid FROM users u LEFT JOIN feed f ON f.owner = u.id", "it has LEFT JOIN, so"},
		{"right join of marked rows by no key", "SELECT b.id, greatest(a.txid, b.txid) AS txid FROM users a RIGHT JOIN users b ON a.name = b.name", "it has RIGHT JOIN, so"},
		{"full join of marked rows by no key", "SELECT a.id, greatest(a.txid, b.txid) AS txid FROM users a FULL JOIN users b ON a.id = b.id AND b.name = 'x'", "it has FULL JOIN, so"},
		{"left join of joined rows by no key", "SELECT a.id, greatest(a.txid, b.txid, c.txid) AS txid FROM users a LEFT JOIN (users b JOIN users c USING (id)) ON a.id = b.id AND c.name > ''", "it has LEFT JOIN, so"},
		{"left join by no key, in WITH", "WITH w AS (SELECT name AS n, txid FROM users) SELECT a.id, greatest(a.txid, w.txid) AS txid FROM users a LEFT JOIN w ON w.n = a.name", "it has LEFT JOIN, so"},
		{"lateral", "SELECT i.id, o.name, greatest(i.txid, o.txid) AS txid FROM items i LEFT JOIN LATERAL (SELECT * FROM owners WHERE id = i.owner) o ON true", "it has LEFT JOIN, so"},
		{"exists", "SELECT id, txid FROM items i WHERE EXISTS (SELECT FROM owners o WHERE o.id = i.owner)", "it has EXISTS, so"},
		{"not exists", "SELECT id, txid FROM items i WHERE NOT EXISTS (SELECT FROM owners o WHERE o.id = i.owner)", "it has EXISTS, so"},
		{"in", "SELECT id, txid FROM items i WHERE owner IN (SELECT id FROM owners)", "it has IN (SELECT …), so"},
		{"in a list", "SELECT id, txid FROM items i WHERE owner IN (1, 2, 3)", ""},
		{"scalar subquery", "SELECT id, (SELECT name FROM owners o WHERE o.id = i.owner) AS name, txid FROM items i", "it has a subquery in an expression, so"},
		{"array subquery", "SELECT id, ARRAY(SELECT name FROM owners o WHERE o.id = i.owner) AS names, txid FROM items i", "it has a subquery in an expression, so"},
		{"rows of an array", "SELECT id, unnest(tags) AS tag, txid FROM items", "it has a function that returns several rows, so"},
		{"rows of an array in from", "SELECT id, tag, txid FROM items, unnest(tags) tag", "it has a function that returns several rows and JOIN, so"},
		{"subquery in a function", "SELECT id, g, txid FROM items i, generate_series(1, (SELECT max(id) FROM owners)) g", "a subquery in an expression"},
		{"sample", "SELECT id, txid FROM items TABLESAMPLE system (50)", "it has TABLESAMPLE, so"},
		{"recursive", "WITH RECURSIVE w AS (SELECT id, txid FROM items WHERE n = 0 UNION ALL SELECT i.id, i.txid FROM items i JOIN w ON i.owner = w.id) SELECT * FROM w", "WITH RECURSIVE"},
		{"nested view", "SELECT id, n, txid FROM totals WHERE n > 3", "it has GROUP BY and an aggregate, so"},
		{"nested twice", "SELECT * FROM (SELECT id, n, txid FROM totals LIMIT 3) s", "it has LIMIT, GROUP BY and an aggregate, so"},
		{"nested in with", "WITH w AS (SELECT DISTINCT owner AS id, txid FROM items) SELECT * FROM w", "it has DISTINCT, so"},
		{"nested in union all", "SELECT id, txid FROM totals UNION ALL SELECT id + 1000, txid FROM users", "it has GROUP BY, an aggregate and UNION ALL, so"},

		{"clock in a condition", "SELECT id, txid FROM items WHERE at > now()", "its conditions call now(), so its rows come and go"},
		{"clock of SQL", "SELECT id, txid FROM items WHERE at > current_timestamp - interval '1 day'", "its conditions call CURRENT_TIMESTAMP, so"},
		{"date", "SELECT id, txid FROM items WHERE at > current_date", "its conditions call CURRENT_DATE, so"},
		{"chance", "SELECT id, txid FROM items WHERE random() > 0.5", "its conditions call random(), so"},
		{"clock in a nested view", "SELECT * FROM (SELECT id, txid, at > now() AS due FROM items) s WHERE due", "its conditions call now(), so"},
		{"unsteady function", "SELECT id, txid FROM items WHERE unsteady(id) > 3", "its conditions call unsteady(), so"},
		{"user", "SELECT id, txid FROM items WHERE current_user <> 'x'", ""},
	}
	for _, tt := range tests {
		_, got := loadView(t, conn, tt.query, "")
		switch {
		case tt.want == "" && got != "":
			t.Errorf("%s: got %s\nwant no warning", tt.name, got)
		case tt.want != "" && (!strings.Contains(got, tt.want) || !strings.Contains(got, "say in BRIDGE_TABLES how often to compare: v(key=id;reconcile=10s)")):
			t.Errorf("%s: got %s\nwant %s", tt.name, got, tt.want)
		}
		if tt.want == "" {
			continue
		}
		if _, got := loadView(t, conn, tt.query, ";reconcile=1m"); strings.Contains(got, "transaction ID, which") {
			t.Errorf("%s: its entry says how often to compare, and got %s", tt.name, got)
		}
		if _, got := loadView(t, conn, tt.query, ";history=log;max_age=1h"); !strings.Contains(got, "can't be compared") || strings.Contains(got, "reconcile=") {
			t.Errorf("%s: with history=log got %s", tt.name, got)
		}
	}
}

// The views of the sample, which demo and stack run, have no warning of that kind, nor has the feed view of bridge sql.
func TestLoad_RecommendedViewsKeepTheirRows(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	sample, err := os.ReadFile("../../sql/01-schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	conn := testenv.Conn(t, testenv.NewCluster(t).Database()) // the sample makes the role lockstep
	ctx := context.Background()
	if _, err := conn.Exec(ctx, string(sample)+"CREATE TABLE users (id int PRIMARY KEY, name text)"); err != nil {
		t.Fatal(err)
	}
	feed := setUp(t, conn, "users")
	for _, spec := range append(mustParse(t, "orders_feed(key=id),order_lines(key=id)").List, feed) {
		_, warnings, err := relation.Load(ctx, conn, spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range warnings {
			if strings.Contains(w.What, "can change or vanish") {
				t.Errorf("%s: %s", spec, w.What)
			}
		}
	}
}

// The column current_xmin or since of an old lockstep view belongs to the protocol, whatever its name: a column of a view
// that is the xmin of the current snapshot, or the least of that and of the txid. A column of a table never does. (Issue 14,
// number 9.)
func TestLoad_ColumnsOfTheProtocol(t *testing.T) {
	conn := ready(t, belowViews, `CREATE TABLE members (id bigint PRIMARY KEY, since date, current_xmin bigint, txid bigint NOT NULL);
		CREATE VIEW old AS SELECT *, txid_snapshot_xmin(txid_current_snapshot()) AS current_xmin, least(txid, txid_snapshot_xmin(txid_current_snapshot())) AS since FROM items;
		CREATE VIEW grouped AS SELECT name AS id, max(txid) AS txid, txid_snapshot_xmin(txid_current_snapshot()) AS x, least(max(txid), txid_snapshot_xmin(txid_current_snapshot())) AS s FROM users GROUP BY name`)
	const x = "txid_snapshot_xmin(txid_current_snapshot())"
	const x8 = "pg_snapshot_xmin(pg_current_snapshot())"
	tests := []struct {
		name, query string
		protocol    string
		moving      string
	}{
		{"old names", "SELECT id, txid, " + x + " AS current_xmin, least(txid, " + x + ") AS since FROM items", "current_xmin since", ""},
		{"xid8", "SELECT id, txid::text::xid8 AS txid, " + x8 + " AS current_xmin, least(txid::text::xid8, " + x8 + ") AS since FROM items", "current_xmin since", ""},
		{"casts", "SELECT id, txid, " + x8 + "::text::bigint AS a, least(" + x8 + "::text::numeric, txid) AS b, (" + x + ")::text::varchar(20) AS c FROM items", "a b c", ""},
		{"join", "SELECT u.id, greatest(u.txid, o.txid) AS txid, " + x + " AS x, least(greatest(u.txid, o.txid), " + x + ") AS s FROM users u LEFT JOIN users o USING (id)", "x s", ""},
		{"using", "SELECT id, txid, " + x + " AS x FROM (SELECT id, " + x + " AS n FROM users) a FULL JOIN users b USING (id)", "x", ""},
		{"view of a view", "SELECT id, txid, current_xmin AS x, since FROM old", "x since", ""},
		{"view of a view, renamed", `SELECT o.txid, o.since AS "Since (old)", o.id FROM (SELECT * FROM old) o`, "Since (old)", ""},
		{"least above", "SELECT id, txid, least(current_xmin, txid) AS s FROM old", "s", ""},
		{"grouped view", "SELECT * FROM grouped", "x s", ""},
		{"with", "WITH w AS (SELECT *, " + x + " AS x FROM items) SELECT id, txid, x, least(txid, x) AS s FROM w", "x s", ""},
		{"union all", "SELECT id, txid, " + x + " AS x, least(txid, " + x + ") AS s FROM users UNION ALL SELECT id, txid, " + x + ", NULL FROM users", "x s", ""},
		{"union all below", "SELECT * FROM (SELECT id, txid, " + x + " AS x, least(txid, " + x + ") AS s FROM users UNION ALL (SELECT id, txid, NULL, since FROM old)) u", "x s", ""},
		{"hostile names", `SELECT id, txid, ` + x + ` AS ":x {", ':resname' AS "(y", least(txid, ` + x + `) AS "a\ b }" FROM items`, `:x {|a\ b }`, ""},

		{"names alone", "SELECT id, txid, n AS current_xmin, at AS since FROM items", "", ""},
		{"table", "SELECT id, since, current_xmin, txid FROM members", "", ""},
		{"null", "SELECT id, txid, NULL::bigint AS current_xmin FROM items", "", ""},
		{"xmax", "SELECT id, txid, txid_snapshot_xmax(txid_current_snapshot()) AS x FROM items", "", "its column x calls txid_current_snapshot(), whose result changes although no row does: each comparison then publishes all its rows again"},
		{"arithmetic", "SELECT id, txid, " + x + " - 1 AS x FROM items", "", "its column x calls txid_current_snapshot()"},
		{"least of something else", "SELECT id, txid, least(id, " + x + ") AS x FROM items", "", "its column x calls txid_current_snapshot()"},
		{"greatest", "SELECT id, txid, greatest(txid, " + x + ") AS x FROM items", "", "its column x calls txid_current_snapshot()"},
		{"one branch", "SELECT id, txid, " + x + " AS x FROM users UNION ALL SELECT id, txid, id FROM users", "", "its column x calls txid_current_snapshot()"},
		{"another view's txid", "SELECT a.id, a.txid, least(b.txid, " + x + ") AS x FROM users a LEFT JOIN users b USING (id)", "", "its column x calls txid_current_snapshot()"},
		{"now", "SELECT id, txid, now() AS seen FROM items", "", "its column seen calls now()"},
		{
			"clocks", "SELECT id, txid, clock_timestamp() - at AS a, age(at) AS b, current_date AS c, random() AS d, unsteady(n) AS e, steady(n) AS f, date_trunc('day', at) AS g FROM items", "",
			"its column a calls clock_timestamp(),its column b calls age(),its column c calls CURRENT_DATE,its column d calls random(),its column e calls unsteady()",
		},
		{"connection", "SELECT id, txid, pg_backend_pid() AS pid FROM items", "", "its column pid calls pg_backend_pid()"},
		{"now below", "SELECT id, txid, seen FROM (SELECT *, now() AS seen, random() AS r FROM items) s", "", "its column seen calls now()"},
	}
	for _, tt := range tests {
		rel, got := loadView(t, conn, tt.query, "")
		var protocol []string
		for _, c := range rel.Columns {
			if c.Protocol {
				protocol = append(protocol, c.Name)
			}
		}
		sep := " "
		if strings.ContainsAny(tt.protocol, "({") {
			sep = "|"
		}
		if p := strings.Join(protocol, sep); p != tt.protocol {
			t.Errorf("%s: the columns %q belong to the protocol, want %q", tt.name, p, tt.protocol)
		}
		wants := strings.Split(tt.moving, ",")
		if n := strings.Count(got, "its column"); tt.moving == "" && n > 0 || tt.moving != "" && !strings.Contains(tt.moving, ", whose") && n != len(wants) {
			t.Errorf("%s: got %s", tt.name, got)
		}
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s: got %s\nwant %s", tt.name, got, want)
			}
		}
	}

	table, warnings, err := relation.Load(context.Background(), conn, mustParse(t, "members").List[0])
	if err != nil || slices.ContainsFunc(table.Columns, func(c relation.Column) bool { return c.Protocol }) {
		t.Errorf("a table's columns belong to the protocol: %+v, %v, %v", table, warnings, err)
	}
	_, _, err = relation.Load(context.Background(), conn, mustParse(t, "old(key=id+current_xmin)").List[0])
	if p := (*relation.Problem)(nil); !errors.As(err, &p) || !strings.Contains(err.Error(), "its column current_xmin can't be in the key: it changes with every transaction") {
		t.Errorf("got %v", err)
	}
}

// The data of a row has no column of the protocol, and the schema says which these are.
func TestForm_LeavesOutColumnsOfTheProtocol(t *testing.T) {
	conn := ready(t, belowViews)
	rel, _ := loadView(t, conn, "SELECT id, txid_snapshot_xmin(txid_current_snapshot()) AS current_xmin, txid, n FROM items", "")
	types, err := relation.LoadTypes(context.Background(), conn, rel.Columns)
	if err != nil {
		t.Fatal(err)
	}
	form, err := relation.NewForm(rel, types)
	if err != nil {
		t.Fatal(err)
	}
	data, err := form.AppendData(nil, [][]byte{[]byte("1"), []byte("700"), []byte("500"), nil})
	if want := `{"id":1,"n":null}`; err != nil || string(data) != want {
		t.Errorf("got %s, %v, want %s", data, err, want)
	}
	doc, err := relation.Document(rel, types)
	if err != nil || !strings.Contains(string(doc), `"protocol":["current_xmin"]`) {
		t.Errorf("got %s, %v", doc, err)
	}
	// A stream of an older bridge has the column in its rows.
	older := strings.Replace(string(doc), `"protocol":["current_xmin"],`, "", 1)
	if relation.SameRows([]byte(older), doc) {
		t.Error("rows with the column count as the same as those without")
	}
}

// bridge sql says what the bridge says of a view, and proposes an entry that compares often.
func TestSetupSQL_ViewsWhoseRowsVanish(t *testing.T) {
	conn := ready(t, belowViews)
	for spec, want := range map[string]string{
		"totals(key=id)":              "BRIDGE_TABLES=totals(key=id;reconcile=10s)",
		"totals(key=id;reconcile=1m)": "BRIDGE_TABLES=totals(key=id;reconcile=1m0s)",
		"feed(key=id)":                "BRIDGE_TABLES=feed(key=id)",
	} {
		sql, err := relation.SetupSQL(context.Background(), conn, mustParse(t, spec).List, relation.SetupOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.NewReplacer("'", "", " ", "").Replace(sql), strings.ReplaceAll(want, " ", "")) {
			t.Errorf("%s: no %s in\n%s", spec, want, sql)
		}
		if says := strings.Contains(sql, "Mind: it has GROUP BY and an aggregate"); says != (spec == "totals(key=id)") {
			t.Errorf("%s: says that rows vanish: %t\n%s", spec, says, sql)
		}
	}
}
