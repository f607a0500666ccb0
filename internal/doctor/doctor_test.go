package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/doctor"
	"bridge/internal/relation"
	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const good = `
CREATE TABLE users (id bigint PRIMARY KEY, txid bigint NOT NULL);
CREATE INDEX ON users (txid);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.txid := txid_current(); RETURN NEW; END$$;
CREATE TRIGGER s BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION stamp();
ALTER TABLE users ENABLE ALWAYS TRIGGER s;
INSERT INTO users SELECT generate_series(1, 1000);
ANALYZE users`

func servers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
}

func specs(t *testing.T, s string) relation.Specs {
	t.Helper()
	parsed, err := relation.ParseSpecs(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func connect(url string) func(context.Context) (jetstream.JetStream, error) {
	return func(context.Context) (jetstream.JetStream, error) {
		nc, err := nats.Connect(url)
		if err != nil {
			return nil, err
		}
		return jetstream.New(nc)
	}
}

func text(t *testing.T, r doctor.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func contains(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%q is not in\n%s", w, got)
		}
	}
}

func TestRun_AllWell(t *testing.T) {
	servers(t)
	url := testenv.NewCluster(t, "fsync=on").Database()
	testenv.Exec(t, url, good)
	s := testenv.NATS(t)
	r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "users"), Connect: connect(s.URL()), Prefix: "lockstep", Replicas: 1})
	if !r.OK() || len(r.Problems) != 0 {
		t.Error(text(t, r))
	}
	contains(t, text(t, r), "primary, database db1", "nats-server 2.", "max_payload 1 MiB, memory for rows about 250 KiB to 1000 KiB",
		"ok    users → LOCKSTEP-public-users, history latest, key id, about 1000 rows", "ok: 0 errors, 0 warnings")
	var b bytes.Buffer
	if err := r.JSON(&b); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OK        bool
		Problems  []doctor.Problem
		Relations []doctor.Relation
		Postgres  doctor.Postgres
	}
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil || !doc.OK || doc.Problems == nil || len(doc.Relations) != 1 || doc.Postgres.SystemID == "" {
		t.Errorf("got %v of\n%s", err, b.String())
	}
}

// With fsync off nothing is durable, so the promise about positions does not hold
// (issue 14, number 11).
func TestRun_FsyncIsOff(t *testing.T) {
	servers(t)
	url := testenv.NewCluster(t, "fsync=off").Database()
	testenv.Exec(t, url, good)
	s := testenv.NATS(t)
	r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "users"), Connect: connect(s.URL()), Prefix: "lockstep", Replicas: 1})
	contains(t, text(t, r), "WARNING fsync is off: a crash of its machine may destroy the database.", "ALTER SYSTEM SET fsync = on", "ok: 0 errors, 1 warning")
}

// The largest row is that of max_payload, of the file store, or of the stream's own limit.
func TestRun_LargestRow(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, good)
	s := testenv.NATS(t, func(o *server.Options) { o.MaxPayload = 64 << 20 })
	js := testenv.JetStream(t, s.URL())
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "LOCKSTEP-public-users", MaxMsgSize: 4096}); err != nil {
		t.Fatal(err)
	}
	r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "users"), Connect: connect(s.URL()), Prefix: "lockstep", Replicas: 1})
	contains(t, text(t, r), "max_payload 64 MiB, rows up to 32 MiB, memory for rows",
		"WARNING users: stream LOCKSTEP-public-users has max_msg_size 4 KiB: a larger row is replaced by an oversize mark")
}

