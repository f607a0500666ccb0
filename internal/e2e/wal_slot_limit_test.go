package e2e_test

import (
	"fmt"
	"net/url"
	"testing"

	"bridge/internal/testenv"
)

// slotLimit is how many bytes of WAL the slots of these tests may keep.
const slotLimit = 16 << 20

// limited sets that limit.
const limited = "BRIDGE_SLOT_MAX_LAG=16MiB"

// outgrow writes more WAL than the slot may keep, and waits until the slot keeps no more than it may.
func outgrow(s *scene) {
	s.t.Helper()
	s.run("INSERT INTO noise SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g", "TRUNCATE noise")
	testenv.Eventually(s.t, long, func() error {
		if n := query[int64](s.t, s.conn, "SELECT COALESCE(max(pg_current_wal_lsn() - restart_lsn), 0)::int8 FROM pg_replication_slots WHERE slot_name = $1", slotOf(s.db)); n > slotLimit {
			return fmt.Errorf("the slot keeps %d bytes", n)
		}
		return nil
	})
	s.b.running()
}

// slots returns 1 if the bridge's slot exists and meets the condition, and 0 otherwise.
func (s *scene) slots(condition string) int {
	s.t.Helper()
	return query[int](s.t, s.conn, "SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1 AND "+condition, slotOf(s.db))
}

// awaitMaking waits until a session has the slot, and returns its PID.
func awaitMaking(s *scene) int {
	s.t.Helper()
	testenv.Eventually(s.t, long, func() error {
		if s.slots("active_pid IS NOT NULL") == 0 {
			return fmt.Errorf("no slot is being made")
		}
		return nil
	})
	return query[int](s.t, s.conn, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", slotOf(s.db))
}

// newWaiting starts a bridge whose slot can't be made before a writer ends. It returns the writer's PID, and a function
// that ends it.
func newWaiting(t *testing.T) (s *scene, writer int, end func()) {
	t.Helper()
	needServers(t)
	// In a shared cluster the slot would wait for transactions of other tests, too.
	c := testenv.NewCluster(t)
	s = &scene{t: t, db: c.Database(), nats: testenv.NATS(t).URL()}
	newBare(t, s.db, "t", 10)
	newBare(t, s.db, "noise", 0)
	s.conn = connect(t, s.db)
	open := connect(t, s.db)
	run(t, open, "BEGIN", "INSERT INTO t VALUES (100, 'open')")
	s.b = startWAL(t, s.db, s.nats, "t(capture=wal)", limited)
	return s, query[int](t, open, "SELECT pg_backend_pid()"), func() { run(t, open, "COMMIT") }
}

// A slot can't be made because a transaction that has written stays open. The limit holds all the same, at each try. The
// log names the PID that the slot waits for.
func TestWAL_SlotThatWaitsForAWriter_I9(t *testing.T) {
	s, writer, end := newWaiting(t)
	for range 2 {
		awaitMaking(s)
		outgrow(s)
	}
	s.b.logged("waits for transactions that have written", fmt.Sprintf("of PID %d", writer), "pg_prepared_xacts")
	s.b.logged("before it was made", fmt.Sprintf("of PID %d", writer))
	s.b.awaitReason("t", "waits for transactions that have written")
	end()
	s.f = followAll(t, s.nats, bare("t"))
	s.converge()
}

// If the slot waits for a prepared transaction, the log names that.
func TestWAL_SlotThatWaitsForAPreparedTransaction_I9(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t, "max_prepared_transactions=5")
	s := &scene{t: t, db: c.Database(), nats: testenv.NATS(t).URL()}
	newBare(t, s.db, "t", 10)
	s.conn = connect(t, s.db)
	s.run("BEGIN", "INSERT INTO t VALUES (100, 'prepared')", "PREPARE TRANSACTION 'forgotten'")
	s.b = startWAL(t, s.db, s.nats, "t(capture=wal)")
	s.b.logged("waits for transactions that have written", `prepared as \"forgotten\"`)
	s.run("COMMIT PREPARED 'forgotten'")
	s.f = followAll(t, s.nats, bare("t"))
	s.converge()
}

