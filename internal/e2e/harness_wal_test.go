package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// startWAL starts a bridge with a slot of its own, so that other tests of the cluster do not use it.
func startWAL(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	return startBridge(t, db, nats, tables, append([]string{"BRIDGE_NAME=" + slotOf(db)}, env...)...)
}

// slotOf returns the name of a bridge and of its slot, made of the database's name. Each test has a database of its own.
func slotOf(db string) string { return "slot_" + databaseOf(db) }

// databaseOf returns the name of the database in a URL.
func databaseOf(db string) string {
	return db[strings.LastIndex(db, "/")+1 : strings.IndexByte(db, '?')]
}

// scene is a bridge that captures a test's tables from the WAL, and a follower of one of them.
type scene struct {
	cluster  *testenv.Cluster // of a scene of newScene, which has one of its own
	t        *testing.T
	db, nats string
	// Only newScene sets broker; it is nil otherwise.
	broker *testenv.ExternalNATS
	conn   *pgx.Conn
	b      *bridge
	f      *follower
}

// newScene captures a table t(id, v). Its broker can be killed.
func newScene(t *testing.T, rows int) *scene {
	t.Helper()
	needServers(t)
	broker := testenv.NATSProcess(t)
	c := testenv.NewCluster(t)
	s := &scene{t: t, cluster: c, db: c.Database(), nats: broker.URL(), broker: broker}
	newBare(t, s.db, "t", rows)
	s.begin("t(capture=wal)", bare("t"))
	s.f.converge(s.conn)
	return s
}

// newSceneOf captures the tables that the setup creates, and follows rel.
func newSceneOf(t *testing.T, tables string, rel table, setup ...string) *scene {
	t.Helper()
	needServers(t)
	return newSceneIn(t, testenv.Postgres(t), tables, rel, setup...)
}

// newSceneIn is newSceneOf in a given database.
func newSceneIn(t *testing.T, db, tables string, rel table, setup ...string) *scene {
	t.Helper()
	s := &scene{t: t, db: db, nats: testenv.NATS(t).URL()}
	testenv.Exec(t, s.db, setup...)
	s.begin(tables, rel)
	return s
}

// begin starts the bridge and the follower.
func (s *scene) begin(tables string, rel table) {
	s.t.Helper()
	s.conn = connect(s.t, s.db)
	s.b = startWAL(s.t, s.db, s.nats, tables)
	s.f = followAll(s.t, s.nats, rel)
}

// run executes statements of the application.
func (s *scene) run(statements ...string) {
	s.t.Helper()
	run(s.t, s.conn, statements...)
}

// whileAway kills the bridge, executes statements of the application, and starts the bridge again.
func (s *scene) whileAway(statements ...string) {
	s.t.Helper()
	s.b.Kill()
	s.run(statements...)
	s.b.start()
}

// stop sends SIGTERM, and waits until the bridge has ended.
func (s *scene) stop() {
	s.t.Helper()
	s.b.Signal(syscall.SIGTERM)
	if _, err := s.b.Wait(20 * time.Second); err != nil {
		s.t.Fatal(err)
	}
}

// converge waits until the follower has what the relation has. The bridge may take a while to notice that they differ.
func (s *scene) converge() {
	s.t.Helper()
	s.f.convergeLate(s.conn)
}

// dropSlot drops the bridge's slot as soon as no session reads it.
func dropSlot(t *testing.T, conn *pgx.Conn, db string) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slotOf(db))
		return err
	})
}

// confirmed returns the WAL position up to which the slot is confirmed, or 0 if there is no slot.
func confirmed(t *testing.T, conn *pgx.Conn, db string) uint64 {
	t.Helper()
	return uint64(query[int64](t, conn, "SELECT COALESCE((SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = $1), 0)", slotOf(db)))
}

// writeOn changes t(id, v) without pause until stop is called. It updates, deletes and inserts again the keys from 1 to
// n, and inserts new ones. It ends before the connection is closed, also if the test fails.
func writeOn(t *testing.T, db string, n int) (stop func()) {
	t.Helper()
	conn := connect(t, db)
	var done atomic.Bool
	ended := make(chan error, 1)
	go func() {
		for i := 0; !done.Load(); i++ {
			_, err := conn.Exec(t.Context(), fmt.Sprintf(`BEGIN; UPDATE t SET v = 'u%[1]d' WHERE id IN (%[2]d, %[3]d); DELETE FROM t WHERE id = %[4]d;
				INSERT INTO t VALUES (%[4]d, 'again %[1]d'), (%[5]d, 'new'); COMMIT; DELETE FROM t WHERE id = %[6]d`,
				i, i*7%n+1, i*13%n+1, i*11%n+1, 10_000_000+i, i*17%n+1))
			if err != nil {
				var pg interface{ SQLState() string }
				if errors.As(err, &pg) && pg.SQLState() == "23505" {
					_, _ = conn.Exec(t.Context(), "ROLLBACK")
					continue
				}
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	stop = sync.OnceFunc(func() {
		done.Store(true)
		if err := <-ended; err != nil && t.Context().Err() == nil {
			t.Errorf("writer: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// wide is SQL for a text of 8000 bytes, which Postgres stores out of line.
const wide = "(SELECT string_agg(md5(%d::text || i::text), '') FROM generate_series(1, 250) i)"

// odderSQL creates a type that only the server can turn into JSON. The bridge must read rows that have it by SQL.
func odderSQL() []string {
	return []string{
		"CREATE TYPE odder AS ENUM ('a', 'b')",
		`CREATE FUNCTION odd_json(odder) RETURNS json STABLE LANGUAGE sql AS $$SELECT to_json('odd ' || $1::text)$$`,
		"CREATE CAST (odder AS json) WITH FUNCTION odd_json(odder)",
	}
}
