package relation_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"bridge/internal/relation"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// prepared makes a table in which Load finds no problem.
const prepared = `
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.txid := txid_current(); RETURN NEW; END$$;
CREATE TABLE users (id bigint PRIMARY KEY, name varchar(20) NOT NULL, tags text[], txid bigint NOT NULL DEFAULT 0, deleted boolean, "Gone" date);
CREATE INDEX ON users (txid);
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION stamp();
ALTER TABLE users ENABLE ALWAYS TRIGGER s;
`

func ready(t *testing.T, sql ...string) *pgx.Conn {
	t.Helper()
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	conn := testenv.Conn(t, testenv.Postgres(t))
	for _, s := range append([]string{prepared}, sql...) {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			t.Fatalf("%v in %s", err, s)
		}
	}
	return conn
}

func mustParse(t *testing.T, s string) relation.Specs {
	t.Helper()
	specs, err := relation.ParseSpecs(s)
	if err != nil {
		t.Fatal(err)
	}
	return specs
}

func TestLoad(t *testing.T) {
	conn := ready(t, `ALTER TABLE users DROP COLUMN name; INSERT INTO users(id) SELECT generate_series(1, 3000); ANALYZE users`)
	rel, warnings, err := relation.Load(context.Background(), conn, mustParse(t, "users").List[0])
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := &relation.Relation{
		Name: relation.Name{Schema: "public", Table: "users"}, OID: rel.OID, Kind: 'r',
		Columns: []relation.Column{
			{Num: 1, Name: "id", Type: "bigint", TypeOID: 20, BaseOID: 20},
			{Num: 3, Name: "tags", Type: "text[]", TypeOID: 1009, BaseOID: 1009, Dims: 1, Coarse: true, Nullable: true},
			{Num: 4, Name: "txid", Type: "bigint", TypeOID: 20, BaseOID: 20},
			{Num: 5, Name: "deleted", Type: "boolean", TypeOID: 16, BaseOID: 16, Nullable: true},
			{Num: 6, Name: "Gone", Type: "date", TypeOID: 1082, BaseOID: 1082, Nullable: true},
		},
		Key: []int{0}, Unique: true, Txid: 2, Stamped: []relation.Stamped{{Table: relation.Name{Schema: "public", Table: "users"}, Column: "txid", Now: "txid_current()"}}, Deleted: 3, EstimatedRows: 3000, Analyzed: true,
		Sources: []relation.Name{{Schema: "public", Table: "users"}},
	}
	if rel.OID == 0 || !reflect.DeepEqual(rel, want) {
		t.Errorf("\n got %+v\nwant %+v", rel, want)
	}
}

