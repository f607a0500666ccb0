package e2e_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Settings of the database that change how values are printed, and encodings other than UTF8, change nothing in the
// stream. A value that is not UTF-8 stops only the relation that has it.
func TestWAL_Encodings_I12(t *testing.T) {
	needServers(t)
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			c, broker := testenv.NewCluster(t), testenv.NATS(t)
			admin := testenv.Conn(t, c.Database())
			name := "odd_" + strings.ToLower(encoding)
			run(t, admin, "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING '"+encoding+"' LC_COLLATE 'C' LC_CTYPE 'C'")
			db := c.URL(name)
			for _, set := range []string{
				"DateStyle = 'German'", "IntervalStyle = 'sql_standard'", "bytea_output = 'escape'", "extra_float_digits = -5", "TimeZone = 'Asia/Kolkata'", "xmlbinary = hex", "search_path = 'pg_temp'",
				"statement_timeout = '500ms'", "idle_in_transaction_session_timeout = '500ms'", "default_transaction_isolation = serializable",
			} {
				run(t, admin, "ALTER DATABASE "+name+" SET "+set)
			}
			conn := connect(t, db)
			// The test is about the bridge's sessions, not about this one.
			run(t, conn, "SET statement_timeout = 0", "SET idle_in_transaction_session_timeout = 0")
			if encoding != "SQL_ASCII" { // SQL_ASCII has no other client encoding
				run(t, conn, "SET client_encoding = UTF8")
			}
			run(t, conn, "SET search_path = public", "CREATE TABLE public.t (id text PRIMARY KEY, a timestamptz, b interval, c bytea, f float8, e regclass)", "CREATE TABLE public.u (id int PRIMARY KEY)",
				"INSERT INTO public.t VALUES ('x', now(), '1 year 2 days 3 hours', '\\x00ff', 0.1::float8/3, 'public.t'), ('z', now(), '-1 day', '\\x', 1e-300, 'pg_class')", "SET search_path = pg_temp")
			b := startWAL(t, db, broker.URL(), "t(capture=wal),u(capture=wal)")
			f, g := followAll(t, broker.URL(), bare("t")), followAll(t, broker.URL(), bare("u"))
			f.converge(conn)
			run(t, conn, "UPDATE public.t SET f = f / 3 WHERE id = 'x'", "DELETE FROM public.t WHERE id <> 'x'", "INSERT INTO public.t VALUES ('y', now(), '1 year 2 days 3 hours', '\\x00ff', 0.1::float8/3, 'public.t')")
			f.converge(conn)
			run(t, conn, "INSERT INTO public.t VALUES (chr(233), now(), '-1 day', '\\x', 1e-300, 'pg_class')", "INSERT INTO public.u VALUES (1)")
			if encoding == "LATIN1" {
				f.converge(conn)
			} else {
				b.awaitReason("t", "id is not UTF-8")
			}
			testenv.Eventually(t, long, func() error { return g.differs(conn) })
			g.converge(conn)
		})
	}
}

// Settings make all transactions read-only, and end connections that are idle. The bridge overrides them where it must
// write, and goes on where Postgres ends its connections.
func TestWAL_ReadOnlyRole_I1(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t), testenv.NATS(t)
	db := c.Database()
	newBare(t, db, "t", 10)
	conn := connect(t, db)
	run(t, conn, "CREATE PUBLICATION "+slotOf(db)+" FOR TABLE t")
	for _, set := range []string{"default_transaction_read_only = on", "default_transaction_isolation = serializable", "default_transaction_deferrable = on", "wal_sender_timeout = '3s'", "idle_session_timeout = '1s'"} {
		run(t, conn, "ALTER DATABASE "+databaseOf(db)+" SET "+set)
	}
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "UPDATE t SET v = 'x'", "DELETE FROM t WHERE id = 3")
	f.converge(conn)
	from := f.last()
	testenv.Eventually(t, long, func() error { // at most three a second, so this takes longer than wal_sender_timeout
		if n := len(f.messages(stream.KindHeartbeat, from+1)); n < 11 {
			return fmt.Errorf("%d heartbeats, want 11", n)
		}
		return nil
	})
	run(t, conn, "UPDATE t SET v = 'y'", "DELETE FROM t WHERE id = 4")
	f.converge(conn)
}

// The scripts of bridge sql -role, which the owner runs, are all that a role with few rights needs. Before them bridge
// check says what is missing, and after them it finds no problem.
func TestWAL_LeastRights(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t, "fsync=on"), testenv.NATS(t)
	db := c.Database()
	newBare(t, db, "t", 10)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE u (id int UNIQUE NOT NULL, v text)", "INSERT INTO u VALUES (1, 'a')", "CREATE ROLE reader LOGIN PASSWORD 'sesame-3f9c'",
		"GRANT SELECT ON t, u TO reader", "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'", "SELECT pg_reload_conf()")
	as, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword("reader", "sesame-3f9c")
	env := []string{"DATABASE_URL=" + as.String(), "NATS_URL=" + broker.URL(), "BRIDGE_TABLES=t(capture=wal),u(capture=wal)", "BRIDGE_NAME=" + slotOf(db)}
	code, out, _ := command(t, env, "check")
	for _, part := range []string{"ALTER ROLE", "REPLICATION", "may not create it", "REPLICA IDENTITY USING INDEX"} {
		if code != 2 || !strings.Contains(out, part) {
			t.Errorf("bridge check: exit status %d, and no %q in\n%s", code, part, out)
		}
	}
	for _, name := range []string{"t(capture=wal)", "u(capture=wal)"} {
		code, sql, stderr := command(t, append(env, "DATABASE_URL="+db), "sql", "-role", "reader", name)
		if code != 0 {
			t.Fatalf("bridge sql: %s", stderr)
		}
		psql(t, db, sql)
		psql(t, db, sql) // it may run again
	}
	if code, out, stderr := command(t, env, "check"); code != 0 || !strings.Contains(out, "0 warnings") {
		t.Errorf("bridge check: exit status %d\n%s%s", code, out, stderr)
	}
	startBridge(t, as.String(), broker.URL(), "t(capture=wal),u(capture=wal)", env[3])
	nc := testenv.NATSConn(t, broker.URL())
	f, g := follow(t, nc, bare("t")), follow(t, nc, bare("u"))
	run(t, conn, "DELETE FROM t WHERE id = 3", "UPDATE u SET v = 'b'", "UPDATE u SET id = 2")
	f.converge(conn)
	g.converge(conn)
}
