package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// If settings are bad, one message names each of them, without a password, and the exit status is 2. The same status ends
// a command that is unknown or has wrong arguments.
func TestBridge_BadConfigurationIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	code, stdout, stderr := command(t, []string{
		"DATABASE_URL=postgres://app:" + secret + "@host:port/db", "NATS_URL=http://nats:" + secret + "@127.0.0.1", "BRIDGE_TABLES=a(b", "LOG_LEVEL=loud",
		"BRIDGE_POLL_INTERVAL=10", "BRIDGE_HEARTBEAT_INTERVAL=2h", "BRIDGE_LISTEN=nowhere", "BRIDGE_STREAM_PREFIX=A.b", "BRIDGE_STREAM_REPLICAS=3x",
		"BRIDGE_RECONCILE_INTERVAL=0.5s", "BRIDGE_SLOT_MAX_LAG=10",
	})
	if code != 2 || stdout != "" {
		t.Errorf("exit status %d, want 2; stdout %q", code, stdout)
	}
	for _, name := range []string{
		"DATABASE_URL", "NATS_URL", "BRIDGE_TABLES", "LOG_LEVEL", "BRIDGE_POLL_INTERVAL", "BRIDGE_HEARTBEAT_INTERVAL", "BRIDGE_LISTEN",
		"BRIDGE_STREAM_PREFIX", "BRIDGE_STREAM_REPLICAS", "BRIDGE_RECONCILE_INTERVAL", "BRIDGE_SLOT_MAX_LAG",
	} {
		if !strings.Contains(stderr, name+":") {
			t.Errorf("the message does not name %s", name)
		}
	}
	if strings.Contains(stderr, secret) {
		t.Error("the message contains a password")
	}
	if t.Failed() {
		t.Log(stderr)
	}
	for _, c := range []struct {
		env  []string
		args []string
	}{
		{[]string{"DATABASE_URL=", "BRIDGE_TABLES="}, nil},
		{nil, []string{"frobnicate"}},
		{nil, []string{"tail"}},
		{nil, []string{"reconcile"}},
		{nil, []string{"sql", "a,b"}},
		{[]string{"DATABASE_URL=postgres://localhost/a", "BRIDGE_NAME=A-b"}, []string{"sql", "a(capture=wal)"}},
	} {
		if code, _, stderr := command(t, c.env, c.args...); code != 2 || stderr == "" {
			t.Errorf("%q %q: exit status %d, want 2: %s", c.env, c.args, code, stderr)
		}
	}
}

// Postgres keeps at least a segment of WAL (16 MiB). With a lower BRIDGE_SLOT_MAX_LAG, the bridge would drop its slot
// again and again. So it refuses such a value, and says what it accepts.
func TestBridge_SlotMaxLagIsASegmentOrMore(t *testing.T) {
	t.Parallel()
	for value, refused := range map[string]bool{"10": true, "16777215": true, "15MiB": true, "16777216": false, "16MiB": false, "0": false, "10GiB": false} {
		_, _, stderr := command(t, []string{"DATABASE_URL=", "BRIDGE_TABLES=t", "BRIDGE_SLOT_MAX_LAG=" + value})
		if got := strings.Contains(stderr, "BRIDGE_SLOT_MAX_LAG: "); got != refused {
			t.Errorf("%s: refused is %t, want %t: %s", value, got, refused, stderr)
		}
		for _, part := range []string{`"` + value + `"`, "16MiB", "without a unit it is bytes", "0 for no limit"} {
			if refused && !strings.Contains(stderr, part) {
				t.Errorf("%s: no %q in %s", value, part, stderr)
			}
		}
	}
}

// BRIDGE_TABLES=* takes every table that qualifies, and leaves out those that -name takes out. The log says why a table
// does not qualify.
func TestBridge_StarTakesWhatQualifies(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, stampSQL, "CREATE TABLE bare (id int PRIMARY KEY)")
	for i := range 6 {
		run(t, conn, tableSQL(fmt.Sprintf("t%d", i), 1200)...)
	}
	b := startBridge(t, db, broker.URL(), "*,-t5")
	nc := testenv.NATSConn(t, broker.URL())
	for i := range 5 {
		follow(t, nc, named(fmt.Sprintf("t%d", i))).converge(conn)
	}
	b.awaitReady()
	r, err := b.readyz()
	if err != nil || len(r.Relations) != 5 {
		t.Errorf("got %+v, %v; want 5 relations", r, err)
	}
	b.logged("bare", "no column txid")
}

