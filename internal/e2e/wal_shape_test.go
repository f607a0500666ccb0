package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A column comes and goes while the bridge is away. The WAL has rows of a shape that the catalog does not have any more,
// and each restart would meet them again. The bridge compares the relation, and goes on.
func TestWAL_ColumnCameAndWent_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal),u(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old'), (3, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
	s.f.converge(s.conn)
	s.whileAway("ALTER TABLE t ADD COLUMN x int", "INSERT INTO t VALUES (2, 'new', 3)", "DELETE FROM t WHERE id = 3", "ALTER TABLE t DROP COLUMN x")
	s.converge()
}

// The same while the bridge runs, in one transaction.
func TestWAL_ColumnCameAndWentWhileRead_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t SELECT g, 'old' FROM generate_series(1, 2000) g")
	s.f.converge(s.conn)
	for i := range 5 {
		s.run("BEGIN", "ALTER TABLE t ADD COLUMN x int", fmt.Sprintf("UPDATE t SET v = 'x %d' WHERE id < 1000", i), "ALTER TABLE t DROP COLUMN x", "COMMIT")
	}
	s.converge()
}

// A composite type gets an attribute while the bridge is away. The values in the WAL have one attribute less than the
// type, and each restart would meet them again. The bridge compares the relation, and goes on.
func TestWAL_CompositeGrew_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TYPE pair AS (a int, b text)", "CREATE TABLE t (id int PRIMARY KEY, p pair)", "INSERT INTO t VALUES (1, (1, 'a')), (2, (2, 'b'))")
	s.f.converge(s.conn)
	s.whileAway("UPDATE t SET p = (3, 'c') WHERE id = 1", "DELETE FROM t WHERE id = 2", "ALTER TYPE pair ADD ATTRIBUTE c int")
	s.converge()
}

// The slot is gone, a row was deleted, and a column was added. The bridge compares the relation. To only read it again,
// for its new column, would not show the delete.
func TestWAL_GapAndAnotherShape_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10) g")
	s.f.converge(s.conn)
	s.b.Kill()
	s.run("DELETE FROM t WHERE id = 2", "ALTER TABLE t ADD COLUMN x int DEFAULT 7")
	dropSlot(t, s.conn, s.db)
	s.b.start()
	s.converge()
}

// While the bridge is away, a row is deleted, and then a column and its type are dropped. The delete in the WAL has a type
// that does not exist any more. It arrives all the same.
func TestWAL_TypeDropped_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TYPE mood AS ENUM ('a')", "CREATE TABLE t (id int PRIMARY KEY, m mood)", "INSERT INTO t SELECT g, 'a' FROM generate_series(1, 10) g")
	s.f.converge(s.conn)
	s.whileAway("DELETE FROM t WHERE id = 2", "ALTER TABLE t DROP COLUMN m", "DROP TYPE mood")
	s.converge()
}

// A label of an enum that is a key is renamed while the bridge is away. No row in the WAL says so. Rows under the old key
// do not stay in the stream.
func TestWAL_EnumKeyRenamed_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TYPE mood AS ENUM ('a', 'b')", "CREATE TABLE t (k mood PRIMARY KEY, v text)", "INSERT INTO t VALUES ('a', 'x'), ('b', 'y')")
	s.f.converge(s.conn)
	s.whileAway("ALTER TYPE mood RENAME VALUE 'a' TO 'c'")
	s.converge()
}

// The bridge is killed in the middle of its first load. Meanwhile a key column has another name for a while, or a column
// comes and goes. The load goes on after the keys that it has read. Rows before that changed in a shape that the bridge
// can't publish; they must arrive all the same.
func TestWAL_ShapeCameAndWentInALoad_I1(t *testing.T) {
	needServers(t)
	for name, changes := range map[string][]string{
		"key column renamed and back": {
			"ALTER TABLE t RENAME COLUMN id TO old_id", "DELETE FROM t WHERE old_id = 1",
			"UPDATE t SET v = 'new' WHERE old_id = 2", "ALTER TABLE t RENAME COLUMN old_id TO id",
		},
		"column came and went": {
			"ALTER TABLE t ADD COLUMN x int", "UPDATE t SET v = 'new', x = 7 WHERE id <= 3", "ALTER TABLE t DROP COLUMN x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			newBare(t, db, "t", 60_000)
			conn := connect(t, db)
			b := startWAL(t, db, broker.URL(), "t(capture=wal)")
			f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
			f.await("announcement", f.last()+1, func(s seen) bool { return s.kind == stream.KindBatch })
			f.await("row", f.last()+2000, func(s seen) bool { return s.kind == stream.KindRow })
			b.Kill()
			run(t, conn, changes...)
			b.start()
			f.converge(conn)
		})
	}
}
