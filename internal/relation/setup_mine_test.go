package relation_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"bridge/internal/relation"
)

// proposed returns the relation and the options of the last command in a script of
// comments.
func proposed(t *testing.T, script string) (string, relation.SetupOptions) {
	t.Helper()
	i := strings.LastIndex(script, "bridge sql ")
	if i < 0 {
		t.Fatalf("no command at the end of\n%s", script)
	}
	command := script[i+len("bridge sql "):]
	var opt relation.SetupOptions
	words := strings.Fields(command)
	for len(words) > 1 {
		switch words[0] {
		case "-as":
			opt.As, words = words[1], words[2:]
		case "-role":
			opt.Role, words = words[1], words[2:]
		default:
			t.Fatalf("%q in %s", words[0], command)
		}
	}
	return strings.Trim(words[0], "'"), opt
}

// The script changes nothing that is not the bridge's: where something else has a
// name that it needs, it is comments, and they propose another name. With that the
// script runs, twice, and the application's own statements do what they did before.
func TestSetupSQL_ChangesNothingOfTheApplication(t *testing.T) {
	const items = `CREATE TABLE items (id int PRIMARY KEY, v int); INSERT INTO items VALUES (1, 1), (2, 2); `
	const payments = `INSERT INTO payments VALUES (1, 11, 5), (2, 12, 5); `
	const pay = "SELECT id || ':' || coalesce(txid::text, '-') || ':' || amount FROM payments ORDER BY id"
	const trigger = `CREATE TRIGGER s BEFORE INSERT OR UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION app(); `
	app := func(body string) string {
		return `CREATE FUNCTION app() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ` + body + ` RETURN NEW; END $$; `
	}
	mine := func(name string) string {
		return `CREATE SCHEMA IF NOT EXISTS lockstep; CREATE FUNCTION lockstep.` + name + `() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN coalesce(NEW, OLD); END $$; `
	}
	const log = `CREATE TABLE log (op text); CREATE TABLE other (id int); `
	const use = ` ON other FOR EACH ROW EXECUTE FUNCTION lockstep.`
	tests := []struct {
		name, create, spec string
		// propose is the command at the end; empty if the script may run as it is.
		propose string
		// do is what the application does, and see what it sees then.
		do, see, want string
	}{
		{
			"column of payment numbers", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint NOT NULL UNIQUE, amount int); ` + payments, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column that is the key", `CREATE TABLE payments (id int, txid bigint PRIMARY KEY, amount int, ls_txid text); ` + payments, "payments",
			"'payments(txid=ls_txid_2)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column of text", `CREATE TABLE payments (id int PRIMARY KEY, txid text, amount int); INSERT INTO payments VALUES (1, '007', 5)`, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:007:6",
		},
		{
			"column with NULL", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); INSERT INTO payments VALUES (1, NULL, 5)`, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:-:6",
		},
		{
			"column that notes who made a row, by a default", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint DEFAULT txid_current(), amount int); ` + payments, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column that notes who made a row, by a trigger", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments + app(`NEW.txid := txid_current();`) +
				`CREATE TRIGGER s BEFORE INSERT ON payments FOR EACH ROW EXECUTE FUNCTION app()`, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column that notes who made a row, by a condition", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments +
				app(`IF TG_OP = 'INSERT' THEN NEW.txid := txid_current(); END IF;`) + trigger, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column that a trigger fills if it is NULL", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments +
				app(`NEW.txid := coalesce(NEW.txid, txid_current());`) + trigger, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"trigger that fires if it is NULL", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments + app(`NEW.txid := txid_current();`) +
				`CREATE TRIGGER s BEFORE INSERT OR UPDATE ON payments FOR EACH ROW WHEN (NEW.txid IS NULL) EXECUTE FUNCTION app()`, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column that a trigger notes elsewhere", log + `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments +
				app(`INSERT INTO log VALUES (NEW.txid || ' by ' || txid_current());`) + trigger, "payments",
			"'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"column that is named", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount bigint); ` + payments, "payments(txid=amount)",
			"'payments(txid=ls_txid)'", `UPDATE payments SET txid = 13 WHERE id = 2`, pay, "1:11:5 2:13:5",
		},
		{
			"column below a view", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments + `CREATE VIEW v AS SELECT id, txid FROM payments`, "v(key=id)",
			"'v(key=id;txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"function stamp", items + log + mine("stamp") + `CREATE TRIGGER x BEFORE INSERT` + use + `stamp()`, "items",
			"-as lockstep2 items", `INSERT INTO other VALUES (1)`, `SELECT op FROM log`, "INSERT",
		},
		{
			"function notify", items + log + mine("notify") + `CREATE TRIGGER x BEFORE INSERT` + use + `notify()`, "items",
			"-as lockstep2 items", `INSERT INTO other VALUES (1)`, `SELECT op FROM log`, "INSERT",
		},
		{
			"function of tombstones", items + log + mine(`"public.items"`) + `CREATE TRIGGER x BEFORE INSERT` + use + `"public.items"()`, "items",
			"-as lockstep2 items", `INSERT INTO other VALUES (1)`, `SELECT op FROM log`, "INSERT",
		},
		{
			"function that stamps another column, as a tombstones' function is called",
			`CREATE TABLE stamp_x (id int PRIMARY KEY, "x.y" bigint); CREATE SCHEMA lockstep; CREATE SCHEMA stamp_x; CREATE TABLE stamp_x.y (id int PRIMARY KEY, v int);
			CREATE FUNCTION lockstep."stamp_x.y"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW."x.y" := pg_catalog.txid_current(); RETURN NEW; END $$; COMMENT ON FUNCTION lockstep."stamp_x.y"() IS 'lockstep bridge: sets column "x.y"';
			CREATE TRIGGER zzz_lockstep_stamp BEFORE INSERT OR UPDATE ON stamp_x FOR EACH ROW EXECUTE FUNCTION lockstep."stamp_x.y"()`,
			"stamp_x.y", "-as lockstep2 stamp_x.y", `INSERT INTO stamp_x VALUES (1)`, `SELECT ("x.y" = txid_current())::text FROM stamp_x WHERE id = 0 OR "x.y" > 0 AND "x.y" IS NULL`, "",
		},
		{
			"table of tombstones", items + `CREATE SCHEMA lockstep; CREATE TABLE lockstep."public.items" (id int PRIMARY KEY, txid bigint NOT NULL); INSERT INTO lockstep."public.items" VALUES (1, 1)`, "items",
			"-as lockstep2 items", `DELETE FROM items`, `SELECT id || ':' || txid FROM lockstep."public.items"`, "1:1",
		},
		{
			"feed view", items + `CREATE VIEW items_lockstep AS SELECT false AS deleted, id FROM items`, "items",
			"-as lockstep2 items", `DELETE FROM items WHERE id = 1`, `SELECT id::text FROM items_lockstep`, "2",
		},
		{
			"table called as the feed view", items + `CREATE TABLE items_lockstep AS SELECT id FROM items`, "items",
			"-as lockstep2 items", `DELETE FROM items`, `SELECT id::text FROM items_lockstep`, "1 2",
		},
		{
			"trigger stamp", items + log + mine("app") + `CREATE TRIGGER zzz_lockstep_stamp BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION lockstep.app()`, "items",
			"-as lockstep2 items", `INSERT INTO items VALUES (3)`, `SELECT op FROM log`, "INSERT",
		},
		{
			"trigger delete", items + log + mine("app") + `CREATE TRIGGER zzz_lockstep_delete AFTER DELETE ON items FOR EACH ROW EXECUTE FUNCTION lockstep.app()`, "items",
			"-as lockstep2 items", `DELETE FROM items WHERE id = 1`, `SELECT op FROM log`, "DELETE",
		},
		{
			"trigger notify", items + log + mine("app") + `CREATE TRIGGER zzz_lockstep_notify AFTER DELETE ON items FOR EACH ROW EXECUTE FUNCTION lockstep.app()`, "items",
			"-as lockstep2 items", `DELETE FROM items WHERE id = 1`, `SELECT op FROM log`, "DELETE",
		},
		{
			"column and feed view", `CREATE TABLE payments (id int PRIMARY KEY, txid bigint, amount int); ` + payments + `CREATE VIEW payments_lockstep AS SELECT 7 AS x`, "payments",
			"-as lockstep2 'payments(txid=ls_txid)'", `UPDATE payments SET amount = 6`, pay, "1:11:6 2:12:6",
		},
		{
			"index", items + `CREATE INDEX items_lockstep_idx ON items (v); CREATE TABLE items_lockstep_idx2 (x int)`, "items",
			"", ``, `SELECT indexname || indexdef FROM pg_indexes WHERE indexname ~ 'items_lockstep' ORDER BY indexname COLLATE "C"`,
			"items_lockstep_idxCREATE INDEX items_lockstep_idx ON public.items USING btree (v) items_lockstep_idx3CREATE INDEX items_lockstep_idx3 ON public.items USING btree (txid, id)",
		},
		{
			"marks of deleted rows", `CREATE TABLE items (id int PRIMARY KEY, deleted int, lockstep_deleted text); INSERT INTO items VALUES (1, 2, 'x'), (2, 3, 'y')`, "items",
			"", `DELETE FROM items WHERE id = 2`, `SELECT id || ':' || deleted || lockstep_deleted || lockstep_deleted_2::text FROM items_lockstep WHERE NOT lockstep_deleted_2`, "1:2xfalse",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			conn := ready(t, tt.create)
			dropTestRole(t, conn)
			opt := relation.SetupOptions{Role: "lockstep_test_" + conn.Config().Database}
			script, err := relation.SetupSQL(ctx, conn, mustParse(t, tt.spec).List, opt)
			spec := tt.spec
			if tt.propose != "" {
				var p *relation.Problem
				if !errors.As(err, &p) || !strings.Contains(err.Error(), "is not the bridge's") {
					t.Errorf("got %v", err)
				}
				mustBeComments(t, script)
				if want := "bridge sql " + strings.Replace("-role "+opt.Role+" "+tt.propose, "-role "+opt.Role+" -as lockstep2", "-as lockstep2 -role "+opt.Role, 1) + "\n"; !strings.HasSuffix(script, want) {
					t.Errorf("want %q at the end of\n%s", want, script)
				}
				spec, opt = proposed(t, script)
			} else if err != nil {
				t.Fatal(err)
			}
			var use string
			for range 2 {
				script, err = relation.SetupSQL(ctx, conn, mustParse(t, spec).List, opt)
				if err != nil {
					t.Fatalf("with what was proposed: %v", err)
				}
				runScript(t, conn, script)
				_, use, _ = strings.Cut(script, "BRIDGE_TABLES=")
			}
			if tt.do != "" {
				if _, err := conn.Exec(ctx, tt.do); err != nil {
					t.Fatal(err)
				}
			}
			if got := query(t, conn, tt.see); got != tt.want {
				t.Errorf("the application sees %q, want %q", got, tt.want)
			}
			feed := mustParse(t, strings.Trim(strings.TrimSpace(use), "'")).List[0]
			if !strings.HasPrefix(tt.spec, "v(") {
				if _, warnings, err := relation.Load(ctx, conn, feed); err != nil || len(warnings) > 0 {
					t.Errorf("Load: %v %v", err, warnings)
				}
			}
		})
	}
}