// bridge sql of a table that can't be in a publication yet prints only comments, so psql runs nothing. stderr and the exit
// status say so, too: in a pipe to psql, stdout is not seen.
func TestBridge_SQLOfAnUnfitTable(t *testing.T) {
	needServers(t)
	db := testenv.Postgres(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE events (v text)")
	code, sql, stderr := command(t, []string{"DATABASE_URL=" + db, "BRIDGE_NAME=" + slotOf(db)}, "sql", "events(capture=wal)")
	if code != 1 || !strings.Contains(stderr, "events: it has no primary key") || !strings.Contains(sql, "ADD PRIMARY KEY") {
		t.Errorf("exit status %d, stderr %q of\n%s", code, stderr, sql)
	}
	psql(t, db, sql)
	if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication"); n != 0 {
		t.Errorf("the script has created %d publications, want none", n)
	}
}

// bridge sql prints one script for several relations, and for every table of schema public. A table that can't be prepared
// keeps no other from it. The bridge captures what the script's last line names.
func TestSQL_SeveralRelationsAtOnce(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE a (id int PRIMARY KEY, v text)", `CREATE TABLE "B" (id int PRIMARY KEY, v text)`, "CREATE TABLE nokey (v text)",
		"CREATE TABLE w1 (id int PRIMARY KEY, v text)", "CREATE TABLE w2 (id int PRIMARY KEY, v text)")
	env := []string{"DATABASE_URL=" + db, "BRIDGE_NAME=" + slotOf(db)}
	var tables []string
	for _, c := range []struct {
		args         []string
		code         int
		tables, says string
	}{
		{[]string{"*,-w1,-w2"}, 1, `"B_lockstep"(key=id),a_lockstep(key=id)`, "nokey: it has no primary key"},
		{[]string{"w1(capture=wal)", "w2(capture=wal)", "gone"}, 1, "w1(capture=wal),w2(capture=wal)", "gone: there is no such table or view"},
	} {
		code, sql, stderr := command(t, env, append([]string{"sql"}, c.args...)...)
		_, entries, _ := strings.Cut(sql, "BRIDGE_TABLES=")
		entries = strings.Trim(strings.TrimSpace(entries), "'")
		if code != c.code || entries != c.tables || strings.Count(sql, "BRIDGE_TABLES=") != 1 || !strings.Contains(stderr, c.says) {
			t.Errorf("bridge sql %q: exit status %d, BRIDGE_TABLES %s, %s; want %+v\n%s", c.args, code, entries, stderr, c, sql)
		}
		psql(t, db, sql)
		psql(t, db, sql) // it may run again
		tables = append(tables, entries)
	}
	startWAL(t, db, broker.URL(), strings.Join(tables, ","))
	nc := testenv.NATSConn(t, broker.URL())
	run(t, conn, "INSERT INTO a VALUES (1, 'x')", `INSERT INTO "B" VALUES (1, 'x'), (2, 'y')`, `DELETE FROM "B" WHERE id = 2`,
		"INSERT INTO w1 VALUES (1, 'x')", "INSERT INTO w2 VALUES (1, 'x'), (2, 'y')", "DELETE FROM w2 WHERE id = 2")
	for _, rel := range []table{
		{schema: "public", name: "a_lockstep", txid: "txid", deleted: "deleted"},
		{schema: "public", name: "B_lockstep", txid: "txid", deleted: "deleted"},
		bare("w1"), bare("w2"),
	} {
		follow(t, nc, rel).converge(conn)
	}
}

