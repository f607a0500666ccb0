package relation_test

import (
	"context"
	"strings"
	"testing"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
)

// setupWAL returns what SetupSQL prints for a table. Role and publication have
// names of this test's own.
func setupWAL(t *testing.T, conn *pgx.Conn, spec string) (string, error) {
	t.Helper()
	db := conn.Config().Database
	return relation.SetupSQL(context.Background(), conn, mustParse(t, spec).List, relation.SetupOptions{Role: "lockstep_test_" + db, Name: "p_" + db})
}

func dropTestRole(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	t.Cleanup(func() {
		role := pgx.Identifier{"lockstep_test_" + conn.Config().Database}.Sanitize()
		if _, err := conn.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
}

// A table whose own UPDATE and DELETE would fail in a publication gets only
// comments. They say what makes the table fit, with one statement on each line; and
// each of these statements does.
func TestSetupSQL_WALUnfitIsCommentsOnly(t *testing.T) {
	tests := []struct {
		name, create, spec string
		wants              []string
		ways               int
	}{
		{
			"no key", `CREATE TABLE e (id int, v int)`, "e(capture=wal)",
			[]string{"it has no primary key", `ADD PRIMARY KEY (…);`, "e(key=…;capture=wal)"},
			0,
		},
		{
			"partition without identity, nullable key", `CREATE TABLE e (id int UNIQUE, v int) PARTITION BY RANGE (id); CREATE TABLE e1 PARTITION OF e DEFAULT`, "e(capture=wal)",
			[]string{`"e1" REPLICA IDENTITY FULL;`},
			1,
		},
		{
			"key without identity", `CREATE TABLE e (id int NOT NULL, v int)`, "e(capture=wal;key=id)",
			[]string{"would refuse UPDATE and DELETE of it in publication", "it has no replica identity", `ADD PRIMARY KEY ("id");`, `REPLICA IDENTITY FULL;`},
			2,
		},
		{
			"key beside a primary key", `CREATE TABLE e (id int NOT NULL, v int PRIMARY KEY)`, "e(capture=wal;key=id)",
			[]string{`ADD UNIQUE ("id");`, `REPLICA IDENTITY FULL;`},
			2,
		},
		{
			"deferrable primary key, which is no identity", `CREATE TABLE e (id int PRIMARY KEY DEFERRABLE, v int)`, "e(capture=wal)",
			[]string{`ADD UNIQUE ("id");`, `REPLICA IDENTITY FULL;`},
			2,
		},
		{
			"partition without identity", `CREATE TABLE e (id int NOT NULL UNIQUE, v int) PARTITION BY RANGE (id); CREATE TABLE e1 PARTITION OF e DEFAULT`, "e(capture=wal)",
			[]string{`"e" ADD PRIMARY KEY ("id");`, `"e1" REPLICA IDENTITY FULL;`},
			2,
		},
		{
			"one partition without identity", `CREATE TABLE e (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE e1 PARTITION OF e DEFAULT;
			ALTER TABLE e1 REPLICA IDENTITY NOTHING`, "e(capture=wal)", []string{`"e1" REPLICA IDENTITY DEFAULT;`}, 1,
		},
		{
			"inserts only, of a partition without identity", `CREATE TABLE e (id int NOT NULL, v int) PARTITION BY RANGE (id); CREATE TABLE e1 PARTITION OF e DEFAULT`,
			"e(capture=wal;key=id;actions=insert)",
			[]string{`"e" ADD PRIMARY KEY ("id");`, `"e1" REPLICA IDENTITY FULL;`, "WITH (publish = 'insert'"},
			2,
		},
		{"unlogged", `CREATE UNLOGGED TABLE e (id int PRIMARY KEY, v int)`, "e(capture=wal)", []string{"it is unlogged", "SET LOGGED;"}, 1},
		{
			"inserts only, into a publication of all", `CREATE TABLE e (id int NOT NULL, v int)`, "e(capture=wal;key=id;actions=insert)",
			[]string{`ADD PRIMARY KEY ("id");`, `REPLICA IDENTITY FULL;`},
			2,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			conn := ready(t, tt.create)
			dropTestRole(t, conn)
			script, err := setupWAL(t, conn, tt.spec)
			if err == nil {
				t.Error("no error says that there is nothing to run")
			}
			mustBeComments(t, script)
			var ways []string
			for line := range strings.Lines(script) {
				if strings.Count(line, "ALTER TABLE") > 1 {
					t.Errorf("two alternatives in %q", line)
				}
				if way := strings.TrimSpace(strings.TrimPrefix(line, "--")); strings.HasPrefix(way, "ALTER TABLE") && !strings.Contains(way, "…") {
					ways = append(ways, way)
				}
			}
			entry := mustParse(t, tt.spec).List[0].String()
			for _, want := range append(tt.wants, "bridge sql '"+entry+"'") {
				if !strings.Contains(script, want) {
					t.Errorf("%q is not in\n%s", want, script)
				}
			}
			if tt.ways > 0 && len(ways) != tt.ways {
				t.Errorf("%d statements, want %d, in\n%s", len(ways), tt.ways, script)
			}
			if _, err := conn.Exec(ctx, script+"; INSERT INTO e VALUES (1, 1); UPDATE e SET v = 2; DELETE FROM e"); err != nil {
				t.Errorf("after the script: %v", err)
			}
			if tt.ways == 0 {
				runScript(t, conn, "CREATE ROLE "+pgx.Identifier{"lockstep_test_" + conn.Config().Database}.Sanitize()+";")
			}
			for _, way := range ways[:min(tt.ways, len(ways))] {
				_, err := conn.Exec(ctx, "DROP TABLE e; DROP PUBLICATION IF EXISTS "+pgx.Identifier{"p_" + conn.Config().Database}.Sanitize()+"; "+tt.create+"; "+way)
				if err != nil {
					t.Fatalf("%v in %s", err, way)
				}
				again, err := setupWAL(t, conn, tt.spec)
				if err != nil {
					t.Fatalf("after %s: %v", way, err)
				}
				runScript(t, conn, again)
				runScript(t, conn, again)
				if got := query(t, conn, "SELECT tablename::text FROM pg_publication_tables"); got != "e" {
					t.Errorf("after %s, %q is published", way, got)
				}
				if _, err := conn.Exec(ctx, "INSERT INTO e VALUES (1, 1); UPDATE e SET v = 2; DELETE FROM e"); err != nil {
					t.Errorf("after %s: %v", way, err)
				}
			}
		})
	}
}

// A publication of inserts only needs no replica identity.
func TestSetupSQL_WALInsertsOfAPublicationOfInserts(t *testing.T) {
	conn := ready(t, `CREATE TABLE e (id int NOT NULL, v int)`)
	dropTestRole(t, conn)
	runScript(t, conn, "CREATE PUBLICATION "+pgx.Identifier{"p_" + conn.Config().Database}.Sanitize()+" WITH (publish = 'insert');")
	script, err := setupWAL(t, conn, "e(capture=wal;key=id;actions=insert)")
	if err != nil {
		t.Fatal(err)
	}
	runScript(t, conn, script)
	if _, err := conn.Exec(context.Background(), "INSERT INTO e VALUES (1, 1); UPDATE e SET v = 2; DELETE FROM e"); err != nil {
		t.Error(err)
	}
}

// The publication comes first, then the role, with what its right to read the WAL
// means. The script does not make the slot.
func TestSetupSQL_WAL(t *testing.T) {
	conn := ready(t, `CREATE TABLE e (id int UNIQUE NOT NULL, v int)`)
	dropTestRole(t, conn)
	script, err := setupWAL(t, conn, "e(capture=wal)")
	if err != nil {
		t.Fatal(err)
	}
	at := -1
	for _, part := range []string{
		"needs CREATE on the database", "superuser", "REPLICA IDENTITY USING INDEX", "CREATE PUBLICATION", "ADD TABLE", "COMMIT;",
		"The bridge makes its slot when it first starts", "pg_basebackup", "CREATE ROLE", "GRANT SELECT", " REPLICATION;", "BRIDGE_TABLES='e(capture=wal)'",
	} {
		i := strings.Index(script[at+1:], part)
		if i < 0 {
			t.Fatalf("%q is not there, or too early, in\n%s", part, script)
		}
		at += 1 + i
	}
	for _, bad := range []string{"pg_create_logical_replication_slot", "nothing else"} {
		if strings.Contains(script, bad) {
			t.Errorf("%q is in\n%s", bad, script)
		}
	}
	runScript(t, conn, script)
	runScript(t, conn, script)
	if _, err := conn.Exec(context.Background(), "INSERT INTO e VALUES (1, 1); UPDATE e SET v = 2; DELETE FROM e"); err != nil {
		t.Error(err)
	}
	if got := query(t, conn, "SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = 'p_"+conn.Config().Database+"'"); got != "0" {
		t.Error("the script made a slot")
	}
}

// If the identity can't be set, the table does not get into the publication, even
// if errors do not stop the script.
func TestSetupSQL_WALNoPublicationAfterAnError(t *testing.T) {
	conn := ready(t, `CREATE TABLE e (id int UNIQUE NOT NULL, v int)`)
	dropTestRole(t, conn)
	script, err := setupWAL(t, conn, "e(capture=wal)")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(context.Background(), "ALTER TABLE e DROP CONSTRAINT e_id_key"); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, statement := range statements(script) {
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			failed++
		}
	}
	if got := query(t, conn, "SELECT tablename::text FROM pg_publication_tables"); failed == 0 || got != "" {
		t.Errorf("%d statements failed, and %q is published", failed, got)
	}
	if _, err := conn.Exec(context.Background(), "INSERT INTO e VALUES (1, 1); UPDATE e SET v = 2; DELETE FROM e"); err != nil {
		t.Error(err)
	}
}