// A table that was prepared with a column of another name needs no second one. Who
// forgets to name the column is told its name, and not to prepare the table again.
func TestSetupSQL_ForgottenColumn(t *testing.T) {
	ctx := context.Background()
	conn := ready(t, `CREATE TABLE payments (id int PRIMARY KEY, txid text); CREATE TABLE parts (id int PRIMARY KEY, txid bigint, deleted bool)`)
	dropTestRole(t, conn)
	runScript(t, conn, setup(t, conn, "payments(txid=ls_txid)"))
	runScript(t, conn, setup(t, conn, "parts(txid=ls_txid)"))
	opt := relation.SetupOptions{Role: "lockstep_test_" + conn.Config().Database}
	for spec, want := range map[string]string{
		"payments": "'payments(txid=ls_txid)'", "parts": "'parts(txid=ls_txid)'", "payments_lockstep(key=id)": "'payments_lockstep(key=id;txid=ls_txid)'",
	} {
		script, err := relation.SetupSQL(ctx, conn, mustParse(t, spec).List, opt)
		if want := "bridge sql -role " + opt.Role + " " + want + "\n"; err == nil || !strings.HasSuffix(script, want) {
			t.Errorf("%s: %v, want %q at the end of\n%s", spec, err, want, script)
		}
		if n := strings.Count(script, "In the way"); n != 1 {
			t.Errorf("%s: %d things are in the way in\n%s", spec, n, script)
		}
	}
	for spec, want := range map[string]string{
		"payments": "bridge sql 'payments(txid=ls_txid)'", "parts": "bridge sql 'parts(txid=ls_txid)'", "payments_lockstep(key=id)": "txid=ls_txid in BRIDGE_TABLES",
	} {
		_, warnings, err := relation.Load(ctx, conn, mustParse(t, spec).List[0])
		if text := fmt.Sprint(err, warnings); !strings.Contains(text, want) || strings.Contains(text, "ls_txid_2") {
			t.Errorf("%s: got %s, want %s", spec, text, want)
		}
	}
}

