package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Postgres does not send an out-of-line value that an UPDATE leaves alone. The published row has it all the same, never
// null: after an insert, after another change, after a change of the key, and after a restart of the bridge.
func TestWAL_UnchangedTOAST_I12(t *testing.T) {
	needServers(t)
	for _, identity := range []string{"DEFAULT", "FULL"} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, "CREATE TABLE t (id text PRIMARY KEY, n int, a text, b text)", "ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL",
				"ALTER TABLE t REPLICA IDENTITY "+identity,
				fmt.Sprintf("INSERT INTO t SELECT g, g, "+wide+", "+wide+" FROM generate_series(1, 50) g", 1, 2))
			b := startWAL(t, db, broker.URL(), "t(capture=wal)")
			f := followAll(t, broker.URL(), bare("t"))
			f.converge(conn)
			run(t, conn, "UPDATE t SET n = n + 1",
				"BEGIN", fmt.Sprintf("UPDATE t SET a = "+wide+" WHERE n < 20", 3), "UPDATE t SET n = n + 1", fmt.Sprintf("UPDATE t SET b = "+wide+" WHERE n < 10", 4), "COMMIT",
				"BEGIN", fmt.Sprintf("INSERT INTO t VALUES ('new', 0, "+wide+", NULL)", 5), "UPDATE t SET n = 1 WHERE id = 'new'", "UPDATE t SET id = 'newer' WHERE id = 'new'", "UPDATE t SET n = 2 WHERE id = 'newer'", "COMMIT",
				"UPDATE t SET id = 'x' || id WHERE n % 2 = 0", "UPDATE t SET n = n + 1", "UPDATE t SET b = NULL WHERE n % 3 = 0", "UPDATE t SET n = n + 1")
			f.converge(conn)
			// With many rows in one transaction, the first are not stored yet when the bridge needs them.
			run(t, conn, "BEGIN", fmt.Sprintf("INSERT INTO t SELECT 'many ' || g, 1000, "+wide+", 'b' FROM generate_series(1, 800) g", 7),
				fmt.Sprintf("UPDATE t SET a = "+wide+" WHERE n = 1000", 8), "UPDATE t SET n = 1001 WHERE n = 1000", "COMMIT", "DELETE FROM t WHERE n = 1001 AND id > 'many 2'")
			f.converge(conn)
			b.Kill()
			run(t, conn, "UPDATE t SET n = n + 1", fmt.Sprintf("UPDATE t SET a = "+wide+" WHERE n %% 3 = 0", 6), "UPDATE t SET n = n + 1")
			b.start()
			f.converge(conn)
			// The column was never null, and no version says so.
			if nulls := f.versions(`"a":null`); len(nulls) > 0 {
				t.Errorf("%d versions of rows have null instead of a value that did not change", len(nulls))
			}
		})
	}
}

// Values of every type arrive as to_json gives them. This holds for rows of the first load, and for the same rows from the
// WAL.
func TestWAL_Types_I12(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	columns := []string{
		"numeric", "12345678901234567890.123456789012345678901234567890", "numeric", "NaN", "numeric", "-Infinity", "float8", "1e-300", "float8", "NaN", "float4", "0.1", "bigint", "9223372036854775807",
		"boolean", "t", "timestamptz", "2024-02-29 23:59:59.123456+05:30", "timestamptz", "infinity", "timestamp", "0044-03-15 12:00:00 BC", "date", "2024-02-29", "time", "23:59:59.5", "timetz", "12:00:00.25+02", "interval", "1 year -3 days 04:05:06.7",
		"bytea", `\x00ff10`, "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "inet", "192.168.0.1/24", "json", `{"a":  1, "a": 2}`, "jsonb", `{"b": 1, "a": [1, "x"]}`, "text", "quote \" back \\ line\nbreak \u2028 ümlaut", "char(5)", "ab", "bit varying", "10101",
		"int[]", "{1,NULL,3}", "text[]", `{"a,b","","NULL",NULL,"{}"}`, "int4range", "[1,5)", "tsvector", "'a':1 'b':2", "point", "(1.5,2)", "money", "12.34", "xml", "<a>1</a>", "mood", "so so", "pair", "(1,\"x y\")", "positive", "7", "pair[]", `{"(1,a)","(,b)"}`,
	}
	run(t, conn, "CREATE TYPE mood AS ENUM ('sad', 'so so')", "CREATE TYPE pair AS (a int, b text)", "CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
	def, names, values := []string{"id int PRIMARY KEY", "n int"}, []string{}, []string{}
	for i := 0; i < len(columns); i += 2 {
		name := fmt.Sprintf("c%d", i)
		def, names = append(def, name+" "+columns[i]), append(names, name)
		values = append(values, "'"+strings.ReplaceAll(columns[i+1], "'", "''")+"'")
	}
	run(t, conn, "SET lc_monetary = 'C'", "CREATE TABLE t ("+strings.Join(def, ", ")+")",
		"INSERT INTO t (id, n, "+strings.Join(names, ", ")+") SELECT 1, 0, "+strings.Join(values, ", "), "INSERT INTO t VALUES (2, 0)")
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "INSERT INTO t (id, n, "+strings.Join(names, ", ")+") SELECT 3, 0, "+strings.Join(values, ", "), "INSERT INTO t VALUES (4, 0)", "UPDATE t SET n = 1")
	f.converge(conn)
}

