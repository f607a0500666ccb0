package relation_test

import (
	"context"
	"strings"
	"testing"

	"bridge/internal/relation"
)

// The table's own DELETE and TRUNCATE go on after the table was renamed, for example to put a view in its place. (Issue 14,
// number 2.)
func TestSetupSQL_RenamedTableTakesDeleteAndTruncate(t *testing.T) {
	ctx := context.Background()
	for name, create := range map[string]string{
		"plain":       `CREATE TABLE a (id int PRIMARY KEY)`,
		"quotes":      `CREATE TABLE a ("i'd" text UNIQUE)`,
		"coarse":      `CREATE TABLE a (id numeric PRIMARY KEY)`,
		"partitioned": `CREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE a_all PARTITION OF a DEFAULT`,
	} {
		t.Run(name, func(t *testing.T) {
			conn := ready(t, create)
			dropTestRole(t, conn)
			runScript(t, conn, setup(t, conn, "a"))
			if _, err := conn.Exec(ctx, `INSERT INTO a VALUES (1), (2), (3); CREATE SCHEMA other; ALTER TABLE a SET SCHEMA other; ALTER TABLE other.a RENAME TO "b'b"`); err != nil {
				t.Fatal(err)
			}
			for _, statement := range []string{`DELETE FROM other."b'b" WHERE ctid = '(0,1)'`, `TRUNCATE other."b'b"`} {
				if _, err := conn.Exec(ctx, statement); err != nil {
					t.Errorf("%s: %v", statement, err)
				}
			}
			if got := query(t, conn, "SELECT count(*)::text FROM a_lockstep WHERE deleted"); got != "3" {
				t.Errorf("%s rows are deleted in the feed, want 3", got)
			}
		})
	}
}

// Where a tombstone of a row can't be made, the table's own UPDATE or DELETE would fail. Then there is no script with
// tombstones, but one without. (Issue 14, number 2.)
func TestSetupSQL_KeysWithoutTombstones(t *testing.T) {
	ctx := context.Background()
	const long, virtual = "as short as an index needs it", "triggers don't see the value of k"
	for _, tt := range []struct{ create, key, want string }{
		{`CREATE TABLE a (id int PRIMARY KEY, k text)`, "k", long},
		{`CREATE TABLE a (id int PRIMARY KEY, k text); CREATE INDEX ON a USING hash (k); CREATE INDEX ON a (k) WHERE id > 3; CREATE INDEX ON a (md5(k))`, "k", long},
		{`CREATE TABLE a (id int PRIMARY KEY, k varchar(100)[])`, "k", long},
		{`CREATE DOMAIN short AS varchar(9); CREATE TABLE a (id int PRIMARY KEY, k short)`, "k", long},
		{`CREATE TABLE a (id int PRIMARY KEY, k varchar(400), l varchar(400))`, "k+l", long},
		{`CREATE TABLE a (id int PRIMARY KEY, k varchar(400), l varchar(200))`, "k+l", ""},
		{`CREATE TABLE a (id int PRIMARY KEY, k numeric(12,2), l inet)`, "k+l", ""},
		{`CREATE TABLE a (id int PRIMARY KEY, k text); CREATE UNIQUE INDEX ON a (k, id)`, "k", ""},
		{`CREATE TABLE a (id int, k text UNIQUE)`, "", ""},
		{`CREATE TABLE a (id int PRIMARY KEY, e text, k text GENERATED ALWAYS AS (lower(e)) STORED UNIQUE)`, "k", ""},
		{`CREATE TABLE a (id int PRIMARY KEY, e int, k int GENERATED ALWAYS AS (e + 1) VIRTUAL)`, "k", virtual},
	} {
		t.Run(tt.create, func(t *testing.T) {
			conn := ready(t)
			if tt.want == virtual && query(t, conn, "SELECT current_setting('server_version_num')") < "180000" {
				t.Skip("before Postgres 18 there are no virtual generated columns")
			}
			dropTestRole(t, conn)
			if _, err := conn.Exec(ctx, tt.create); err != nil {
				t.Fatal(err)
			}
			spec := "a"
			if tt.key != "" {
				spec = "a(key=" + tt.key + ")"
			}
			opt := relation.SetupOptions{Role: "lockstep_test_" + conn.Config().Database}
			script, err := relation.SetupSQL(ctx, conn, mustParse(t, spec).List, opt)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(script, "bridge sql -role "+opt.Role+" -no-tombstones '"+spec+"'") {
					t.Fatalf("got %v and\n%s", err, script)
				}
				mustBeComments(t, script)
				opt.NoTombstones = true
				script, err = relation.SetupSQL(ctx, conn, mustParse(t, spec).List, opt)
			}
			if err != nil {
				t.Fatal(err)
			}
			runScript(t, conn, script)
			if tt.want == virtual {
				return
			}
			// A value that can't be compressed, as long as the table takes it.
			value := `(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 200) i)`
			if _, err := conn.Exec(ctx, `INSERT INTO a (id, k) SELECT 1, `+value); err != nil && tt.want == long && !strings.Contains(tt.create, "varchar") {
				t.Error("the table takes no long key:", err)
			}
			if _, err := conn.Exec(ctx, `DELETE FROM a`); err != nil {
				t.Error(err)
			}
		})
	}
}