// bridge sql refuses what bridge check refuses: a slot under the bridge's name that
// is another's, and a key that the publication does not have.
func TestSetupSQL_WALRefusesWhatCheckRefuses(t *testing.T) {
	conn := ready(t, genKey)
	name := "p_" + conn.Config().Database
	if _, err := conn.Exec(t.Context(), "CREATE PUBLICATION "+name+" WITH (publish_via_partition_root = true)"); err != nil {
		t.Fatal(err)
	}
	script, err := setupWAL(t, conn, "t(capture=wal)")
	if err == nil || !strings.Contains(script, "generated") {
		t.Errorf("%v, and this is printed for a generated key:\n%s", err, script)
	}
	mustBeComments(t, script)
	if _, _, err := relation.LoadFor(t.Context(), conn, mustParse(t, "t(capture=wal)").List[0], name); err == nil || !strings.Contains(err.Error(), "generated") {
		t.Errorf("the key is generated, and LoadFor says %v", err)
	}
	for _, sql := range []string{"CREATE TABLE e (id int PRIMARY KEY)", "SELECT pg_create_logical_replication_slot('" + name + "', 'test_decoding')"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	script, err = setupWAL(t, conn, "e(capture=wal)")
	if err == nil || !strings.Contains(script, "the replication slot "+name+" is not the bridge's (logical test_decoding") {
		t.Errorf("%v, and this is printed beside another's slot:\n%s", err, script)
	}
	mustBeComments(t, script)
}

// Documents without a column that the table has are a surprise, so the script says so. It says what to do where
// wal_level is too low, too.
func TestSetupSQL_WALSaysWhatIsNotSent(t *testing.T) {
	conn := ready(t, `CREATE TABLE g (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED); CREATE TABLE plain (id int PRIMARY KEY)`)
	const want = "because it is generated: twice."
	var version int
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if script := setup(t, conn, "g(capture=wal)"); strings.Contains(script, want) != (version < 180000) || !strings.Contains(script, "HINT = 'Run ALTER SYSTEM SET wal_level = logical") {
		t.Errorf("want %q before Postgres 18, and what to do about wal_level, in\n%s", want, script)
	}
	if script := setup(t, conn, "plain(capture=wal)"); strings.Contains(script, "is generated") {
		t.Errorf("speaks of columns that are not there:\n%s", script)
	}
}