// With history=log the stream has each change with its action, and the row before it. A TRUNCATE is one control row.
func TestWAL_LogHasActionsAndOldRows(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text)", "ALTER TABLE t REPLICA IDENTITY FULL", "INSERT INTO t VALUES (1, 'a')")
	startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	rel := bare("t")
	rel.log = true
	f := followAll(t, broker.URL(), rel)
	f.awaitKept(1)
	run(t, conn, "INSERT INTO t VALUES (2, 'b')", "UPDATE t SET v = 'c' WHERE id = 2", "UPDATE t SET id = 3 WHERE id = 2", "DELETE FROM t WHERE id = 3")
	kept := f.awaitKept(5)
	want := []string{
		`read {"id":1,"v":"a"} `, `insert {"id":2,"v":"b"} `, `update {"id":2,"v":"c"} {"id":2,"v":"b"}`,
		`update {"id":3,"v":"c"} {"id":2,"v":"c"}`, `delete {"id":3} {"id":3,"v":"c"}`,
	}
	for i, r := range kept {
		if got := fmt.Sprintf("%s %s %s", r.Action, r.Data, r.Old); got != want[i] {
			t.Errorf("change %d: got %s, want %s", i, got, want[i])
		}
	}
	run(t, conn, "TRUNCATE t", "INSERT INTO t VALUES (9, 'z')")
	f.awaitKept(6)
	var n int
	if f.set(func() { n = f.truncated }); n != 1 {
		t.Errorf("got %d control rows for one TRUNCATE, want 1", n)
	}
}