// Each case changes the prepared table, or makes another relation, and says
// which problems Load finds. A case without fails and warns has none.
func TestLoad_Finds(t *testing.T) {
	const view = `CREATE VIEW v AS SELECT id, txid, name FROM users; `
	tests := []struct {
		name, sql, spec string
		fails, warns    []string
	}{
		{name: "dotted", spec: `users(deleted="Gone";key=id)`},
		{name: "missing", spec: "usres", fails: []string{"there is no such table or view; to do: did you mean users?"}},
		{name: "case", sql: `CREATE TABLE "Lines" ()`, spec: "Lines", fails: []string{`did you mean "Lines"? Write it like this in BRIDGE_TABLES, with the double quotes: without`}},
		{name: "other schema", sql: `CREATE SCHEMA s; CREATE TABLE s.lines ()`, spec: "lines", fails: []string{`did you mean s.lines?`}},
		{name: "nothing near", spec: "zzzzzzzz", fails: []string{"create it, or correct the name"}},
		{name: "wal", sql: `CREATE TABLE a (id int PRIMARY KEY, v text)`, spec: "a(capture=wal)"},
		{name: "wal unique", sql: `CREATE TABLE a (id int UNIQUE NOT NULL)`, spec: "a(capture=wal)", fails: []string{"its replica identity lacks its key column id", "ALTER TABLE \"public\".\"a\" REPLICA IDENTITY USING INDEX \"a_id_key\""}},
		{name: "wal nothing", sql: `ALTER TABLE users REPLICA IDENTITY NOTHING`, spec: "users(capture=wal)", fails: []string{"REPLICA IDENTITY DEFAULT"}},
		{name: "wal full", sql: `CREATE TABLE a (id int NOT NULL, v text); ALTER TABLE a REPLICA IDENTITY FULL`, spec: "a(capture=wal;key=id)", warns: []string{"no index makes its key unique"}},
		{name: "wal no identity", sql: `CREATE TABLE a (id int NOT NULL)`, spec: "a(capture=wal;key=id)", fails: []string{"or ALTER TABLE \"public\".\"a\" REPLICA IDENTITY FULL"}, warns: []string{"no index makes its key unique"}},
		{name: "wal inserts", sql: `CREATE TABLE a (id int UNIQUE NOT NULL)`, spec: "a(capture=wal;actions=insert)"},
		{name: "wal log", sql: `CREATE TABLE a (id int PRIMARY KEY)`, spec: "a(capture=wal;history=log;max_age=1h)"},
		{name: "topic, key of two columns", sql: `CREATE TABLE a (id int, k int, PRIMARY KEY (id, k))`, spec: "a(capture=wal;republish=x.{key})"},
		{name: "topic of a log, key of two columns", sql: `CREATE TABLE a (id int, k int, PRIMARY KEY (id, k))`, spec: "a(capture=wal;history=log;max_age=1h;republish=x)"},
		{name: "topic with the key inside", sql: `CREATE TABLE a (id int, k int, PRIMARY KEY (id, k))`, spec: "a(capture=wal;republish=x.{key}.y)", fails: []string{"its key has 2 columns", "move {key} to the end"}},
		{name: "topic without the key", sql: `CREATE TABLE a (id int, k int, PRIMARY KEY (id, k))`, spec: "a(capture=wal;republish=x)", fails: []string{"its key has 2 columns", "republish=x.{key}"}},
		{name: "wal view", sql: `CREATE VIEW v AS SELECT * FROM users`, spec: "v(capture=wal;key=id)", fails: []string{"it is a view, and the WAL has only tables"}},
		{name: "wal unlogged", sql: `ALTER TABLE users SET UNLOGGED`, spec: "users(capture=wal)", fails: []string{"it is unlogged: its rows are not in the WAL"}},
		{name: "wal deferrable", sql: `CREATE TABLE a (id int PRIMARY KEY DEFERRABLE)`, spec: "a(capture=wal)", fails: []string{"its replica identity lacks its key column id", `ADD UNIQUE ("id"); or ALTER TABLE "public"."a" REPLICA IDENTITY FULL`}},
		{name: "wal partitions", sql: `CREATE TABLE a (id int, k text, v text, PRIMARY KEY (k, id) INCLUDE (v)) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (0) TO (9); CREATE TABLE a2 PARTITION OF a DEFAULT`, spec: "a(capture=wal)"},
		{name: "wal partitions full", sql: `CREATE TABLE a (id int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a DEFAULT; ALTER TABLE a1 REPLICA IDENTITY FULL`, spec: "a(capture=wal;key=id)", warns: []string{"no index makes its key unique"}},
		{name: "wal partition nothing", sql: `CREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (0) TO (9); CREATE TABLE a2 PARTITION OF a DEFAULT; ALTER TABLE a2 REPLICA IDENTITY NOTHING`, spec: "a(capture=wal)", fails: []string{"the replica identity of its partition a2 lacks its key column id", `to do: ALTER TABLE "public"."a2" REPLICA IDENTITY DEFAULT`}},
		{name: "wal root full", sql: `CREATE TABLE a (id int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a DEFAULT; ALTER TABLE a REPLICA IDENTITY FULL`, spec: "a(capture=wal;key=id)", fails: []string{"its partition a1 lacks", `ALTER TABLE "public"."a" ADD PRIMARY KEY ("id"); or ALTER TABLE "public"."a1" REPLICA IDENTITY FULL`}, warns: []string{"no index makes its key unique"}},
		{name: "wal root index", sql: `CREATE TABLE a (id int NOT NULL UNIQUE) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a DEFAULT; ALTER TABLE a REPLICA IDENTITY USING INDEX a_id_key`, spec: "a(capture=wal)", fails: []string{"its partition a1 lacks"}},
		{name: "wal root without partitions", sql: `CREATE TABLE a (id int NOT NULL UNIQUE) PARTITION BY RANGE (id); ALTER TABLE a REPLICA IDENTITY FULL`, spec: "a(capture=wal)", fails: []string{"its replica identity lacks its key column id", `to do: ALTER TABLE "public"."a" ADD PRIMARY KEY ("id")`}},
		{name: "wal partitions include", sql: `CREATE TABLE a (id int, v text NOT NULL, PRIMARY KEY (id) INCLUDE (v)) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a DEFAULT`, spec: "a(capture=wal;key=id+v)", fails: []string{"its partition a1 lacks its key column v", `to do: ALTER TABLE "public"."a1" REPLICA IDENTITY FULL`}},
		{name: "wal no key", sql: `CREATE TABLE a (id int)`, spec: "a(capture=wal;history=log;max_age=1h)", fails: []string{"a(key=…;history=log;max_age=1h0m0s;capture=wal) in BRIDGE_TABLES"}},
		{name: "wal txid", spec: "users(capture=wal;txid=foo)", fails: []string{"it has no column foo for the ID of the transaction that last wrote a row; to do: remove txid="}},
		{name: "wal txid type", spec: "users(capture=wal;txid=name)", fails: []string{"its column name is of type character varying(20); transaction IDs are bigint or xid8; to do: remove txid="}},
		{name: "wal materialized", sql: `CREATE MATERIALIZED VIEW m AS SELECT * FROM users`, spec: "m(capture=wal)", fails: []string{"it is a materialized view: its changes are not in the WAL"}},
		{name: "wal foreign", sql: `CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE f (id int, txid bigint) SERVER s`, spec: "f(capture=wal)", fails: []string{"it is a foreign table: its changes are not in the WAL"}},
		{name: "wal children", sql: `CREATE TABLE c () INHERITS (users)`, spec: "users(capture=wal)", fails: []string{"other tables inherit from it", "or poll a view, without capture=wal"}},
		{name: "whole entry", sql: `CREATE TABLE a (id int PRIMARY KEY)`, spec: "a(txid=tx;history=log;max_age=1d)", fails: []string{"bridge sql 'a(txid=tx;history=log;max_age=1d)'"}},
		{name: "whole entry of a trigger", sql: `ALTER TABLE users RENAME txid TO ver`, spec: "users(txid=ver)", warns: []string{"bridge sql 'users(txid=ver)'"}},
		{name: "materialized", sql: `CREATE MATERIALIZED VIEW m AS SELECT * FROM users`, spec: "m", fails: []string{"materialized view: REFRESH copies rows after their transactions ended"}},
		{name: "sequence", sql: `CREATE SEQUENCE m`, spec: "m", fails: []string{"it is a sequence"}},
		{name: "index", spec: "users_pkey", fails: []string{"it is an index"}},
		{name: "type", sql: `CREATE TYPE m AS (a int)`, spec: "m", fails: []string{"it is a composite type"}},
		{name: "foreign", sql: `CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE f (id int, txid bigint) SERVER s`, spec: "f", fails: []string{"it is a foreign table: it copies"}},
		{name: "children", sql: `CREATE TABLE c () INHERITS (users)`, spec: "users", fails: []string{"other tables inherit from it"}},
		{name: "unlogged", sql: `ALTER TABLE users SET UNLOGGED`, spec: "users", warns: []string{"it is unlogged"}},
		{name: "no txid", sql: `CREATE TABLE a (id int PRIMARY KEY)`, spec: "a", fails: []string{"it has no column txid for the ID of the transaction that last wrote a row; to do: run the SQL that this prints: bridge sql a"}},
		{name: "near txid", spec: "users(txid=txd)", fails: []string{"it has no column txd", "did you mean txid=txid?"}},
		{name: "txid type", sql: `CREATE TABLE a (id int PRIMARY KEY, txid int)`, spec: "a", fails: []string{"its column txid is of type integer", "bridge sql 'a(txid=ls_txid)'"}, warns: []string{"may be NULL"}},
		{name: "txid type, set by a trigger", sql: `CREATE TABLE a (id int PRIMARY KEY, txid int); CREATE TRIGGER s BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION stamp()`, spec: "a", fails: []string{"its column txid is of type integer", "ALTER COLUMN \"txid\" TYPE bigint"}, warns: []string{"may be NULL"}},
		{name: "xid8 and domain", sql: `CREATE DOMAIN d AS xid8; CREATE DOMAIN e AS d; ALTER TABLE users ALTER txid DROP DEFAULT, ALTER txid TYPE e USING txid::text::xid8`, spec: "users"},
		{name: "null txid", sql: `ALTER TABLE users ALTER txid DROP NOT NULL`, spec: "users", warns: []string{"rows where it is NULL are not published"}},
		{name: "no key", sql: `ALTER TABLE users DROP CONSTRAINT users_pkey`, spec: "users", fails: []string{"it has no primary key and no unique index; to do: ALTER TABLE"}},
		{name: "unfit keys", sql: `ALTER TABLE users DROP CONSTRAINT users_pkey, ADD UNIQUE (name) DEFERRABLE, ADD UNIQUE (txid);
			CREATE UNIQUE INDEX part ON users (id) WHERE id > 1; CREATE UNIQUE INDEX expr ON users ((id+1))`, spec: "users", fails: []string{
			"that can be the key: expr is partial or on an expression, part is partial", "users_name_key is deferrable", "users_txid_key is on txid, which changes",
		}},
		{name: "unique index", sql: `ALTER TABLE users DROP CONSTRAINT users_pkey; CREATE UNIQUE INDEX u ON users (name, id) INCLUDE ("Gone")`, spec: "users"},
		{name: "named key", spec: "users(key=nme+tags+deleted)", fails: []string{"it has no column nme for its key; to do: did you mean key=name?", "its column deleted can't be in the key"}},
		{name: "named key not unique", spec: "users(key=name)", warns: []string{`CREATE UNIQUE INDEX CONCURRENTLY ON "public"."users" ("name")`}},
		{name: "nullable unique index", sql: `ALTER TABLE users DROP CONSTRAINT users_pkey, ADD UNIQUE ("Gone")`, spec: "users", warns: []string{`its key column "Gone" may be NULL, and rows where it is NULL are not published; to do: ALTER TABLE "public"."users" ALTER COLUMN "Gone" SET NOT NULL; or name another key`}},
		{name: "index without NULL before one with", sql: `ALTER TABLE users DROP CONSTRAINT users_pkey, ADD CONSTRAINT a UNIQUE ("Gone"), ADD CONSTRAINT b UNIQUE (id)`, spec: "users"},
		{name: "named key nullable", spec: "users(key=id+tags)", warns: []string{"its key column tags may be NULL, and rows where it is NULL are not published"}},
		{name: "wal nullable", sql: `CREATE TABLE a (id int UNIQUE)`, spec: "a(capture=wal)", fails: []string{`its replica identity lacks its key column id`, `to do: ALTER TABLE "public"."a" REPLICA IDENTITY FULL`}, warns: []string{"may be NULL"}},
		{name: "wal nullable and full", sql: `CREATE TABLE a (id int UNIQUE NULLS NOT DISTINCT); ALTER TABLE a REPLICA IDENTITY FULL`, spec: "a(capture=wal)", warns: []string{"may be NULL"}},
		{name: "superset of a key", spec: "users(key=name+id)"},
		{name: "unordered key", sql: `CREATE VIEW j AS SELECT id, txid, '{}'::json AS doc FROM users`, spec: "j(key=id+doc)", fails: []string{"its key column doc is of type json, which Postgres can't sort"}},
		{name: "deleted missing", spec: "users(deleted=delete)", fails: []string{"it has no column delete; to do: did you mean deleted=deleted?"}},
		{name: "deleted type", spec: "users(deleted=name)", fails: []string{"its column name is of type character varying(20); a deleted mark is"}},
		{name: "deleted data", sql: `ALTER TABLE users ALTER deleted TYPE int USING 0`, spec: "users", warns: []string{"its column deleted is of type integer and counts as data"}},
		{name: "no index", sql: `DROP INDEX users_txid_idx; CREATE INDEX ON users USING brin (txid); CREATE INDEX ON users (id, txid)`, spec: "users", warns: []string{"no index begins with txid", "CREATE INDEX CONCURRENTLY"}},
		{name: "no trigger", sql: `DROP TRIGGER s ON users`, spec: "users", warns: []string{"no trigger seems to set txid at INSERT and UPDATE"}},
		{name: "trigger of some columns", sql: `CREATE OR REPLACE TRIGGER s BEFORE INSERT OR UPDATE OF name ON users FOR EACH ROW EXECUTE FUNCTION stamp()`, spec: "users", warns: []string{"no trigger seems to set"}},
		{name: "trigger not always", sql: `ALTER TABLE users ENABLE TRIGGER s`, spec: "users", warns: []string{`is not ENABLE ALWAYS: changes by logical replication and by restores would be missed; to do: ALTER TABLE "public"."users" ENABLE ALWAYS TRIGGER "s"`}},
		{name: "trigger off", sql: `ALTER TABLE users DISABLE TRIGGER s`, spec: "users", warns: []string{"is not ENABLE ALWAYS"}},
		{name: "log", spec: "users(history=log)", warns: []string{"its log has no limit"}},
		{name: "view", sql: view, spec: "v(key=id)"},
		{name: "view without key", sql: view, spec: "v", fails: []string{"a view has no key of its own; to do: name the columns that identify a row: v(key=…)"}},
		{name: "view without txid", sql: `CREATE VIEW v AS SELECT id FROM users`, spec: "v(key=id)", fails: []string{"greatest(a.txid, b.txid)"}, warns: []string{"no transaction ID of that table"}},
		{name: "view of views", sql: view + `CREATE TABLE t (id int PRIMARY KEY, note text); CREATE VIEW w AS SELECT v.id, v.txid, t.note FROM v LEFT JOIN t USING (id)`, spec: "w(key=id)", warns: []string{"it reads t, but no transaction ID of that table: changes there are not noticed"}},
		{name: "view of materialized", sql: `CREATE MATERIALIZED VIEW m AS SELECT * FROM users; CREATE VIEW w AS SELECT id, txid FROM m`, spec: "w(key=id)", fails: []string{"it takes transaction IDs from m, a materialized view"}},
		{name: "view beside materialized", sql: `CREATE MATERIALIZED VIEW m AS SELECT * FROM users; CREATE VIEW w AS SELECT id, u.txid FROM users u JOIN m USING (id)`, spec: "w(key=id)", warns: []string{"it reads m, a materialized view: changes there do not show"}},
		{name: "base table", sql: view + `DROP INDEX users_txid_idx; DROP TRIGGER s ON users`, spec: "v(key=id)", warns: []string{`users: no index begins with txid`, "users: no trigger seems to set"}},
		{name: "partitioned", sql: `CREATE TABLE p (id int, txid bigint NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT; CREATE INDEX ON p (txid);
			CREATE TRIGGER s BEFORE INSERT OR UPDATE ON p FOR EACH ROW EXECUTE FUNCTION stamp(); ALTER TABLE p ENABLE ALWAYS TRIGGER s`, spec: "p"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := ready(t, tt.sql)
			_, warnings, err := relation.Load(context.Background(), conn, mustParse(t, tt.spec).List[0])
			var got []string
			for _, w := range warnings {
				got = append(got, w.Error())
			}
			if (err != nil) != (tt.fails != nil) || (len(got) > 0) != (tt.warns != nil) {
				t.Errorf("got error %v, warnings %q", err, got)
			}
			for _, want := range tt.fails {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("got %v\nwant %s", err, want)
				}
			}
			for _, want := range tt.warns {
				if !strings.Contains(strings.Join(got, "\n"), want) {
					t.Errorf("got %q\nwant %s", got, want)
				}
			}
			if p := (*relation.Problem)(nil); err != nil && !errors.As(err, &p) {
				t.Errorf("no *Problem in %v", err)
			}
		})
	}
}

