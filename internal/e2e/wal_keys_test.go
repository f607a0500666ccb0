package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/testenv"
)

// Names and keys that need quotes, in SQL, in subjects and in array literals, arrive, change, and are compared after a
// gap.
func TestWAL_OddNames_I1(t *testing.T) {
	s := newSceneOf(t, `"S p.é"."Ta.ble "" x"(capture=wal)`, table{schema: "S p.é", name: `Ta.ble " x`}, `CREATE SCHEMA "S p.é"`,
		`CREATE TABLE "S p.é"."Ta.ble "" x" ("Key . Col" text, "select" numeric(10,2), "a""b" text, PRIMARY KEY ("Key . Col", "select"))`,
		`INSERT INTO "S p.é"."Ta.ble "" x" VALUES ('a.b >*', 1.5, 'x'), ('', 2, 'y'), ('"\', 3, NULL)`)
	s.f.converge(s.conn)
	s.run(`UPDATE "S p.é"."Ta.ble "" x" SET "select" = "select" + 1`, `DELETE FROM "S p.é"."Ta.ble "" x" WHERE "Key . Col" = ''`)
	s.f.converge(s.conn)
	s.b.Kill()
	s.run(`UPDATE "S p.é"."Ta.ble "" x" SET "a""b" = 'z'`)
	dropSlot(t, s.conn, s.db)
	s.b.start()
	s.f.converge(s.conn)
}

// Postgres stores long keys out of line. Their rows change, change their keys, and are deleted.
func TestWAL_LongKeys_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (k text, n int, PRIMARY KEY (k))", "ALTER TABLE t ALTER k SET STORAGE EXTERNAL",
		"INSERT INTO t SELECT repeat('k', 2100) || g, g FROM generate_series(1, 10) g")
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "UPDATE t SET n = n + 1", "UPDATE t SET k = k || 'x' WHERE n > 5", "DELETE FROM t WHERE n = 3", "UPDATE t SET k = '' WHERE n = 4")
	f.converge(conn)
}

// A key has an array type. Postgres has no arrays of arrays, so the bridge can't ask for such keys in one array, as it
// does for others. It finds what changed in a gap all the same.
func TestWAL_ArrayKey_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (k int[] PRIMARY KEY, v text)", "INSERT INTO t VALUES ('{1,2}', 'old'), ('{3,NULL}', 'old')")
	s.f.converge(s.conn)
	s.b.Kill()
	s.run("DELETE FROM t WHERE k = '{1,2}'", "UPDATE t SET v = 'new'")
	dropSlot(t, s.conn, s.db)
	s.b.start()
	s.converge()
}

// Under a deferrable key, rows swap their keys in one statement. The stream keeps both: to remove the first row's old key
// would remove the second row.
func TestWAL_KeysSwapped_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)", "ALTER TABLE t REPLICA IDENTITY FULL", "INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 4) g")
	s.f.converge(s.conn)
	s.run("UPDATE t SET id = 3 - id WHERE id < 3")
	s.f.converge(s.conn)
	s.run("UPDATE t SET id = id + 1")
	s.f.converge(s.conn)
	s.run("BEGIN", "INSERT INTO t VALUES (3, 'again')", "DELETE FROM t WHERE id = 3 AND v <> 'again'", "COMMIT")
	s.f.converge(s.conn)
}

// The key becomes deferrable, and rows swap their keys before the bridge next checks the catalog. The stream keeps both.
func TestWAL_KeysBecomeDeferrable_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "ALTER TABLE t REPLICA IDENTITY FULL", "INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 4) g")
	s.f.converge(s.conn)
	s.run("UPDATE t SET v = 'new' WHERE id = 4")
	s.f.converge(s.conn)
	s.run("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED", "UPDATE t SET id = 3 - id WHERE id < 3")
	s.converge()
}

// Rows with long values swap their keys, and the WAL does not have the values. The bridge does not take them from what it
// last published under the key, because that may be the other row.
func TestWAL_KeysOfLongRowsSwapped_I12(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=id)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, o int NOT NULL, a text)", "ALTER TABLE t ALTER a SET STORAGE EXTERNAL",
		"CREATE UNIQUE INDEX t_both ON t (id, o)", "ALTER TABLE t REPLICA IDENTITY USING INDEX t_both", fmt.Sprintf("INSERT INTO t SELECT g, g, "+wide+" || g FROM generate_series(1, 4) g", 1))
	s.f.converge(s.conn)
	s.run("UPDATE t SET o = o + 10") // the bridge asks for the rows, and keeps them
	s.f.converge(s.conn)
	s.run("UPDATE t SET id = 3 - id WHERE id < 3")
	s.f.converge(s.conn)
	s.run("UPDATE t SET id = id + 1")
	s.f.converge(s.conn)
}
