package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// A table without a replica identity is refused before it is added to the publication, because its own UPDATE would then
// fail. /readyz says what to run, and after that the table is captured.
func TestWAL_NoReplicaIdentity_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	newBare(t, db, "good", 10)
	run(t, conn, "CREATE TABLE t (id int NOT NULL, v text)", "INSERT INTO t VALUES (1, 'a')", "CREATE TABLE u (id int UNIQUE NOT NULL)", "CREATE TABLE w (id int NOT NULL, v text)", "INSERT INTO w VALUES (1, 'a')")
	b := startWAL(t, db, broker.URL(), "t(capture=wal;key=id),u(capture=wal),w(capture=wal;key=id;actions=insert),good(capture=wal)")
	g := follow(t, testenv.NATSConn(t, broker.URL()), bare("good"))
	g.converge(conn)
	b.awaitReason("t", "replica identity", "REPLICA IDENTITY FULL")
	b.awaitReason("u", "REPLICA IDENTITY USING INDEX")
	b.awaitReason("w", "replica identity", "would refuse", "REPLICA IDENTITY FULL")
	run(t, conn, "UPDATE t SET v = 'b'", "DELETE FROM u", "UPDATE w SET v = 'b'")
	if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 1 {
		t.Errorf("%d tables are published, want 1", n)
	}
	run(t, conn, "ALTER TABLE t REPLICA IDENTITY FULL", "ALTER TABLE u REPLICA IDENTITY USING INDEX u_id_key")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	run(t, conn, "UPDATE t SET v = 'c'", "UPDATE good SET v = 'd'")
	f.converge(conn)
	g.converge(conn)
}

// A deferrable primary key is no replica identity. The table is refused, so the application's own UPDATE works.
func TestWAL_DeferrablePrimaryKey_I10(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal),u(capture=wal)", bare("u"), "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)", "INSERT INTO t VALUES (1, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
	s.f.converge(s.conn)
	s.b.awaitReason("t", "replica identity")
	s.run("UPDATE t SET v = 'new'", "INSERT INTO u VALUES (1)")
	s.converge()
}

// The replica identity lacks the key for a while. An UPDATE of the key then does not tell the old key, and its row would
// stay in the stream. The bridge compares the relation.
func TestWAL_IdentityChangedForAWhile_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=id)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, o int NOT NULL UNIQUE, v text)", "INSERT INTO t VALUES (1, 1, 'old'), (2, 2, 'old')")
	s.f.converge(s.conn)
	s.run("ALTER TABLE t REPLICA IDENTITY USING INDEX t_o_key", "UPDATE t SET id = 3 WHERE id = 1", "ALTER TABLE t REPLICA IDENTITY DEFAULT")
	s.converge()
}

// A partition has a replica identity of its own. If only the root of the table has one, the table is refused, so the
// application's own UPDATE works.
func TestWAL_PartitionWithoutIdentity_I10(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=id),u(capture=wal)", bare("u"), "CREATE TABLE t (id int NOT NULL, v text) PARTITION BY RANGE (id)", "ALTER TABLE t REPLICA IDENTITY FULL",
		"CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)", "INSERT INTO t VALUES (1, 'old')", "CREATE TABLE u (id int PRIMARY KEY)")
	s.f.converge(s.conn)
	s.b.awaitReason("t", "partition t1", "REPLICA IDENTITY FULL")
	s.run("UPDATE t SET v = 'new'", "INSERT INTO u VALUES (1)")
	s.converge()
}

// If a partition's replica identity lacks the key, the WAL does not say which row was changed. The table is refused until
// the identity has the key.
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

// The root of a partitioned table has no replica identity, and its partition has one, as bridge sql advises. Changes come
// from the WAL. The relation is not compared again and again.
func TestWAL_OnlyPartitionsHaveAnIdentity_I9(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal;key=id)", bare("t"), "CREATE TABLE t (id int NOT NULL, v text) PARTITION BY RANGE (id)",
		"CREATE UNIQUE INDEX t_id ON t (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100000)",
		"ALTER TABLE t1 REPLICA IDENTITY FULL", "INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g")
	s.f.converge(s.conn)
	for i := range 3 { // ANALYZE makes Postgres send the columns again
		s.run("ANALYZE t1", fmt.Sprintf("UPDATE t SET v = 'a%d' WHERE id = 1", i), fmt.Sprintf("UPDATE t SET id = id + 1000 WHERE id = %d", 10+i), fmt.Sprintf("DELETE FROM t WHERE id = %d", 20+i))
		s.f.converge(s.conn)
	}
	if log := s.b.Stderr(); strings.Contains(log, "compar") {
		t.Errorf("the relation was compared:\n%s", log)
	}
}

// While the bridge runs, a partition's replica identity loses the key. An UPDATE of the key then does not tell the old
// key. The bridge says so; when the identity has the key again, it finds what it missed.
func TestWAL_PartitionLosesItsIdentity_I1(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (id)",
		"CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100000)", "CREATE UNIQUE INDEX t1_v ON t1 (v)",
		"INSERT INTO t SELECT g, g FROM generate_series(1, 100) g")
	s.f.converge(s.conn)
	s.run("ALTER TABLE t1 REPLICA IDENTITY USING INDEX t1_v", "UPDATE t SET id = id + 1000 WHERE id <= 5")
	s.b.awaitReason("t", "REPLICA IDENTITY")
	s.run("ALTER TABLE t1 REPLICA IDENTITY DEFAULT")
	s.converge()
}
