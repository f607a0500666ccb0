package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// Columns are added, dropped, renamed and change their type while rows change. Each time the stream becomes equal to the
// relation.
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

// A table is rewritten several times while the bridge loads it. The bridge does not take it for empty.
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

// The WAL has no rows of a partition that is attached with data, or truncated by itself. The bridge notices at its start,
// and compares.
func TestWAL_PartitionsChangedWhileAway_I7(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
		"CREATE TABLE t2 (LIKE t INCLUDING ALL)", "INSERT INTO t VALUES (1, 'old')", "INSERT INTO t2 VALUES (11, 'old')")
	s.f.converge(s.conn)
	s.whileAway("ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20)", "TRUNCATE t1")
	s.converge()
}
