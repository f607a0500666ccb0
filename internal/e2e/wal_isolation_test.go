package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/testenv"
)

// A table is missing, and another is dropped and made again. Both are captured when they are there; meanwhile the others
// go on.
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
	b.Kill() // a running bridge checks the catalog once a minute
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

// A relation is locked when the bridge starts. The others go on.
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

// A published table is locked, and the bridge's session must begin again. It begins, and the other table goes on, also if
// the publication has a filter for the locked table.
func TestWAL_LockedPublishedTable_I10(t *testing.T) {
	needServers(t)
	for name, publication := range map[string]string{
		"Own": "", "Filtered": "CREATE PUBLICATION %s FOR TABLE t WHERE (id > 0), u",
	} {
		t.Run(name, func(t *testing.T) {
			db, broker := ownDatabase(t), testenv.NATS(t)
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