func TestLoad_NotFound(t *testing.T) {
	conn := ready(t)
	_, _, err := relation.Load(context.Background(), conn, relation.NewSpec(relation.Name{Schema: "public", Table: "a"}))
	if !errors.Is(err, relation.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	_, _, err = relation.Load(context.Background(), conn, mustParse(t, "users(key=none)").List[0])
	if err == nil || errors.Is(err, relation.ErrNotFound) {
		t.Errorf("got %v, want an error other than ErrNotFound", err)
	}
}

// Load does not wait for a lock (I10). For a locked table without statistics it
// does without an estimate. For a locked view it fails: the rights can't be
// checked.
func TestLoad_Locked_I10(t *testing.T) {
	conn := ready(t, `ALTER TABLE users RENAME TO "it's"`, `CREATE VIEW v AS SELECT * FROM "it's"`, "SET lock_timeout = '100ms'")
	other, err := pgx.ConnectConfig(t.Context(), conn.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close(context.Background()) }()
	if _, err := other.Exec(t.Context(), `BEGIN; LOCK TABLE "it's" IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	rel, _, err := relation.Load(t.Context(), conn, mustParse(t, `"it's"`).List[0])
	if err != nil || rel.EstimatedRows != -1 {
		t.Errorf("got %+v, %v, want no estimate and no error", rel, err)
	}
	_, _, err = relation.Load(t.Context(), conn, mustParse(t, "v(key=id)").List[0])
	if !relation.IsLocked(err) {
		t.Errorf("got %v, want that it is locked", err)
	}
	if specs, _, err := mustParse(t, "*").Resolve(t.Context(), conn); err != nil || len(specs) != 1 {
		t.Errorf("got %v, %v, want the table, and no view that could not be looked at", specs, err)
	}
}

// Every right that the role lacks is reported, with the statement to run; and
// running the statement helps.
func TestLoad_Rights(t *testing.T) {
	conn := ready(t, `
		DROP ROLE IF EXISTS lockstep_test_reader; CREATE ROLE lockstep_test_reader;
		CREATE SCHEMA s; ALTER TABLE users SET SCHEMA s; ALTER TABLE s.users ENABLE ROW LEVEL SECURITY;
		CREATE VIEW v AS SELECT id, txid FROM s.users; ALTER VIEW v SET (security_invoker = false);
		GRANT SELECT ON v TO lockstep_test_reader; SET ROLE lockstep_test_reader`)
	ctx := context.Background()
	defer func() {
		if _, err := conn.Exec(ctx, `RESET ROLE; DROP OWNED BY lockstep_test_reader; DROP ROLE lockstep_test_reader`); err != nil {
			t.Error(err)
		}
	}()
	as := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, "RESET ROLE; "+sql+"; SET ROLE lockstep_test_reader"); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := relation.Load(ctx, conn, mustParse(t, "s.users").List[0])
	for _, want := range []string{
		`role lockstep_test_reader may not use schema s; to do: GRANT USAGE ON SCHEMA "s" TO "lockstep_test_reader"`,
		`role lockstep_test_reader may not read it; to do: GRANT SELECT ON "s"."users" TO "lockstep_test_reader"`,
		`row level security may hide rows`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	as(`GRANT USAGE ON SCHEMA s TO lockstep_test_reader; GRANT SELECT (id, txid) ON s.users TO lockstep_test_reader;
		CREATE POLICY lockstep_read ON s.users FOR SELECT TO lockstep_test_reader USING (true)`)
	_, _, err = relation.Load(ctx, conn, mustParse(t, "s.users").List[0])
	if err == nil || !strings.Contains(err.Error(), "may not read column name, tags, deleted, \"Gone\"") || strings.Contains(err.Error(), "hide") {
		t.Errorf("got %v", err)
	}
	as(`GRANT SELECT ON s.users TO lockstep_test_reader; CREATE POLICY narrow ON s.users AS RESTRICTIVE USING (id > 1)`)
	_, _, err = relation.Load(ctx, conn, mustParse(t, "s.users").List[0])
	if err == nil || !strings.Contains(err.Error(), "hide") {
		t.Errorf("got %v, want the restrictive policy reported", err)
	}
	as(`DROP POLICY narrow ON s.users`)
	if rel, _, err := relation.Load(ctx, conn, mustParse(t, "s.users").List[0]); err != nil {
		t.Error(err)
	} else if rel.EstimatedRows < 0 {
		t.Errorf("got %d rows estimated", rel.EstimatedRows)
	}
	as(`REVOKE SELECT ON s.users FROM lockstep_test_reader`)
	_, _, err = relation.Load(ctx, conn, mustParse(t, "s.users(capture=wal)").List[0])
	if err == nil || !strings.Contains(err.Error(), "may not read") || strings.Contains(err.Error(), "feed view") {
		t.Errorf("got %v, want no view advised with capture=wal", err)
	}
	if _, _, err := relation.Load(ctx, conn, mustParse(t, "v(key=id)").List[0]); err != nil {
		t.Error("a view reads with its owner's rights:", err)
	}
	as(`ALTER VIEW v SET (security_invoker = true); REVOKE SELECT (id, txid) ON s.users FROM lockstep_test_reader`)
	_, _, err = relation.Load(ctx, conn, mustParse(t, "v(key=id)").List[0])
	if err == nil || !strings.Contains(err.Error(), "Postgres refuses to read it: permission denied") {
		t.Errorf("got %v", err)
	}
}

func TestResolve(t *testing.T) {
	conn := ready(t, `
		CREATE TABLE "No" (id int PRIMARY KEY); CREATE TABLE nokey (txid bigint);
		CREATE TABLE b (id int PRIMARY KEY, txid xid8); CREATE TABLE secret (id int PRIMARY KEY, txid xid8);
		CREATE TABLE p (id int PRIMARY KEY, txid bigint) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT;
		CREATE VIEW v AS SELECT * FROM users; CREATE MATERIALIZED VIEW m AS SELECT 1 AS id;
		CREATE SCHEMA other; CREATE TABLE other.o (id int PRIMARY KEY, txid xid8);`)
	specs, skipped, err := mustParse(t, "b(tombstones=1d),other.x,*,-secret,-gone").Resolve(context.Background(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := (relation.Specs{List: specs}).String(), "b(tombstones=1d),other.x,p,users"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var names []string
	for _, p := range skipped {
		names = append(names, p.Relation.Quoted())
		if p.Relation.Table == "m" && !strings.Contains(p.What, "materialized view") {
			t.Errorf("a materialized view can't be set up, and is told: %s; to do: %s", p.What, p.Do)
		}
	}
	if got, want := strings.Join(names, " "), `gone "No" m nokey v`; got != want {
		t.Errorf("skipped %s, want %s: %v", got, want, skipped)
	}
	for tables, want := range map[string]string{
		"*(txid=ls),-b":                            "",
		"*(tombstones=1d),-p":                      "b(tombstones=1d),secret(tombstones=1d),users(tombstones=1d)",
		"users,*(capture=wal),-p":                  `users,"No"(capture=wal),b(capture=wal),secret(capture=wal)`,
		"*(capture=wal;history=log;max_age=1h),-p": `"No"(history=log;max_age=1h0m0s;capture=wal),b(history=log;max_age=1h0m0s;capture=wal),secret(history=log;max_age=1h0m0s;capture=wal),users(history=log;max_age=1h0m0s;capture=wal)`,
	} {
		if specs, _, err := mustParse(t, tables).Resolve(t.Context(), conn); err != nil || (relation.Specs{List: specs}).String() != want {
			t.Errorf("%s stands for %s, %v; want %s", tables, relation.Specs{List: specs}, err, want)
		}
	}
}

// TestLoad_OldRows: it is known of each table whether the WAL has its old rows in full. Of a partitioned table, the root and all
// partitions must have them.
func TestLoad_OldRows(t *testing.T) {
	parted := `CREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (0) TO (9); CREATE TABLE a2 PARTITION OF a DEFAULT; `
	for sql, want := range map[string]bool{
		`CREATE TABLE a (id int PRIMARY KEY)`:                                      false,
		`CREATE TABLE a (id int PRIMARY KEY); ALTER TABLE a REPLICA IDENTITY FULL`: true,
		parted: false,
		parted + `ALTER TABLE a REPLICA IDENTITY FULL`:                                                                             false,
		parted + `ALTER TABLE a1 REPLICA IDENTITY FULL`:                                                                            false,
		parted + `ALTER TABLE a1 REPLICA IDENTITY FULL; ALTER TABLE a2 REPLICA IDENTITY FULL`:                                      false,
		parted + `ALTER TABLE a REPLICA IDENTITY FULL; ALTER TABLE a1 REPLICA IDENTITY FULL; ALTER TABLE a2 REPLICA IDENTITY FULL`: true,
	} {
		t.Run("", func(t *testing.T) {
			rel, _, err := relation.Load(t.Context(), ready(t, sql), mustParse(t, "a(capture=wal;history=log;max_age=1h)").List[0])
			if err != nil || rel.OldRows != want {
				t.Errorf("%s: old rows in full is %v, %v; want %v", sql, rel != nil && rel.OldRows, err, want)
			}
		})
	}
}

// A set-up is for tables that * does not stand for yet: without a key or txid. A
// table of an extension is not the application's.
func TestPrepared(t *testing.T) {
	conn := ready(t, `
		CREATE TABLE nokey (a int); CREATE VIEW v AS SELECT * FROM users; CREATE MATERIALIZED VIEW m AS SELECT * FROM users;
		CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT;
		CREATE TABLE e (id int PRIMARY KEY, txid xid8); ALTER EXTENSION plpgsql ADD TABLE e;
		CREATE SCHEMA other; CREATE TABLE other.o (id int PRIMARY KEY)`)
	specs, err := mustParse(t, "other.o,*(capture=wal),-nokey").Prepared(t.Context(), conn)
	if got, want := (relation.Specs{List: specs}).String(), "other.o,p(capture=wal),users(capture=wal)"; err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	specs, skipped, err := mustParse(t, "*").Resolve(t.Context(), conn)
	if got, want := (relation.Specs{List: specs}).String(), "users"; err != nil || got != want {
		t.Errorf("got %s, %v, %v; want %s", got, skipped, err, want)
	}
}

func TestLoadSource(t *testing.T) {
	conn := ready(t, `SET ROLE pg_read_all_data`)
	ctx := context.Background()
	got, err := relation.LoadSource(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	if got.SystemID == 0 || got.Timeline == 0 || got.Version < 140000 || got.InRecovery || !strings.Contains(conn.Config().Database, got.Database) {
		t.Errorf("got %+v", got)
	}
	if _, err := conn.Exec(ctx, `RESET ROLE; REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; SET ROLE pg_read_all_data`); err != nil {
		t.Fatal(err)
	}
	if _, err := relation.LoadSource(ctx, conn); err == nil || !strings.Contains(err.Error(), "GRANT EXECUTE ON FUNCTION pg_control_system()") {
		t.Errorf("got %v", err)
	}
}

// A record may end exactly with a page of the WAL. Postgres then names a place to
// insert that is never on disk before somebody writes. Start returns the place that
// is.
func TestWALPages_Start(t *testing.T) {
	t.Parallel()
	c := testenv.NewCluster(t, "fsync=on", "autovacuum=off", "wal_level=logical")
	conn := testenv.Conn(t, c.Database())
	src, err := relation.LoadSource(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if src.WAL != (relation.WALPages{Page: 8192, File: 16 << 20}) {
		t.Fatalf("got %+v", src.WAL)
	}
	at := func(expression string) uint64 {
		t.Helper()
		n, err := relation.QueryOne[int64](t.Context(), conn, "SELECT ("+expression+" - '0/0')::int8")
		if err != nil {
			t.Fatal(err)
		}
		return uint64(n)
	}
	write := func(bytes uint64) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), "SELECT pg_logical_emit_message(false, 'x', repeat('x', $1))", int(bytes)); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		begin := at("pg_current_wal_insert_lsn()")
		write(64)
		end := at("pg_current_wal_insert_lsn()")
		left := 8192 - end%8192
		head := end - begin - 64
		if begin/8192 != end/8192 || left < head+8 {
			continue
		}
		write(left - head) // up to the page's end
		inserted := at("pg_current_wal_insert_lsn()")
		if inserted%8192 != 24 {
			t.Logf("the page ends at %d, the record at %d", end+left, inserted) // somebody else wrote
			continue
		}
		testenv.Eventually(t, testenv.Patience(), func() error { // the WAL writer flushes all that there is
			if flushed := at("pg_current_wal_flush_lsn()"); flushed < src.WAL.Start(inserted) {
				return fmt.Errorf("the WAL is flushed up to %d, want %d", flushed, src.WAL.Start(inserted))
			}
			return nil
		})
		if flushed := at("pg_current_wal_flush_lsn()"); flushed < inserted && at("pg_current_wal_insert_lsn()") == inserted {
			return // as it is when nobody writes
		}
	}
	t.Fatal("no record ended with a page")
}

// Immediately after a promotion LoadSource returns the new timeline, although the
// last checkpoint is still of the old one.
func TestLoadSource_Promotion(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	primary := testenv.NewCluster(t, "checkpoint_timeout=1h", "checkpoint_completion_target=0.9")
	standby := primary.Standby(t)
	load := func(url string) relation.Source {
		t.Helper()
		src, err := relation.LoadSource(context.Background(), testenv.Conn(t, url))
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	p, s := load(primary.Database()), load(standby.URL("postgres"))
	if p.Timeline != 1 || s.Timeline != 1 || p.InRecovery || !s.InRecovery || p.SystemID != s.SystemID {
		t.Errorf("got %+v of the primary, %+v of the standby", p, s)
	}
	standby.Promote()
	if s = load(standby.URL("postgres")); s.Timeline != 2 || s.InRecovery {
		t.Errorf("got %+v after the promotion", s)
	}
}