// A problem in one part does not hide those in others.
func TestRun_EverythingAtOnce(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, good, `DROP INDEX users_txid_idx`, `CREATE TABLE bare (id int)`,
		`ALTER TABLE users DISABLE TRIGGER USER`, `INSERT INTO users VALUES (5000, 1::bigint << 60)`)
	s := testenv.NATS(t, func(o *server.Options) { o.JetStream = false; o.MaxPayload = 4096 })
	r := doctor.Run(t.Context(), doctor.Config{
		Invalid:     []doctor.Problem{{Severity: relation.SeverityError, Area: doctor.AreaConfig, Subject: "BRIDGE_LISTEN", What: "is no address", Do: "correct it"}},
		DatabaseURL: url, Specs: specs(t, "usres,bare,users,log(history=log)"), Connect: connect(s.URL()), Prefix: "lockstep", Replicas: 3,
	})
	got := text(t, r)
	if r.OK() {
		t.Error("the report is good")
	}
	contains(t, got, "ERROR BRIDGE_LISTEN: is no address\n  to do: correct it\n",
		"ERROR usres: there is no such table or view\n  to do: create it, or correct the name",
		"ERROR bare: it has no column txid", "ERROR bare: it has no primary key",
		"WARNING users: no index begins with txid: every poll reads the whole table\n  to do: CREATE INDEX CONCURRENTLY",
		"WARNING users: it holds transaction IDs that this cluster has not given out yet", "WARNING users: the trigger that sets txid",
		"ERROR log: there is no such table", "ERROR the server runs without JetStream\n  to do: start it with -js",
		"WARNING max_payload is 4 KiB", "ERROR BRIDGE_STREAM_REPLICAS: 3 replicas are wanted, but the server is in no cluster",
		"bad   usres", "ok    users", "bad: 7 errors, ")
	if strings.Index(got, "WARNING") < strings.LastIndex(got, "ERROR") {
		t.Errorf("errors come first:\n%s", got)
	}
}

// Transaction IDs that this cluster has not given out may be numbers of the
// application. They are overwritten only where a trigger sets the column.
func TestRun_OverwritesNoColumnOfTheApplication(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, good, "CREATE TABLE payments (id int PRIMARY KEY, txid bigint NOT NULL UNIQUE)", "INSERT INTO payments VALUES (1, 1::bigint << 60)",
		`ALTER TABLE users DISABLE TRIGGER USER`, `INSERT INTO users VALUES (5000, 1::bigint << 60)`, `CREATE VIEW v AS SELECT id, txid AS t FROM users`)
	got := text(t, doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "payments,v(key=id;txid=t)"), Prefix: "lockstep"}))
	contains(t, got, "WARNING payments: it holds transaction IDs", "bridge sql 'payments(txid=ls_txid)'",
		"WARNING v: it holds transaction IDs", `UPDATE "public"."users" SET "txid" = txid_current() WHERE "txid" >=`)
	if strings.Contains(got, `UPDATE "public"."payments"`) || strings.Contains(got, `UPDATE "public"."v"`) {
		t.Error(got)
	}
}

// The rows of a view are checked for its key: no constraint promises one.
func TestRun_KeysOfViews(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, good, "CREATE VIEW holes AS SELECT nullif(id, 3) AS k, txid FROM users",
		"CREATE VIEW twice AS SELECT nullif(id, 3) / 2 AS k, txid FROM users WHERE id <> 3", "CREATE VIEW each AS SELECT id AS k, txid FROM users")
	r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "holes(key=k),twice(key=k),each(key=k)"), Prefix: "lockstep"})
	got := text(t, r)
	contains(t, got, `WARNING holes: rows are not published, because a column of their key is NULL`, `r."k" IS NOT DISTINCT FROM NULL`, `WARNING twice: its key "k" is not unique`)
	if strings.Contains(got, " each: ") || strings.Contains(got, "ERROR") {
		t.Error(got)
	}
}

func TestRun_NothingThere(t *testing.T) {
	servers(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().String()
	l.Close()
	r := doctor.Run(t.Context(), doctor.Config{
		DatabaseURL: "postgres://u:secret@" + free + "/app", Specs: specs(t, "*"), Connect: connect("nats://" + free), Prefix: "lockstep",
	})
	got := text(t, r)
	contains(t, got, "ERROR DATABASE_URL: no connection: ", "to do: start Postgres, or correct host and port", "ERROR NATS_URL: nats: no servers available", "to do: start nats-server")
	if len(r.Problems) != 2 || strings.Contains(got, "secret") {
		t.Error(got)
	}
	// What the caller has found is not said again, and memory that nobody could estimate is not 0.
	r = doctor.Run(t.Context(), doctor.Config{
		DatabaseURL: "postgres://u:p@w@" + free + "/app", Specs: specs(t, "*"), Embedded: &doctor.Embedded{Listen: free, Dir: t.TempDir()}, Connect: connect("nats://" + free),
	})
	if got := text(t, r); len(r.Problems) != 0 || strings.Contains(got, "memory") {
		t.Error(got)
	}
	url := testenv.Postgres(t)
	name := testenv.Conn(t, url).Config().Database
	r = doctor.Run(t.Context(), doctor.Config{DatabaseURL: strings.Replace(url, name, "no_such_database", 1)})
	contains(t, text(t, r), "to do: correct the database's name in DATABASE_URL")
	r = doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "*")})
	contains(t, text(t, r), "ERROR BRIDGE_TABLES: no relation of schema public qualifies for *")
}

