package relation_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"bridge/internal/relation"
)

// Which types are coarse: Postgres calls values of theirs equal that it prints differently.
func TestLoad_CoarseColumns(t *testing.T) {
	fine := []string{
		"int", "smallint", "bigint", "text", "varchar", "varchar(9)", "char(3)", `"char"`, "name", "uuid", "bool", "bytea", "date", "time", "timetz", "timestamp", "timestamptz",
		"oid", "inet", "cidr", "macaddr", "money", "bit(3)", "varbit", "xid8", "pg_lsn", "regclass", "mood", "word", `text COLLATE "C"`,
	}
	coarse := []string{
		"numeric", "numeric(9,2)", "real", "double precision", "interval", "jsonb", "tsvector", "int[]", "text[]", "int4range", "numrange", "nummultirange", "pair",
		"citext", "hstore", "price", "text COLLATE ci", "varchar(9) COLLATE ci", "bpchar",
	}
	conn := ready(t, `CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE TYPE mood AS ENUM ('a'); CREATE TYPE pair AS (a int, b int); CREATE DOMAIN word AS text; CREATE DOMAIN price AS numeric;
		CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
	ctx := context.Background()
	columns := []string{"id int PRIMARY KEY", "txid bigint NOT NULL"}
	for i, typ := range append(fine, coarse...) {
		columns = append(columns, fmt.Sprintf("c%d %s", i, typ))
	}
	if _, err := conn.Exec(ctx, "CREATE TABLE all_types ("+strings.Join(columns, ", ")+"); CREATE VIEW of_all AS SELECT * FROM all_types"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"all_types", "of_all(key=id)"} {
		rel, _, err := relation.Load(ctx, conn, mustParse(t, name).List[0])
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range rel.Columns[2:] {
			if want := i >= len(fine); c.Coarse != want {
				t.Errorf("%s: %s: coarse is %v, want %v", name, append(fine, coarse...)[i], c.Coarse, want)
			}
		}
	}
}

// The script for a key that is not coarse says nothing of spellings.
func TestSetupSQL_OrdinaryKeysHaveNoSpelling(t *testing.T) {
	conn := ready(t, `CREATE TABLE a (id int, t text, u uuid, PRIMARY KEY (id, t, u))`)
	if script := setup(t, conn, "a"); strings.Contains(script, "spelling") || strings.Contains(script, "::text") {
		t.Error(script)
	}
}

// Tombstones of an earlier version don't tell keys apart that Postgres calls equal. They go on working. The bridge warns, and
// the script, run again, mends them: tombstones and feed stay.
func TestSetupSQL_TombstonesOfAnEarlierVersion(t *testing.T) {
	conn := ready(t, `CREATE TABLE items (k numeric PRIMARY KEY, v int); INSERT INTO items VALUES (1.0, 1), (2.0, 2)`)
	ctx := context.Background()
	exec := func(sql ...string) {
		t.Helper()
		for _, s := range sql {
			if _, err := conn.Exec(ctx, s); err != nil {
				t.Fatalf("%v in %s", err, s)
			}
		}
	}
	feed := setUp(t, conn, "items")
	// The table, the function and the feed as they were.
	exec(`DROP TRIGGER zzz_lockstep_rekey ON items`, `ALTER TABLE lockstep."public.items" DROP CONSTRAINT "public.items_pkey", DROP COLUMN spelling CASCADE, ADD PRIMARY KEY (k)`,
		`CREATE OR REPLACE FUNCTION lockstep."public.items"() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $lockstep$
#variable_conflict use_column
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO lockstep."public.items" ("k", "txid") SELECT "k", pg_catalog.txid_current() FROM "public"."items"
      ON CONFLICT ("k") DO UPDATE SET "txid" = EXCLUDED."txid";
  ELSE
    INSERT INTO lockstep."public.items" ("k", "txid") VALUES (OLD."k", pg_catalog.txid_current())
      ON CONFLICT ("k") DO UPDATE SET "txid" = EXCLUDED."txid";
  END IF;
  RETURN NULL;
END $lockstep$`,
		`CREATE TRIGGER zzz_lockstep_rekey AFTER UPDATE ON items FOR EACH ROW WHEN (OLD.k IS DISTINCT FROM NEW.k) EXECUTE FUNCTION lockstep."public.items"()`,
		`CREATE OR REPLACE VIEW items_lockstep AS SELECT false AS deleted, t.k AS k, t.v AS v, t.txid::bigint AS txid FROM items t
			UNION ALL SELECT true, d.k, NULL::integer, d.txid FROM lockstep."public.items" d WHERE NOT EXISTS (SELECT FROM items t WHERE t.k = d.k)`,
		`DELETE FROM items WHERE k = 2`)
	_, warnings, err := relation.Load(ctx, conn, feed)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].Error(), "of an earlier version") || !strings.HasSuffix(warnings[0].Do, ": bridge sql items") {
		t.Errorf("got %v, %v", warnings, err)
	}
	before := query(t, conn, "SELECT 'items_lockstep'::regclass::oid::text || ' ' || k || ' ' || txid FROM items_lockstep WHERE deleted")
	script := setup(t, conn, "items")
	runScript(t, conn, script)
	runScript(t, conn, script)
	runScript(t, conn, setup(t, conn, "items"))
	if after := query(t, conn, "SELECT 'items_lockstep'::regclass::oid::text || ' ' || k || ' ' || txid FROM items_lockstep WHERE deleted"); after != before {
		t.Errorf("the feed and its deleted row were %s, and are %s", before, after)
	}
	if _, warnings, err := relation.Load(ctx, conn, feed); err != nil || len(warnings) > 0 {
		t.Errorf("got %v, %v", warnings, err)
	}
	exec(`UPDATE items SET k = 1.00`, `INSERT INTO items VALUES (2.00, 3)`)
	if got, want := query(t, conn, "SELECT deleted::text || k FROM items_lockstep ORDER BY k, deleted, k::text"), "false1.00 true1.0 false2.00 true2.0"; got != want {
		t.Errorf("the feed has %s, want %s", got, want)
	}
}