// What makes a table the bridge's is a trigger that sets the column to the ID of
// the transaction and to nothing else. Its own trigger stays.
func TestSetupSQL_OlderTriggersStay(t *testing.T) {
	for _, body := range []string{
		`NEW.txid := txid_current();`,
		`new . "txid" = pg_catalog.txid_current(); /* NEW.txid is NULL */`,
		`SELECT txid_current() INTO NEW.txid;`,
		`NEW.txid := pg_current_xact_id()::text::bigint;`,
		`NEW.txid := CAST(pg_current_xact_id()::text AS bigint);`,
		`IF TG_OP = 'INSERT' OR NEW.* IS DISTINCT FROM OLD.* THEN NEW.txid := txid_current(); END IF;`,
	} {
		t.Run(body, func(t *testing.T) {
			conn := ready(t, `CREATE TABLE old (id int PRIMARY KEY, v int, txid bigint);
				CREATE FUNCTION app() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+body+` RETURN NEW; END $$;
				CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('lockstep', 'public.old'); RETURN NULL; END $$;
				CREATE TRIGGER zzz_lockstep_stamp BEFORE INSERT OR UPDATE ON old FOR EACH ROW EXECUTE FUNCTION app(); ALTER TABLE old ENABLE ALWAYS TRIGGER zzz_lockstep_stamp;
				CREATE TRIGGER zzz_lockstep_notify AFTER INSERT ON old FOR EACH STATEMENT EXECUTE FUNCTION wake();
				INSERT INTO old VALUES (1, 1)`)
			feed := setUp(t, conn, "old")
			if got, want := query(t, conn, `SELECT tgname || ' ' || tgfoid::regproc FROM pg_trigger WHERE tgrelid = 'old'::regclass AND tgname ~ 'stamp|notify' ORDER BY 1`), "zzz_lockstep_notify wake zzz_lockstep_stamp app"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if _, warnings, err := relation.Load(context.Background(), conn, feed); err != nil || len(warnings) > 0 {
				t.Error(err, warnings)
			}
		})
	}
}

// What an earlier version of the script made is known, though it has no marks.
func TestSetupSQL_EarlierScript(t *testing.T) {
	conn := ready(t, `CREATE TABLE orders (region text, id bigint, total numeric(12,2), PRIMARY KEY (region, id))`)
	first, err := os.ReadFile("testdata/setup_orders_first.sql")
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(first), "-- The bridge's role") // which all databases of the cluster share
	runScript(t, conn, before)
	if _, err := conn.Exec(context.Background(), `INSERT INTO orders VALUES ('a', 1, 1); DELETE FROM orders`); err != nil {
		t.Fatal(err)
	}
	feed := setUp(t, conn, "orders")
	if _, warnings, err := relation.Load(context.Background(), conn, feed); err != nil || len(warnings) > 0 {
		t.Error(err, warnings)
	}
	if got := query(t, conn, `SELECT region || id FROM orders_lockstep WHERE deleted`); got != "a1" {
		t.Errorf("tombstones: got %q", got)
	}
}

// A column that the user marks is the bridge's.
func TestSetupSQL_MarkedColumn(t *testing.T) {
	conn := ready(t, `CREATE TABLE a (id int PRIMARY KEY, txid bigint)`)
	script, err := relation.SetupSQL(context.Background(), conn, mustParse(t, "a").List, relation.SetupOptions{})
	if err == nil {
		t.Fatal("no error")
	}
	_, mark, _ := strings.Cut(script, "--   COMMENT ON COLUMN")
	mark, _, _ = strings.Cut(mark, "\n")
	if _, err := conn.Exec(context.Background(), "COMMENT ON COLUMN"+mark); err != nil {
		t.Fatal(err)
	}
	setUp(t, conn, "a")
}

// With tombstones of another key, the table's own DELETE would fail. So it would if
// a table got the name that another one had.
func TestSetupSQL_TombstonesOfAnotherKey(t *testing.T) {
	const was = `CREATE TABLE a (id int PRIMARY KEY, k text NOT NULL)`
	for name, change := range map[string]string{
		"key":   `ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id, k)`,
		"type":  `DROP VIEW a_lockstep; DROP TRIGGER zzz_lockstep_rekey ON a; ALTER TABLE a ALTER id TYPE bigint`,
		"named": `ALTER TABLE a RENAME TO b; CREATE TABLE a (id int PRIMARY KEY)`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			conn := ready(t, was)
			dropTestRole(t, conn)
			runScript(t, conn, setup(t, conn, "a"))
			if _, err := conn.Exec(ctx, change); err != nil {
				t.Fatal(err)
			}
			script, err := relation.SetupSQL(ctx, conn, mustParse(t, "a").List, relation.SetupOptions{Role: "lockstep_test_" + conn.Config().Database})
			if err == nil {
				t.Fatalf("no error, and\n%s", script)
			}
			mustBeComments(t, script)
			if _, way, ok := strings.Cut(script, "--   BEGIN;"); ok {
				way, _, _ = strings.Cut(way, "\n")
				if name == "type" {
					way = strings.Replace(way, "DROP VIEW", "DROP VIEW IF EXISTS", 1)
				}
				if _, err := conn.Exec(ctx, "BEGIN;"+way); err != nil {
					t.Fatal(err)
				}
			} else if name != "named" {
				t.Errorf("no way out in\n%s", script)
			}
			spec, opt := proposed(t, script)
			if script, err = relation.SetupSQL(ctx, conn, mustParse(t, spec).List, opt); err != nil {
				t.Fatal(err)
			}
			runScript(t, conn, script)
			if _, err := conn.Exec(ctx, "DELETE FROM a; TRUNCATE a"); err != nil {
				t.Error(err)
			}
		})
	}
}

// The role of the application keeps its rights. The bridge's own is known by what
// it may do.
func TestSetupSQL_Role(t *testing.T) {
	ctx := context.Background()
	conn := ready(t)
	for _, c := range []struct{ create, propose string }{
		{"CREATE ROLE lockstep LOGIN", ""},
		{"CREATE ROLE lockstep LOGIN REPLICATION; GRANT pg_read_all_stats TO lockstep; GRANT SELECT ON users TO lockstep", ""},
		{"CREATE ROLE lockstep SUPERUSER; COMMENT ON ROLE lockstep IS 'lockstep bridge: role of the bridge'", ""},
		{"CREATE ROLE lockstep", "bridge sql -role lockstep_bridge "},
		{"CREATE ROLE lockstep LOGIN SUPERUSER", "bridge sql -role lockstep_bridge "},
		{"CREATE ROLE lockstep LOGIN; ALTER TABLE users OWNER TO lockstep", "bridge sql -role lockstep_bridge "},
		{"CREATE ROLE lockstep LOGIN; CREATE ROLE lockstep_bridge ROLE lockstep; GRANT lockstep TO lockstep_test_member", "bridge sql -role lockstep_bridge_2 "},
	} {
		for _, spec := range []string{"users", "users(capture=wal)"} {
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, "CREATE ROLE lockstep_test_member; "+c.create); err != nil {
				t.Fatal(err)
			}
			script, err := relation.SetupSQL(ctx, tx, mustParse(t, spec).List, relation.SetupOptions{})
			if (err != nil) != (c.propose != "") || !strings.Contains(script, c.propose) {
				t.Errorf("%s, %s: got %v and\n%s", c.create, spec, err, script)
			}
			if err != nil {
				mustBeComments(t, script)
			}
			if err := tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The script may be run later than it was printed, or in another database: it fails
// rather than change what came meanwhile, also if psql goes on after errors.
func TestSetupSQL_RunLater(t *testing.T) {
	for name, c := range map[string]struct{ meanwhile, do, see, want string }{
		"column": {`ALTER TABLE a ADD txid bigint; INSERT INTO a VALUES (1, 7)`, `UPDATE a SET id = 2`, `SELECT txid::text FROM a`, "7"},
		"function": {
			`CREATE SCHEMA lockstep; CREATE FUNCTION lockstep.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.x := 7; RETURN NEW; END $$;
			CREATE TABLE o (x int); CREATE TRIGGER s BEFORE INSERT ON o FOR EACH ROW EXECUTE FUNCTION lockstep.stamp()`,
			`INSERT INTO o VALUES (1)`, `SELECT x::text FROM o`, "7",
		},
		"view":       {`CREATE VIEW a_lockstep AS SELECT false AS deleted, id FROM a LIMIT 0`, `INSERT INTO a VALUES (1)`, `SELECT count(*)::text FROM a_lockstep`, "0"},
		"tombstones": {`CREATE SCHEMA lockstep; CREATE TABLE lockstep."public.a" (id int PRIMARY KEY, txid bigint NOT NULL)`, `INSERT INTO a VALUES (1); DELETE FROM a`, `SELECT count(*)::text FROM lockstep."public.a"`, "0"},
		"trigger": {
			`CREATE TABLE log (x int); CREATE FUNCTION app() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (7); RETURN NULL; END $$;
			CREATE TRIGGER zzz_lockstep_delete AFTER DELETE ON a FOR EACH ROW EXECUTE FUNCTION app()`, `INSERT INTO a VALUES (1); DELETE FROM a`, `SELECT x::text FROM log`, "7",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			conn := ready(t, `CREATE TABLE a (id int PRIMARY KEY)`)
			dropTestRole(t, conn)
			script := setup(t, conn, "a")
			if _, err := conn.Exec(ctx, c.meanwhile); err != nil {
				t.Fatal(err)
			}
			said := ""
			for _, statement := range statements(script) {
				if _, err := conn.Exec(ctx, statement); err != nil {
					said += err.Error()
				}
			}
			if !strings.Contains(said, "is not the bridge's: run bridge sql again") {
				t.Errorf("the script says %q", said)
			}
			if _, err := conn.Exec(ctx, c.do); err != nil {
				t.Fatal(err)
			}
			if got := query(t, conn, c.see); got != c.want {
				t.Errorf("the application sees %q, want %q", got, c.want)
			}
		})
	}
}

// The script says beforehand which statements a new column changes, and what helps.
func TestSetupSQL_SaysWhatTheColumnChanges(t *testing.T) {
	ctx := context.Background()
	conn := ready(t, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t2 (LIKE t); CREATE TABLE t3 (LIKE t); ALTER TABLE t3 ADD note bigint;
		INSERT INTO t VALUES (1, 'a'); CREATE PUBLICATION elsewhere FOR TABLE t; CREATE PUBLICATION listed FOR TABLE t (id)`)
	dropTestRole(t, conn)
	script := setup(t, conn, "t")
	for _, want := range []string{
		"COPY t FROM without a list of columns then fails", "INSERT INTO other SELECT * FROM t then fails, or fills one more column", "bridge sql 't(capture=wal)'", "INSTEAD OF INSERT",
		"Publication elsewhere then has the column",
	} {
		if i := strings.Index(script, want); i < 0 || i > strings.Index(script, "ADD COLUMN") {
			t.Errorf("%q is not there, or too late, in\n%s", want, script)
		}
	}
	runScript(t, conn, script)
	copyIn := func(sql string) error {
		_, err := conn.PgConn().CopyFrom(ctx, strings.NewReader("2\tb\n"), sql)
		return err
	}
	if copyIn("COPY t FROM STDIN") == nil {
		t.Error("COPY FROM without columns works: the script says that it does not")
	}
	if err := copyIn("COPY t (id, v) FROM STDIN"); err != nil {
		t.Error(err)
	}
	if _, err := conn.Exec(ctx, "INSERT INTO t2 SELECT * FROM t"); err == nil {
		t.Error("INSERT … SELECT * works: the script says that it does not")
	}
	if _, err := conn.Exec(ctx, "INSERT INTO t3 SELECT * FROM t"); err != nil {
		t.Error(err)
	}
	if again := setup(t, conn, "t"); strings.Contains(again, "COPY") {
		t.Errorf("says it again, of a column that is there:\n%s", again)
	}
	// A view in the table's place.
	if _, err := conn.Exec(ctx, `ALTER TABLE t RENAME TO t_rows; CREATE VIEW t AS SELECT id, v FROM t_rows;
		CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t_rows (id, v) VALUES (NEW.id, NEW.v); RETURN NEW; END $$;
		CREATE TRIGGER put INSTEAD OF INSERT ON t FOR EACH ROW EXECUTE FUNCTION put(); DELETE FROM t`); err != nil {
		t.Fatal(err)
	}
	if err := copyIn("COPY t FROM STDIN"); err != nil {
		t.Error(err)
	}
	if _, err := conn.Exec(ctx, "INSERT INTO t2 SELECT * FROM t"); err != nil {
		t.Error(err)
	}
}

// bridge check proposes nothing that overwrites a column that may be the
// application's.
func TestLoad_ProposesNothingThatOverwrites(t *testing.T) {
	for _, create := range []string{
		`CREATE TABLE a (id int PRIMARY KEY, txid bigint)`,
		`CREATE TABLE a (id int PRIMARY KEY, txid int NOT NULL)`,
		`CREATE TABLE a (id int PRIMARY KEY, txid text)`,
		`CREATE TABLE a (id int PRIMARY KEY, txid bigint DEFAULT txid_current())`,
		`CREATE TABLE a (id int PRIMARY KEY, txid bigint, other bigint); CREATE FUNCTION app() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.other := txid_current(); RETURN NEW; END $$;
			CREATE TRIGGER s BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION app()`,
	} {
		t.Run(create, func(t *testing.T) {
			conn := ready(t, create)
			rel, warnings, err := relation.Load(context.Background(), conn, mustParse(t, "a").List[0])
			text := ""
			if err != nil {
				text = err.Error()
			} else if len(rel.Stamped) > 0 {
				t.Error("the column counts as the bridge's")
			}
			for _, w := range warnings {
				text += "\n" + w.Do
			}
			for _, bad := range []string{"UPDATE ", "ALTER COLUMN", "ENABLE ALWAYS"} {
				if strings.Contains(text, bad) {
					t.Errorf("proposes %s: %s", bad, text)
				}
			}
			if !strings.Contains(text, "bridge sql 'a(txid=ls_txid)'") {
				t.Errorf("proposes no other column: %s", text)
			}
		})
	}
}