// A server that runs, and refuses what the connection string asks for, is not one to start.
func TestRun_SettingsThatPostgresRefuses(t *testing.T) {
	servers(t)
	url, _, _ := strings.Cut(testenv.Postgres(t), "?")
	for query, do := range map[string]string{
		"sslmode=require":                "to do: set ssl = on and a certificate in postgresql.conf; or, if nobody can listen on the way to the server, sslmode=disable in DATABASE_URL",
		"sslmode=disable&pgbouncer=true": "to do: remove pgbouncer= from DATABASE_URL: it belongs to another library",
		"sslmode=disable&schema=public":  "to do: remove schema= from DATABASE_URL",
	} {
		r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url + "?" + query})
		got := text(t, r)
		contains(t, got, "ERROR DATABASE_URL: no connection: ", do)
		if strings.Contains(got, "start Postgres") {
			t.Errorf("%s: %s", query, got)
		}
	}
}

func TestRun_Embedded(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refuse := func(context.Context) (jetstream.JetStream, error) { return nil, nats.ErrNoServers }
	r := doctor.Run(t.Context(), doctor.Config{Connect: refuse, Embedded: &doctor.Embedded{Listen: l.Addr().String(), Dir: "/dev/null/nats"}})
	contains(t, text(t, r), "ERROR BRIDGE_NATS_LISTEN: the embedded server can't listen", "ERROR BRIDGE_NATS_DIR: the embedded server can't keep its files")
	r = doctor.Run(t.Context(), doctor.Config{Connect: refuse, Embedded: &doctor.Embedded{Listen: "127.0.0.1:0", Dir: filepath.Join(t.TempDir(), "a", "b")}})
	if len(r.Problems) != 0 {
		t.Error(text(t, r))
	}
}

// Copies of rows must not get into the stream of a relation, whichever bridge fills it. Other streams refuse them.
func TestRun_Topics(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, good, `CREATE TABLE a (LIKE users INCLUDING ALL)`, `CREATE TABLE b (LIKE users INCLUDING ALL)`)
	s := testenv.NATS(t)
	js := testenv.JetStream(t, s.URL())
	other := stream.Config(stream.NewLayout("other", "public", "t", false), stream.Meta{Schema: "public", Table: "t", Incarnation: "i"}, stream.Settings{})
	if _, err := js.CreateStream(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.*"}}); err != nil {
		t.Fatal(err)
	}
	testenv.Exec(t, url, `CREATE TABLE c (LIKE users INCLUDING ALL)`)
	list := specs(t, "users(republish=lockstep.x),a(republish=other.public.t.row.{key}),b(republish=other.public.t),c(republish=events.{table})")
	r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: list, Connect: connect(s.URL()), Prefix: "lockstep", Replicas: 1, Timeout: time.Minute})
	got := text(t, r)
	contains(t, got, "ERROR users: republish=lockstep.x: subjects that begin with lockstep. are not for copies", "ERROR a: republish=other.public.t.row.{key} would use the subjects of stream OTHER-public-t",
		"WARNING c: republish=events.{table}: stream EVENTS listens there, but no stream can store copies")
	if strings.Contains(got, "ERROR b") {
		t.Error(got)
	}
}