// Options of * are those of each table that it stands for.
func TestBridge_StarWithOptions_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE a (id int PRIMARY KEY, v text)", "CREATE TABLE b (id int PRIMARY KEY, v text)", "CREATE TABLE nokey (v text)",
		"INSERT INTO a VALUES (1, 'x')")
	b := startWAL(t, db, broker.URL(), "*(capture=wal)")
	nc := testenv.NATSConn(t, broker.URL())
	fa, fb := follow(t, nc, bare("a")), follow(t, nc, bare("b"))
	fa.converge(conn)
	run(t, conn, "DELETE FROM a", "INSERT INTO b VALUES (1, 'x')")
	fa.converge(conn)
	fb.converge(conn)
	b.logged("nokey", "relation left out of *", "it has no primary key")
}

// --help names settings, commands and examples. Each command has a help of its own, by --help and by bridge help.
// --version prints the version.
func TestBridge_HelpAndVersion(t *testing.T) {
	t.Parallel()
	code, help, _ := command(t, nil, "--help")
	for _, word := range []string{
		"DATABASE_URL", "NATS_URL", "BRIDGE_TABLES", "BRIDGE_POLL_INTERVAL", "LOG_LEVEL", "100ms", "bridge sql", "bridge check", "Examples",
		"bridge sql orders | psql -v ON_ERROR_STOP=1", "bridge sql 'orders(capture=wal)' | psql -v ON_ERROR_STOP=1",
	} {
		if code != 0 || !strings.Contains(help, word) {
			t.Errorf("--help: exit status %d, and %s is missing", code, word)
		}
	}
	for _, c := range []string{"check", "sql", "tail", "reconcile", "adopt", "remove", "healthcheck"} {
		if !strings.Contains(help, "\n  bridge "+c) {
			t.Errorf("--help: %s is missing", c)
		}
		code, own, _ := command(t, nil, c, "--help")
		_, same, _ := command(t, nil, "help", c)
		if code != 0 || !strings.HasPrefix(own, "Usage: bridge "+c) || !strings.Contains(own, "Settings:") || same != own {
			t.Errorf("%s --help: exit status %d, %q", c, code, own)
		}
	}
	if code, _, stderr := command(t, nil, "verify", "--help"); code != 2 || !strings.Contains(stderr, `no command "verify"`) {
		t.Errorf("help of an unknown command: exit status %d, %q", code, stderr)
	}
	if code, version, _ := command(t, nil, "--version"); code != 0 || !strings.HasPrefix(version, "bridge ") {
		t.Errorf("--version: exit status %d, %q", code, version)
	}
}

// The script of bridge sql prepares a bare table, and may run twice. With the BRIDGE_TABLES that it prints, the bridge
// captures the table's changes, deletes too. bridge tail prints the rows. The log warns of a misspelt variable.
func TestBridge_SQLPreparesATable_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, `CREATE TABLE "Bare" (id int PRIMARY KEY, v text)`, `INSERT INTO "Bare" SELECT g, 'v' FROM generate_series(1, 10) g`)
	code, sql, stderr := command(t, []string{"DATABASE_URL=" + db}, "sql", `"Bare"`)
	if code != 0 {
		t.Fatalf("bridge sql: exit status %d\n%s", code, stderr)
	}
	psql(t, db, sql)
	psql(t, db, sql) // it may run again
	_, tables, ok := strings.Cut(sql, "BRIDGE_TABLES=")
	if !ok {
		t.Fatalf("no BRIDGE_TABLES in\n%s", sql)
	}
	tables = strings.Trim(strings.TrimSpace(strings.SplitN(tables, "\n", 2)[0]), "'")
	b := startBridge(t, db, broker.URL(), tables, "BRIDGE_POLL_INTERVALL=1s")
	b.logged(`"level":"warn"`, "BRIDGE_POLL_INTERVALL", "BRIDGE_POLL_INTERVAL")
	rel := table{schema: "public", name: "Bare_lockstep", txid: "txid", deleted: "deleted"}
	f := follow(t, testenv.NATSConn(t, broker.URL()), rel)
	f.converge(conn)
	run(t, conn, `DELETE FROM "Bare" WHERE id = 3`, `UPDATE "Bare" SET id = 100 WHERE id = 4`, `INSERT INTO "Bare" VALUES (11, 'new')`)
	f.converge(conn)
	run(t, conn, `TRUNCATE "Bare"`)
	f.converge(conn)
	if got := f.state(); len(got) != 0 {
		t.Errorf("after TRUNCATE: %q", got)
	}
	b.awaitReady()

	if _, _, stderr := command(t, []string{"NATS_URL=" + broker.URL()}, "reconcile", `"Bare"`); !strings.Contains(stderr, `no stream for "Bare", but there is one for its feed view: name "Bare_lockstep"`) {
		t.Errorf("bridge reconcile of the table says %s", stderr)
	}
	tail := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), []string{"NATS_URL=" + broker.URL(), "DATABASE_URL=" + db}, "tail", `"Bare_lockstep"`)
	run(t, conn, `INSERT INTO "Bare" VALUES (12, 'for the tail')`)
	testenv.Eventually(t, long, func() error {
		if out := tail.Stdout(); !strings.Contains(out, "for the tail") || !strings.Contains(out, `"type":"heartbeat"`) {
			return fmt.Errorf("bridge tail printed %q", out)
		}
		return nil
	})
	if strings.Contains(b.Stderr()+tail.Stderr(), "sesame") {
		t.Error("the log contains the password")
	}
}