// A bridge is killed while Postgres makes its slot, and Postgres goes on. The next bridge logs who makes the slot and what
// to run. At the limit it gives the slot up as if it were its own.
func TestWAL_SlotOfABridgeKilledWhileItMadeIt_I9(t *testing.T) {
	s, writer, end := newWaiting(t)
	maker := awaitMaking(s)
	s.b.restart()
	s.b.logged(fmt.Sprintf("PID %d is still making slot", maker), fmt.Sprintf("of PID %d", writer), fmt.Sprintf("pg_terminate_backend(%d)", maker))
	outgrow(s)
	testenv.Eventually(t, long, func() error {
		if pid := awaitMaking(s); pid == maker {
			return fmt.Errorf("PID %d still has the slot", maker)
		}
		return nil
	})
	end()
	s.f = followAll(t, s.nats, bare("t"))
	s.converge()
}

// newReader starts a bridge with a role that may not create publications. The publication is there already, and has the
// table t.
func newReader(t *testing.T) *scene {
	t.Helper()
	needServers(t)
	c := testenv.NewCluster(t)
	s := &scene{t: t, db: c.Database(), nats: testenv.NATS(t).URL()}
	newBare(t, s.db, "t", 10)
	newBare(t, s.db, "noise", 0)
	s.conn = connect(t, s.db)
	s.run("CREATE ROLE reader LOGIN REPLICATION PASSWORD 'sesame-3f9c'", "GRANT SELECT ON t TO reader", "CREATE PUBLICATION "+slotOf(s.db)+" FOR TABLE t")
	as, err := url.Parse(s.db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword("reader", "sesame-3f9c")
	s.b = startBridge(t, as.String(), s.nats, "t(capture=wal)", "BRIDGE_NAME="+slotOf(s.db), limited)
	s.f = followAll(t, s.nats, bare("t"))
	s.f.converge(s.conn)
	return s
}

// Every session fails before it reads the slot, because the publication is gone. The slot is dropped at the limit all the
// same.
func TestWAL_SlotOfSessionsThatFail_I9(t *testing.T) {
	s := newReader(t)
	s.whileAway("DROP PUBLICATION " + slotOf(s.db))
	outgrow(s)
	s.b.logged("BRIDGE_SLOT_MAX_LAG", "slot dropped", "nobody read it")
	s.run("CREATE PUBLICATION "+slotOf(s.db)+" FOR TABLE t", "DELETE FROM t WHERE id = 1")
	s.converge()
}

// No relation can be captured, so no session reads the slot. The slot is dropped at the limit all the same.
func TestWAL_SlotOfABridgeThatCapturesNothing_I9(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE noise (id int, v text)", "INSERT INTO t VALUES (1, 'old')")
	s.f.converge(s.conn)
	s.b.Kill()
	s.run("DROP TABLE t")
	s.b.env = append(s.b.env, "BRIDGE_SLOT_MAX_LAG=16MiB")
	s.b.start()
	s.run("INSERT INTO noise SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g")
	testenv.Eventually(t, long, func() error {
		if n := query[int64](t, s.conn, "SELECT COALESCE(max(pg_current_wal_lsn() - restart_lsn), 0)::int8 FROM pg_replication_slots WHERE slot_name = $1", slotOf(s.db)); n > 4<<20 {
			return fmt.Errorf("the slot keeps %d bytes", n)
		}
		return nil
	})
	s.b.running()
}

// The bridge makes no slot while it can capture no relation.
func TestWAL_NoSlotWithoutARelation_I9(t *testing.T) {
	s := newReader(t)
	s.b.Kill()
	s.run("ALTER PUBLICATION " + slotOf(s.db) + " DROP TABLE t")
	dropSlot(t, s.conn, s.db)
	s.b.start()
	s.b.awaitReason("t", "publication")
	testenv.Eventually(t, long, func() error {
		if n := s.b.metric(`lockstep_bridge_relation_errors_total{relation="public.t"}`); n < 3 {
			return fmt.Errorf("the bridge has tried %d times, want 3", n)
		}
		return nil
	})
	if s.slots("true") != 0 {
		t.Error("there is a slot, although no relation is captured")
	}
	s.run("ALTER PUBLICATION "+slotOf(s.db)+" ADD TABLE t", "DELETE FROM t WHERE id = 1")
	s.converge()
}

// The limit holds also while the bridge has not reached the broker yet.
func TestWAL_SlotWhileTheBrokerIsAway_I9(t *testing.T) {
	s := newScene(t, 10)
	newBare(t, s.db, "noise", 0)
	s.b.Kill()
	s.broker.Kill()
	s.b.env = append(s.b.env, limited)
	s.b.start()
	outgrow(s)
	s.b.logged("BRIDGE_SLOT_MAX_LAG", "slot dropped", "nobody read it")
	s.run("DELETE FROM t WHERE id = 1")
	s.broker.Start()
	s.converge()
}
