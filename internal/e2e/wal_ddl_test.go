package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Columns that come, go and change type under load, and changes that no row
// follows, end with the stream equal to the relation.
func TestWAL_ChangedColumns_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 3000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	for _, ddl := range []string{
		"ALTER TABLE t ADD COLUMN a int NOT NULL DEFAULT 7", "ALTER TABLE t ADD COLUMN b timestamptz DEFAULT clock_timestamp()", "ALTER TABLE t DROP COLUMN a",
		"ALTER TABLE t ALTER COLUMN id TYPE int", "ALTER TABLE t RENAME COLUMN v TO w", "ALTER TABLE t RENAME COLUMN w TO v",
	} {
		if strings.HasPrefix(ddl, "ALTER TABLE t RENAME") { // the writer knows one name
			run(t, conn, ddl)
		} else {
			stop := writeOn(t, db, 3000)
			f.await("row", f.last()+10, func(s seen) bool { return s.kind == stream.KindRow })
			run(t, conn, ddl)
			stop()
		}
		run(t, conn, "INSERT INTO t (id) VALUES (2) ON CONFLICT (id) DO UPDATE SET id = 2") // the writer may have deleted it
		testenv.Eventually(t, long, func() error { return f.differs(conn) })
	}
	b.running()
	f.converge(conn)
}

// A table that is written anew while it is loaded is not seen empty.
func TestWAL_RewrittenTable_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 30_000)
	conn := connect(t, db)
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.await("announcement", 0, func(s seen) bool { return s.kind == stream.KindBatch })
	for i := range 4 {
		run(t, conn, fmt.Sprintf("ALTER TABLE t ADD COLUMN c%d float DEFAULT random()", i), "VACUUM FULL t", "UPDATE t SET v = 'now' WHERE id = 1")
	}
	f.converge(conn)
}

// A table that is dropped and made again begins a new incarnation; meanwhile
// the others go on.
func TestWAL_TableMadeAgain_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10)
	newBare(t, db, "u", 10)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal),u(capture=wal),missing(capture=wal)")
	nc := testenv.NATSConn(t, broker.URL())
	f, g := follow(t, nc, bare("t")), follow(t, nc, bare("u"))
	f.converge(conn)
	g.converge(conn)
	b.awaitReason("missing", "no such table")
	run(t, conn, "DROP TABLE t", "UPDATE u SET v = 'meanwhile'")
	g.converge(conn)
	b.Kill() // a look at the catalog comes once a minute
	newBare(t, db, "t", 5)
	b.start()
	f.converge(conn)
	newBare(t, db, "missing", 5)
	h := follow(t, nc, bare("missing"))
	h.converge(conn)
	run(t, conn, "UPDATE missing SET v = 'found'", "UPDATE u SET v = 'still'", "DELETE FROM t")
	h.converge(conn)
	g.converge(conn)
	f.converge(conn)
}

// A table without a replica identity is refused before it gets into the
// publication: there its own UPDATE would fail.
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
	b.awaitReason("w", "replica identity", "bridge sql 'w(key=id;capture=wal;actions=insert)'")
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

// A relation joins and leaves BRIDGE_TABLES, and the others are not read again.
func TestWAL_TablesComeAndGo(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	for _, name := range []string{"t", "u"} {
		newBare(t, db, name, 100)
	}
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	nc := testenv.NATSConn(t, broker.URL())
	f := follow(t, nc, bare("t"))
	f.converge(conn)
	tables := func(names string) {
		b.Kill()
		b.setTables(names)
		run(t, conn, "DELETE FROM t WHERE id = (SELECT min(id) FROM t)")
		b.start()
	}
	tables("t(capture=wal),u(capture=wal)")
	g := follow(t, nc, bare("u"))
	g.converge(conn)
	f.converge(conn)
	tables("t(capture=wal)")
	f.converge(conn)
	testenv.Eventually(t, long, func() error {
		if n := query[int](t, conn, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1", slotOf(db)); n != 1 {
			return fmt.Errorf("%d tables are published, want 1", n)
		}
		return nil
	})
	if n := len(f.messages(stream.KindRow, 0)); n > 110 {
		t.Errorf("%d rows of t were sent, for 100 rows and 2 deletes", n)
	}
	run(t, conn, "DELETE FROM u WHERE id < 50", "INSERT INTO u VALUES (1000, 'while it was out')")
	tables("t(capture=wal),u(capture=wal)")
	g.converge(conn)
}

// A relation that is locked keeps neither the others nor the slot of them.
func TestWAL_LockedRelationStopsOnlyItself_I10(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t), testenv.NATS(t)
	db := c.Database()
	newBare(t, db, "t", 5000)
	newBare(t, db, "u", 10)
	conn, lock := connect(t, db), connect(t, db)
	b := startWAL(t, db, broker.URL(), "u(capture=wal)")
	g := follow(t, testenv.NATSConn(t, broker.URL()), bare("u"))
	g.converge(conn)
	run(t, lock, "BEGIN", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
	b.setTables("t(capture=wal),u(capture=wal)")
	b.restart()
	for i := range 3 {
		run(t, conn, fmt.Sprintf("UPDATE u SET v = 'beside a locked table %d'", i))
		testenv.Eventually(t, long, func() error { return g.differs(conn) })
	}
	run(t, lock, "COMMIT")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	g.converge(conn)
}

// A session begins though a published table is locked: what is published is told
// without a lock of it, and of one that has a filter only its own is waited for.
func TestWAL_LockedPublishedTable_I10(t *testing.T) {
	needServers(t)
	for name, publication := range map[string]string{
		"Own": "", "Filtered": "CREATE PUBLICATION %s FOR TABLE t WHERE (id > 0), u",
	} {
		t.Run(name, func(t *testing.T) {
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			newBare(t, db, "t", 10)
			newBare(t, db, "u", 10)
			conn, lock := connect(t, db), connect(t, db)
			run(t, conn, "ANALYZE t, u")
			if publication != "" {
				run(t, conn, fmt.Sprintf(publication, slotOf(db)))
			}
			b := startWAL(t, db, broker.URL(), "t(capture=wal),u(capture=wal)")
			nc := testenv.NATSConn(t, broker.URL())
			f, g := follow(t, nc, bare("t")), follow(t, nc, bare("u"))
			f.converge(conn)
			g.converge(conn)
			b.awaitReady()
			run(t, lock, "BEGIN", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
			run(t, conn, "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = '"+slotOf(db)+"'",
				"UPDATE u SET v = 'beside a locked table'")
			testenv.Eventually(t, long, func() error { return g.differs(conn) })
			run(t, lock, "UPDATE t SET v = 'at last'", "COMMIT")
			f.converge(conn)
			g.converge(conn)
			b.awaitReady()
		})
	}
}