// A key column has another name than the trigger for tombstones knows. The table's own DELETE fails then. The script says so
// beforehand, Load says so afterwards, and both say what helps. (Issue 14, number 2.)
func TestLoad_RenamedKeyOfTombstones(t *testing.T) {
	ctx := context.Background()
	conn := ready(t, `CREATE TABLE a (id int PRIMARY KEY)`)
	feed := setUp(t, conn, "a")
	if script := setup(t, conn, "a"); !strings.Contains(script, "Before you rename a column of the key") {
		t.Errorf("the script does not say it:\n%s", script)
	}
	if _, err := conn.Exec(ctx, `INSERT INTO a VALUES (1); ALTER TABLE a RENAME id TO uid`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, `DELETE FROM a`); err == nil {
		t.Error("DELETE works: there is nothing to warn of")
	}
	_, warnings, err := relation.Load(ctx, conn, feed)
	if err != nil || len(warnings) != 1 || warnings[0].Relation.Table != "a" || !strings.Contains(warnings[0].What, "its key column id has another name now") {
		t.Fatalf("got %v %v", warnings, err)
	}
	_, way, ok := strings.Cut(warnings[0].Do, "remove the tombstones: ")
	way, _, _ = strings.Cut(way, "; then run")
	if _, err := conn.Exec(ctx, way+"; DELETE FROM a"); !ok || err != nil {
		t.Errorf("%v after %q", err, way)
	}
	runScript(t, conn, setup(t, conn, "a"))
	if _, err := conn.Exec(ctx, `INSERT INTO a VALUES (1); DELETE FROM a`); err != nil {
		t.Error(err)
	}
}

// Who may name a column must not have the script run statements: names end no function body, for psql either. (Issue 14,
// number 2.)
func TestSetupSQL_NamesEndNoFunctionBody(t *testing.T) {
	ctx := context.Background()
	const name = `$lockstep$;SELECT 1/0;--`
	conn := ready(t, `CREATE TABLE "`+name+`" ("`+name+`" int PRIMARY KEY); CREATE TABLE named (id int PRIMARY KEY, "`+name+`" bigint NOT NULL DEFAULT 0)`)
	dropTestRole(t, conn)
	for _, spec := range []string{`"` + name + `"`, `named(txid="` + name + `2")`, `"` + name + `"(capture=wal)`} {
		script := setup(t, conn, spec)
		quotes := 0
		for _, part := range strings.Split(script, "$lockstep_2$") {
			quotes++
			if quotes%2 == 1 && strings.Contains(part, "BEGIN NEW") {
				t.Errorf("%s: a body stands outside the quotes in\n%s", spec, script)
			}
		}
		if quotes < 3 || quotes%2 == 0 {
			t.Errorf("%s: %d quotes in\n%s", spec, quotes-1, script)
		}
		if !strings.Contains(spec, "wal") { // wal_level is not logical here
			runScript(t, conn, script)
		}
	}
	if _, err := conn.Exec(ctx, `INSERT INTO "`+name+`" VALUES (1), (2); DELETE FROM "`+name+`"; TRUNCATE "`+name+`"; INSERT INTO named VALUES (1)`); err != nil {
		t.Error(err)
	}
}
