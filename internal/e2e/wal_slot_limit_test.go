package e2e_test

import (
	"fmt"
	"net/url"
	"testing"

	"bridge/internal/testenv"
)

// slotLimit is as much as the slots of these tests may keep.
const slotLimit = 16 << 20

const limited = "BRIDGE_SLOT_MAX_LAG=16MiB"

// outgrow writes more WAL than the slot may keep, and waits until it does not keep
// it.
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

// slots counts the bridge's slot, in a state that the condition names.
func (s *scene) slots(condition string) int {
	s.t.Helper()
	return query[int](s.t, s.conn, "SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1 AND "+condition, slotOf(s.db))
}

// awaitMaking waits until a session makes the slot, and returns its PID.
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

// newWaiting starts a bridge whose slot waits for a writer, which end ends, and
// returns the writer's PID.
func newWaiting(t *testing.T) (s *scene, writer int, end func()) {
	t.Helper()
	needServers(t)
	// Other tests' transactions would be waited for, too.
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

// A slot that can't be made because a writer never ends keeps no more than it
// may either, at each try; who is waited for is in the log.
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

// The transaction that the slot waits for is named where it was prepared, too.
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

// Postgres goes on making the slot of a bridge that was killed: the next says what
// holds it, and gives it up at the limit as if it were its own.
func TestWAL_SlotOfABridgeKilledWhileItMadeIt_I9(t *testing.T) {
	s, writer, end := newWaiting(t)
	maker := awaitMaking(s)
	s.b.restart()
	s.b.logged(fmt.Sprintf("PID %d is still making slot", maker), fmt.Sprintf("of PID %d", writer), fmt.Sprintf("pg_terminate_backend(%d)", maker))
	outgrow(s)
	testenv.Eventually(t, long, func() error {
		if pid := awaitMaking(s); pid == maker {
			return fmt.Errorf("PID %d has the slot yet", maker)
		}
		return nil
	})
	end()
	s.f = followAll(t, s.nats, bare("t"))
	s.converge()
}

// newReader captures, as a role that may not make publications, a table of one
// that is there.
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

// Where sessions fail before they come to the slot, it is given up all the same.
func TestWAL_SlotOfSessionsThatFail_I9(t *testing.T) {
	s := newReader(t)
	s.whileAway("DROP PUBLICATION " + slotOf(s.db))
	outgrow(s)
	s.b.logged("BRIDGE_SLOT_MAX_LAG", "slot dropped", "nobody read it")
	s.run("CREATE PUBLICATION "+slotOf(s.db)+" FOR TABLE t", "DELETE FROM t WHERE id = 1")
	s.converge()
}

// Where none of the relations can be captured nobody reads the slot: it, too, is
// given up when it keeps more than BRIDGE_SLOT_MAX_LAG.
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

// A slot is made only for a relation that is captured.
func TestWAL_NoSlotWithoutARelation_I9(t *testing.T) {
	s := newReader(t)
	s.b.Kill()
	s.run("ALTER PUBLICATION " + slotOf(s.db) + " DROP TABLE t")
	dropSlot(t, s.conn, s.db)
	s.b.start()
	s.b.awaitReason("t", "publication")
	testenv.Eventually(t, long, func() error {
		if n := s.b.metric(`lockstep_bridge_relation_errors_total{relation="public.t"}`); n < 3 {
			return fmt.Errorf("tried %d times", n)
		}
		return nil
	})
	if s.slots("true") != 0 {
		t.Error("there is a slot, and nobody who needs it")
	}
	s.run("ALTER PUBLICATION "+slotOf(s.db)+" ADD TABLE t", "DELETE FROM t WHERE id = 1")
	s.converge()
}

// The limit holds while the bridge has yet to reach the broker.
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
