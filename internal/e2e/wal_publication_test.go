package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// The publication is dropped, and the slot stays. Postgres reads each change with the catalog of its moment. Before
// version 18 it never gets past those without a publication, so the slot must be made again. Version 18 passes over them,
// and the bridge notices when it checks the catalog. Either way nothing is missing at the end.
func TestWAL_PublicationDropped_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old')")
	s.f.converge(s.conn)
	s.run("DROP PUBLICATION "+slotOf(s.db), "INSERT INTO t VALUES (2, 'new')")
	testenv.Eventually(t, time.Minute+long, func() error { return s.f.differs(s.conn) })
	s.converge()
}

// While the bridge is away, a table is taken out of the publication and put back. Postgres does not send what was written
// meanwhile, and the slot shows no gap. The bridge finds it all the same.
func TestWAL_OutOfThePublicationAndBack_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old'), (2, 'old')")
	s.f.converge(s.conn)
	s.whileAway("ALTER PUBLICATION "+slotOf(s.db)+" DROP TABLE t", "INSERT INTO t VALUES (3, 'new')", "DELETE FROM t WHERE id = 2", "ALTER PUBLICATION "+slotOf(s.db)+" ADD TABLE t")
	s.converge()
}

// What is published of a table changes while the bridge runs, and changes are not sent. The bridge is killed before it
// checks the catalog. The next one finds what was not sent.
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
			t.Fatalf("%q: all changes were sent: the test shows nothing", c)
		}
		s.b.Kill()
		s.b.start()
		s.converge()
	}
}

// The same for a schema that is published as a whole: the publication does not name the table.
func TestWAL_SchemaOutOfThePublicationAndBack_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old'), (2, 'old')")
	s.f.converge(s.conn)
	alter := "ALTER PUBLICATION " + slotOf(s.db)
	s.whileAway(alter+" SET TABLES IN SCHEMA public", "UPDATE t SET v = 'new' WHERE id = 1")
	s.converge()
	s.whileAway(alter+" DROP TABLES IN SCHEMA public", "DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (3, 'new')", alter+" ADD TABLES IN SCHEMA public")
	s.converge()
}

// A publication that the user made, with a row filter, stays as it is. A row that leaves the filter is deleted from the
// stream.
func TestWAL_UsersPublication_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text, secret text, open boolean NOT NULL)", "ALTER TABLE t REPLICA IDENTITY FULL",
		"INSERT INTO t SELECT g, 'v', 'hidden', g % 2 = 0 FROM generate_series(1, 10) g", "CREATE TABLE other (id int PRIMARY KEY)",
		"CREATE PUBLICATION "+slotOf(db)+" FOR TABLE t WHERE (open), other",
		"CREATE VIEW shown AS SELECT * FROM t WHERE open")
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	rel := bare("t")
	f := followAll(t, broker.URL(), rel)
	f.set(func() { f.rel = table{schema: "public", name: "shown"} })
	f.converge(conn)
	run(t, conn, "UPDATE t SET open = false WHERE id = 2", "UPDATE t SET open = true WHERE id = 1", "INSERT INTO t VALUES (11, 'w', 's', true), (12, 'w', 's', false)", "DELETE FROM t WHERE id = 4", "UPDATE t SET v = 'x'")
	f.converge(conn)
	if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 2 {
		t.Errorf("the user's publication has %d tables, want 2", n)
	}
}

// A row leaves the publication's row filter, changes, and comes back with a value that Postgres does not send. Deletes are
// not published, so the stream still has the old row. The bridge does not take the value from that.
func TestWAL_BackIntoTheFilter_I12(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, open boolean NOT NULL, a text)", "ALTER TABLE t ALTER a SET STORAGE EXTERNAL",
		"CREATE UNIQUE INDEX t_open ON t (id, open)", "ALTER TABLE t REPLICA IDENTITY USING INDEX t_open", fmt.Sprintf("INSERT INTO t SELECT 1, true, "+wide, 1),
		"CREATE PUBLICATION "+slotOf(db)+" FOR TABLE t WHERE (open)")
	startWAL(t, db, broker.URL(), "t(capture=wal;actions=insert+update)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, conn, "UPDATE t SET open = false", fmt.Sprintf("UPDATE t SET a = "+wide, 2), "UPDATE t SET open = true")
	f.converge(conn)
}