// Only the actions named in actions= are published.
func TestWAL_Actions(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a')")
	startWAL(t, db, broker.URL(), "t(capture=wal;actions=insert+update)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (2, 'b')", "UPDATE t SET v = 'c'", "TRUNCATE t", "INSERT INTO t VALUES (3, 'd')")
	f.heartbeat(conn)
	if got, want := strings.Join(f.state(), " "), `{"id":1,"v":"a"} {"id":2,"v":"c"} {"id":3,"v":"d"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Inserts are not published. Then the bridge does not take a value that an UPDATE leaves alone from what it last published
// under the key, because that may have been another row.
func TestWAL_ActionsAndUnchangedTOAST_I12(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, n int, a text)", "ALTER TABLE t ALTER a SET STORAGE EXTERNAL",
		fmt.Sprintf("INSERT INTO t SELECT g, g, "+wide+" FROM generate_series(1, 10) g", 1))
	startWAL(t, db, broker.URL(), "t(capture=wal;actions=update+delete)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "UPDATE t SET n = n + 1")
	f.converge(conn)
	run(t, conn, "BEGIN", "DELETE FROM t WHERE id > 5", "TRUNCATE t", fmt.Sprintf("INSERT INTO t SELECT g, g, "+wide+" FROM generate_series(1, 10) g", 2), "COMMIT", "UPDATE t SET n = n + 1")
	f.converge(conn)
}

// A partitioned table is captured through its root. Rows stay when they move between partitions, and rows of a new
// partition arrive.
func TestWAL_Partitioned_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
		"CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)", "INSERT INTO t SELECT g, 'v' FROM generate_series(0, 19) g")
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "UPDATE t SET v = 'w' WHERE id IN (3, 13)", "DELETE FROM t WHERE id = 4", "UPDATE t SET id = 4 WHERE id = 14",
		"CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30)", "INSERT INTO t VALUES (25, 'new')", "TRUNCATE t", "INSERT INTO t VALUES (1, 'x'), (11, 'y')")
	f.converge(conn)
}

// The rows of a prepared transaction come at COMMIT PREPARED. Those of a subtransaction that was rolled back, or of a
// transaction that aborts, never come. Of two transactions that write one row, the last to write it wins (I4).
func TestWAL_TransactionsOfEveryKind_I1(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t), testenv.NATS(t)
	db := c.Database()
	newBare(t, db, "t", 100)
	conn, other := connect(t, db), connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "BEGIN", "UPDATE t SET v = 'prepared' WHERE id = 1", "PREPARE TRANSACTION 'a'", "UPDATE t SET v = 'later, and first' WHERE id = 2")
	testenv.Eventually(t, long, func() error {
		if !strings.Contains(strings.Join(f.state(), ""), "later, and first") {
			return errors.New("a prepared transaction holds back other rows")
		}
		return nil
	})
	run(t, conn, "COMMIT PREPARED 'a'", "BEGIN", "UPDATE t SET v = 'never'", "PREPARE TRANSACTION 'b'", "ROLLBACK PREPARED 'b'",
		"BEGIN", "UPDATE t SET v = 'kept' WHERE id = 5", "SAVEPOINT s", "UPDATE t SET v = 'gone' WHERE id = 6", "ROLLBACK TO s", "SAVEPOINT s2", "DELETE FROM t WHERE id = 7", "RELEASE s2", "COMMIT",
		"BEGIN", "INSERT INTO t SELECT g, 'aborted' FROM generate_series(1000, 30000) g", "ROLLBACK")
	// The transaction that begins first writes last (I4).
	run(t, conn, "BEGIN", "SELECT txid_current()")
	run(t, other, "UPDATE t SET v = 'first' WHERE id = 9")
	run(t, conn, "UPDATE t SET v = 'second' WHERE id = 9", "COMMIT")
	f.converge(conn)
	if n := len(f.messages(stream.KindRow, 0)); n > 110 {
		t.Errorf("%d rows were sent for 100 rows and 6 changes, want at most 110", n)
	}
	// After a changed column the bridge must read the whole relation. It waits for the prepared transaction, and says so.
	b.Kill()
	run(t, conn, "ALTER TABLE t ADD COLUMN w int DEFAULT 1", "BEGIN", "UPDATE t SET v = 'held' WHERE id = 1", "PREPARE TRANSACTION 'c'")
	b.start()
	b.awaitReason("t", "waits for transaction")
	run(t, conn, "COMMIT PREPARED 'c'")
	f.converge(conn)
}

// The old row in a log has a value that only the server could turn into JSON, and the row is gone. Its text is not JSON
// and would break the document, so the old row of the delete lacks it.
func TestWAL_OldRowOfAServerType_I11(t *testing.T) {
	log := bare("t")
	log.log = true
	s := newSceneOf(t, "t(capture=wal;history=log;max_age=1h)", log, append(odderSQL(),
		"CREATE TABLE t (id int PRIMARY KEY, n int, o odder)", "ALTER TABLE t REPLICA IDENTITY FULL", "INSERT INTO t VALUES (1, 0, 'a')")...)
	s.f.awaitKept(1)
	s.run("DELETE FROM t", "INSERT INTO t VALUES (2, 0, NULL)")
	if kept := s.f.awaitKept(3); !kept[1].Deleted || string(kept[1].Old) != `{"id":1,"n":0}` || string(kept[2].Data) != `{"id":2,"n":0,"o":null}` {
		t.Errorf("want a delete whose old row lacks the column, and then row 2, got %+v", kept[1:])
	}
}

// A row whose txid column is NULL is loaded as others are, and the load ends.
func TestWAL_NullTxid_I10(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;txid=ver)", table{schema: "public", name: "t", txid: "nothing"}, "CREATE TABLE t (id int PRIMARY KEY, ver bigint)", "INSERT INTO t VALUES (1, 1), (2, NULL)")
	s.f.awaitKept(2)
	s.f.heartbeat(s.conn)
}

// TRUNCATE ... CASCADE empties two tables, and the same transaction writes rows before and after it. Both streams follow,
// also over a restart.
func TestWAL_TruncateCascade_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal),u(capture=wal)", bare("t"), "CREATE TABLE u (id int PRIMARY KEY, v text)", "CREATE TABLE t (id int PRIMARY KEY, u int REFERENCES u)",
		"INSERT INTO u SELECT g, 'x' FROM generate_series(1, 500) g", "INSERT INTO t SELECT g, g FROM generate_series(1, 500) g")
	g := followAll(t, s.nats, bare("u"))
	s.f.converge(s.conn)
	for i := range 3 {
		s.run("BEGIN", "INSERT INTO u VALUES (1000, 'before')", "INSERT INTO t VALUES (1000, 1000)", "TRUNCATE u CASCADE", "INSERT INTO u SELECT g, 'again' FROM generate_series(1, 5) g",
			"INSERT INTO t VALUES (1, 1), (2, 2)", "DELETE FROM t WHERE id = 2", "COMMIT")
		if i == 1 {
			s.b.restart()
		}
		s.f.converge(s.conn)
		g.converge(s.conn)
	}
}