// SIGTERM ends a bridge within 5 s, also in the middle of a load, and also if Postgres or the broker does not answer.
func TestBridge_StopsWithin5s(t *testing.T) {
	needServers(t)
	db, broker, conn := bigTable(t, big)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	testenv.Eventually(t, long, func() error {
		if f.end() < big/8 {
			return errors.New("the load has not begun")
		}
		return nil
	})
	b.stop()
	if n := len(f.messages(2, 0)); n > 0 {
		t.Error("the load had ended: the test shows nothing")
	}
	begun := time.Now()
	b.start()
	b.awaitReady()
	t.Logf("live again after %s", time.Since(begun))
	f.converge(conn)
	b.stop()
	for _, env := range []string{"NATS_URL=nats://127.0.0.1:9", "DATABASE_URL=postgres://127.0.0.1:9/db?sslmode=disable"} {
		b := startBridge(t, db, broker.URL(), "t", env)
		b.awaitReadyzAnswers()
		b.stop()
	}
}

// A relation that is about to move still has its old options in BRIDGE_TABLES. bridge sql goes by the options of its
// argument, also if they are the defaults.
func TestSQL_OptionsOfTheArgument(t *testing.T) {
	needServers(t)
	db := testenv.Postgres(t)
	psql(t, db, "CREATE TABLE moves (id int PRIMARY KEY)")
	for _, c := range []struct{ arg, want string }{
		{"moves", "-- BRIDGE_TABLES='moves(capture=wal)'\n"},
		{"moves(capture=poll)", "-- BRIDGE_TABLES=moves\n"},
	} {
		code, sql, stderr := command(t, []string{"DATABASE_URL=" + db, "BRIDGE_TABLES=moves(capture=wal)"}, "sql", "-no-tombstones", c.arg)
		if code != 0 || !strings.HasSuffix(sql, c.want) {
			t.Errorf("bridge sql %s: exit status %d, %s\n%s\nwant it to end with %s", c.arg, code, stderr, sql, c.want)
		}
	}
}

// bridge tail goes on where it was when the broker was killed and came back. When the stream was lost, it says so and prints
// the new one from its start.
func TestTail_OutlivesTheBroker_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newTable(t, db, "t", 3)
	conn := connect(t, db)
	startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	tail := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), []string{"NATS_URL=" + broker.URL()}, "tail", "t")
	printed := func(text string, times int) {
		t.Helper()
		testenv.Eventually(t, long, func() error {
			if n := strings.Count(tail.Stdout(), text); n != times {
				return fmt.Errorf("%q was printed %d times, want %d; stderr: %s", text, n, times, tail.Stderr())
			}
			return nil
		})
	}
	printed("row 3", 1)
	broker.Kill()
	broker.Start()
	run(t, conn, "INSERT INTO t VALUES (4, 'row 4')")
	printed("row 4", 1)
	printed("row 3", 1)
	if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
		t.Fatal(err)
	}
	printed("row 3", 2)
	printed("row 4", 2)
	if said := tail.Stderr(); !strings.Contains(said, "another incarnation began; what follows is read from its start") {
		t.Errorf("stderr says %q", said)
	}
}
