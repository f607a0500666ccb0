package e2e_test

import (
	"testing"
	"time"

	"bridge/internal/testenv"
)

// The publication is dropped, and the slot stays: Postgres looks the publication
// up as it was at each place in the WAL, and would never get beyond the place
// from before it was made again. Postgres 18 gets on, and leaves out what came
// meanwhile: a look at the catalog notices that.
func TestWAL_PublicationDropped_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old')")
	s.f.converge(s.conn)
	s.run("DROP PUBLICATION "+slotOf(s.db), "INSERT INTO t VALUES (2, 'new')")
	testenv.Eventually(t, time.Minute+long, func() error { return s.f.differs(s.conn) })
	s.converge()
}

// A table is taken out of the publication and put back while the bridge is away:
// what was written between is not in the WAL, and the slot shows no gap.
func TestWAL_OutOfThePublicationAndBack_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old'), (2, 'old')")
	s.f.converge(s.conn)
	s.whileAway("ALTER PUBLICATION "+slotOf(s.db)+" DROP TABLE t", "INSERT INTO t VALUES (3, 'new')", "DELETE FROM t WHERE id = 2", "ALTER PUBLICATION "+slotOf(s.db)+" ADD TABLE t")
	s.converge()
}

// What is published changes under the bridge, and it ends before it has looked at
// the catalog: its heartbeats went on, and what was not sent is found all the
// same.
func TestWAL_RepublishedThenRestarted_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
		"CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100)", "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (100) TO (200)",
		"INSERT INTO t SELECT g, 'old' FROM generate_series(1, 199) g")
	s.f.converge(s.conn)
	alter := "ALTER PUBLICATION " + slotOf(s.db)
	for _, c := range [][]string{
		{"TRUNCATE t2"},
		{alter + " SET (publish = 'insert, update')", "DELETE FROM t WHERE id = 1"},
		{alter + " SET (publish = 'insert')", "UPDATE t SET v = 'new' WHERE id = 2", alter + " SET (publish = 'insert, update, delete, truncate')"},
		{alter + " DROP TABLE t", "DELETE FROM t WHERE id = 3", alter + " ADD TABLE t"},
	} {
		s.run(c...)
		s.f.heartbeat(s.conn)
		if err := s.f.differs(s.conn); err == nil {
			t.Fatalf("%q: all of it was sent: the test shows nothing", c)
		}
		s.b.Kill()
		s.b.start()
		s.converge()
	}
}

// A table of a schema that is published as a whole is not named itself.
func TestWAL_SchemaOutOfThePublicationAndBack_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old'), (2, 'old')")
	s.f.converge(s.conn)
	alter := "ALTER PUBLICATION " + slotOf(s.db)
	s.whileAway(alter+" SET TABLES IN SCHEMA public", "UPDATE t SET v = 'new' WHERE id = 1")
	s.converge()
	s.whileAway(alter+" DROP TABLES IN SCHEMA public", "DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (3, 'new')", alter+" ADD TABLES IN SCHEMA public")
	s.converge()
}

// What came with a partition, or went when one was truncated, is in no WAL.
func TestWAL_PartitionsChangedWhileAway_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
		"CREATE TABLE t2 (LIKE t INCLUDING ALL)", "INSERT INTO t VALUES (1, 'old')", "INSERT INTO t2 VALUES (11, 'old')")
	s.f.converge(s.conn)
	s.whileAway("ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20)", "TRUNCATE t1")
	s.converge()
}

// A deferrable primary key is no replica identity: taken for one, the table would
// be published, and the application's own UPDATE refused.
func TestWAL_DeferrablePrimaryKey_I10(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal),u(capture=wal)", bare("u"), "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)", "INSERT INTO t VALUES (1, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
	s.f.converge(s.conn)
	s.b.awaitReason("t", "replica identity")
	s.run("UPDATE t SET v = 'new'", "INSERT INTO u VALUES (1)")
	s.converge()
}

// The replica identity of a partition is its own: where only the root has one,
// the application's own UPDATE would be refused.
func TestWAL_PartitionWithoutIdentity_I10(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=id),u(capture=wal)", bare("u"), "CREATE TABLE t (id int NOT NULL, v text) PARTITION BY RANGE (id)", "ALTER TABLE t REPLICA IDENTITY FULL",
		"CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)", "INSERT INTO t VALUES (1, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
	s.f.converge(s.conn)
	s.b.awaitReason("t", "partition t1", "REPLICA IDENTITY FULL")
	s.run("UPDATE t SET v = 'new'", "INSERT INTO u VALUES (1)")
	s.converge()
}

// A partition whose replica identity is not the root's would not say which row
// was changed: it is refused until it does.
func TestWAL_PartitionWithAnotherIdentity_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal),u(capture=wal)", bare("u"), "CREATE TABLE t (id int PRIMARY KEY, o int NOT NULL, v text) PARTITION BY RANGE (id)",
		"CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)", "CREATE UNIQUE INDEX t1_o ON t1 (o)", "ALTER TABLE t1 REPLICA IDENTITY USING INDEX t1_o",
		"INSERT INTO t VALUES (1, 1, 'old'), (2, 2, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
	s.f.converge(s.conn)
	s.b.awaitReason("t", "partition t1", "key column id")
	s.run("ALTER TABLE t1 REPLICA IDENTITY DEFAULT")
	s.f = followAll(t, s.nats, bare("t"))
	s.converge()
	s.run("UPDATE t SET id = 3 WHERE id = 1", "DELETE FROM t WHERE id = 2")
	s.converge()
}

// The replica identity lacks the key for a while: a key that changed meanwhile
// did not say so, and its old row would stay.
func TestWAL_IdentityChangedForAWhile_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=id)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, o int NOT NULL UNIQUE, v text)", "INSERT INTO t VALUES (1, 1, 'old'), (2, 2, 'old')")
	s.f.converge(s.conn)
	s.run("ALTER TABLE t REPLICA IDENTITY USING INDEX t_o_key", "UPDATE t SET id = 3 WHERE id = 1", "ALTER TABLE t REPLICA IDENTITY DEFAULT")
	s.converge()
}

// Names that need quotes, in SQL, in subjects and in array literals.
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
