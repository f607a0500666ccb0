package doctor_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"bridge/internal/doctor"
	"bridge/internal/testenv"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
)

// without fails the test for each bad text in got.
func without(t *testing.T, got string, bad ...string) {
	t.Helper()
	for _, w := range bad {
		if strings.Contains(got, w) {
			t.Errorf("%q is in\n%s", w, got)
		}
	}
}

// section returns what the report says about one subject.
func section(r doctor.Report, subject string) string {
	var b strings.Builder
	for _, p := range r.Problems {
		if p.Subject == subject {
			fmt.Fprintf(&b, "%s\n  to do: %s\n", p.What, p.Do)
		}
	}
	return b.String()
}

// Each relation gets the advice for what is wrong with it, and no other.
func TestRun_AdviceOfWAL(t *testing.T) {
	servers(t)
	db := testenv.Postgres(t)
	name := testenv.Conn(t, db).Config().Database
	reader := name + "_reader"
	testenv.Exec(t, db, good, `CREATE TABLE secret (id int PRIMARY KEY)`, `CREATE TABLE full_t (a int NOT NULL)`, `ALTER TABLE full_t REPLICA IDENTITY FULL`,
		`CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id)`, `CREATE TABLE part PARTITION OF root DEFAULT`,
		`CREATE SCHEMA hidden`, `CREATE TABLE hidden.h (id int PRIMARY KEY)`,
		`CREATE MATERIALIZED VIEW m AS SELECT 1 AS id`, fmt.Sprintf("CREATE PUBLICATION p_%s WITH (publish_via_partition_root = true)", name),
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'sesame-3f9c'", reader), fmt.Sprintf("GRANT SELECT ON users, full_t, root, part, m TO %s", reader))
	t.Cleanup(func() { testenv.Exec(t, db, "DROP OWNED BY "+reader, "DROP ROLE "+reader) })
	as, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword(reader, "sesame-3f9c")
	r := doctor.Run(t.Context(), doctor.Config{
		DatabaseURL: as.String(), Prefix: "lockstep", Name: "p_" + name,
		Specs: specs(t, "usrs(capture=wal),users(capture=wal),secret(capture=wal),full_t(capture=wal;key=a),root(capture=wal),part(capture=wal),m(capture=wal),hidden.h(capture=wal)"),
	})
	for subject, c := range map[string]struct{ has, not []string }{
		"usrs":     {has: []string{"there is no such table or view", "create it, or correct the name"}, not: []string{"publication", "did you mean"}},
		"users":    {has: []string{"it is not in publication", "bridge sql 'users(capture=wal)'"}},
		"secret":   {has: []string{"may not read it", "GRANT SELECT"}, not: []string{"view"}},
		"full_t":   {has: []string{"bridge sql 'full_t(key=a;capture=wal)'"}},
		"root":     {has: []string{"it is not in publication"}},
		"part":     {has: []string{"it is a partition, and published as root", "name root"}, not: []string{"it is not in publication"}},
		"m":        {has: []string{"its changes are not in the WAL"}, not: []string{"publication", "REFRESH"}},
		"hidden.h": {has: []string{"may not use schema hidden", "it is not in publication"}},
	} {
		got := section(r, subject)
		contains(t, got, c.has...)
		without(t, got, c.not...)
	}
	// The root counts as published also if BRIDGE_TABLES does not name it.
	testenv.Exec(t, db, fmt.Sprintf("ALTER PUBLICATION p_%s ADD TABLE root", name))
	r = doctor.Run(t.Context(), doctor.Config{DatabaseURL: as.String(), Prefix: "lockstep", Name: "p_" + name, Specs: specs(t, "part(capture=wal)")})
	contains(t, section(r, "part"), "it is a partition, and published as root", "name root")
}

// A slot that no relation needs keeps WAL: the report names it.
func TestRun_SlotThatNoRelationNeeds(t *testing.T) {
	servers(t)
	db := testenv.Postgres(t)
	conn := testenv.Conn(t, db)
	slot := "s_" + conn.Config().Database
	testenv.Exec(t, db, good, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", slot))
	dropped := false
	t.Cleanup(func() {
		if !dropped {
			testenv.Exec(t, db, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot))
		}
	})
	check := func(cfg doctor.Config) string {
		t.Helper()
		cfg.DatabaseURL, cfg.Prefix, cfg.Name = db, "lockstep", slot
		return text(t, doctor.Run(t.Context(), cfg))
	}
	drop := fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot)
	got := check(doctor.Config{Specs: specs(t, "users")})
	contains(t, got, "WARNING BRIDGE_NAME: no relation has capture=wal, but Postgres keeps WAL for the replication slot "+slot, drop, "0 errors, 2 warnings")
	without(t, check(doctor.Config{Specs: specs(t, "users(capture=wal)")}), drop)
	// Another bridge reads it, with other relations.
	testenv.Exec(t, db, fmt.Sprintf("CREATE PUBLICATION %s", slot))
	reader, err := pgconn.Connect(t.Context(), db+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	if err := pglogrepl.StartReplication(t.Context(), reader, slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{
		"proto_version '1'", fmt.Sprintf("publication_names '%s'", slot),
	}}); err != nil {
		t.Fatal(err)
	}
	without(t, check(doctor.Config{Specs: specs(t, "users")}), "replication slot")
	if err := reader.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Exec(t, db, fmt.Sprintf("DROP PUBLICATION %s", slot))
	testenv.Eventually(t, testenv.Patience(), func() error {
		if !strings.Contains(check(doctor.Config{Specs: specs(t, "users")}), drop) {
			return errors.New("nobody reads the slot any more, and the report does not name it")
		}
		return nil
	})
	// A slot that the bridge will drop, and what a publication of the user's own
	// leaves out.
	testenv.Exec(t, db, fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE users WITH (publish = 'insert, update')", slot), "SELECT pg_logical_emit_message(true, 'noise', repeat('x', 2000000))")
	got = check(doctor.Config{Specs: specs(t, "users(capture=wal)"), MaxLag: 1 << 20})
	contains(t, got, "more than BRIDGE_SLOT_MAX_LAG (1 MiB)", "raise BRIDGE_SLOT_MAX_LAG", "leaves out its delete, truncate", "SET (publish = 'insert, update, delete, truncate')")
	got = check(doctor.Config{Specs: specs(t, "users(capture=wal;actions=insert+update)"), MaxLag: 1 << 30})
	without(t, got, "BRIDGE_SLOT_MAX_LAG (", "leaves out")
	// With a wrong BRIDGE_TABLES it is not known which relations there are.
	without(t, check(doctor.Config{Invalid: []doctor.Problem{{Subject: "BRIDGE_TABLES"}}}), drop)
	testenv.Exec(t, db, drop)
	dropped = true
	contains(t, check(doctor.Config{Specs: specs(t, "users")}), "0 errors, 1 warning")
}

// A list of columns keeps some of them from the bridge. The advice is then not to
// give the role all of them.
func TestRun_PublicationWithAListOfColumns(t *testing.T) {
	servers(t)
	db := testenv.Postgres(t)
	name := testenv.Conn(t, db).Config().Database
	reader := name + "_reader"
	testenv.Exec(t, db, `CREATE TABLE people (id int PRIMARY KEY, name text, secret text)`, fmt.Sprintf("CREATE PUBLICATION p_%s FOR TABLE people (id, name)", name),
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'sesame-3f9c'", reader), fmt.Sprintf("GRANT SELECT (id, name) ON people TO %s", reader))
	t.Cleanup(func() { testenv.Exec(t, db, "DROP OWNED BY "+reader, "DROP ROLE "+reader) })
	as, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword(reader, "sesame-3f9c")
	cfg := doctor.Config{DatabaseURL: as.String(), Prefix: "lockstep", Name: "p_" + name, Specs: specs(t, "people(capture=wal)")}
	got := section(doctor.Run(t.Context(), cfg), "people")
	contains(t, got, "may not read column secret", "to do: the publication's list of columns leaves out what the role may not read", "poll a view without them")
	// Another column is missing: the publication has it.
	testenv.Exec(t, db, fmt.Sprintf("REVOKE SELECT (name) ON people FROM %s", reader))
	contains(t, section(doctor.Run(t.Context(), cfg), "people"), "may not read column name, secret\n  to do: GRANT SELECT ON")
}