// Streams that exist are compared with the configuration.
func TestRun_Streams(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, good, `CREATE TABLE a (LIKE users INCLUDING ALL)`, `CREATE TABLE b (LIKE users INCLUDING ALL)`, `CREATE TABLE c (LIKE users INCLUDING ALL)`)
	src, err := relation.LoadSource(t.Context(), testenv.Conn(t, url))
	if err != nil {
		t.Fatal(err)
	}
	s := testenv.NATS(t)
	js := testenv.JetStream(t, s.URL())
	make := func(table string, source capture.Source, log bool, change func(*jetstream.StreamConfig)) {
		t.Helper()
		cfg := stream.Config(stream.NewLayout("lockstep", "public", table, log), stream.Meta{Schema: "public", Table: table, Incarnation: "i", Source: source, Log: log}, stream.Settings{})
		change(&cfg)
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	same := capture.Source{System: src.SystemID, Timeline: src.Timeline, Database: src.Database}
	other, later := same, same
	other.System++
	later.Timeline++
	make("users", other, false, func(*jetstream.StreamConfig) {})
	make("a", later, false, func(*jetstream.StreamConfig) {})
	make("b", same, true, func(*jetstream.StreamConfig) {})
	make("c", same, false, func(c *jetstream.StreamConfig) { c.Metadata["lockstep-layout"] = "99" })
	r := doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "users,a,b,c"), Connect: connect(s.URL()), Prefix: "lockstep", Replicas: 1, Timeout: time.Minute})
	contains(t, text(t, r), "ERROR users: stream LOCKSTEP-public-users holds rows of database", "bridge adopt users",
		"WARNING a: Postgres is on timeline 1, the stream on 2", "WARNING b: it now has history=latest", "ERROR c: ", `layout "99"`)
}

// Versions that the tests don't run on are refused. Releases with a known fault in
// reading the WAL are named to those who read it.
func TestRun_Versions(t *testing.T) {
	t.Parallel()
	wal, poll := specs(t, "users(capture=wal)"), specs(t, "users")
	for _, c := range []struct {
		version int
		text    string
		specs   relation.Specs
		want    string
	}{
		{140018, "14.18", poll, "error: Postgres 14.18 is too old; upgrade it to 15 or later"},
		{150000, "15.0", wal, ""},
		{150012, "15.12", wal, ""},
		{150013, "15.13", wal, "upgrade it to 15.14 or later"},
		{150013, "15.13", poll, ""},
		{160009, "16.9", wal, "upgrade it to 16.10 or later"},
		{170005, "17.5", wal, "warning: Postgres 17.5 has a fault in reading the WAL"},
		{170006, "17.6", wal, ""},
		{0, "", wal, ""},
	} {
		var got string
		for _, p := range doctor.VersionProblems(c.version, c.text, c.specs) {
			got += fmt.Sprintf("%s: %s; %s", p.Severity, p.What, p.Do)
		}
		if got == "" && c.want != "" || c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.text, got, c.want)
		}
	}
}

// Of a table that Postgres has not counted, the report does not say how many rows
// it has: the planner would guess, and says 1850 or the like of an empty one.
func TestRun_NeverAnalyzed(t *testing.T) {
	servers(t)
	url := testenv.Postgres(t)
	testenv.Exec(t, url, `CREATE TABLE few (id int PRIMARY KEY, txid bigint NOT NULL) WITH (autovacuum_enabled = false); INSERT INTO few VALUES (1, 3)`,
		`CREATE VIEW seen AS SELECT * FROM few`, `CREATE TABLE root (id int PRIMARY KEY, txid bigint NOT NULL) PARTITION BY RANGE (id)`,
		`CREATE TABLE leaf PARTITION OF root DEFAULT WITH (autovacuum_enabled = false)`, `INSERT INTO root VALUES (1, 3)`)
	run := func() string {
		return text(t, doctor.Run(t.Context(), doctor.Config{DatabaseURL: url, Specs: specs(t, "few,seen(key=id),root"), Prefix: "lockstep"}))
	}
	if got := run(); strings.Contains(got, ", about ") {
		t.Errorf("it says how many rows there are:\n%s", got)
	}
	testenv.Exec(t, url, "ANALYZE few", "ANALYZE leaf")
	contains(t, run(), "few → LOCKSTEP-public-few, history latest, key id, about 1 rows", "seen → LOCKSTEP-public-seen, history latest, key id, about 1 rows",
		"root → LOCKSTEP-public-root, history latest, key id, about 1 rows")
}
