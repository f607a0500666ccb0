package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// dropSlot drops the bridge's slot as soon as nobody reads it.
func dropSlot(t *testing.T, conn *pgx.Conn, db string) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slotOf(db))
		return err
	})
}

// While the bridge is away the slot is dropped, made again, or moved on by hand:
// what changed meanwhile, deletes among it, reaches the stream all the same, and
// the log says so (Debezium DBZ-5739, where it is lost in silence).
func TestWAL_SlotIsNotWhatItWas_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 3000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	incarnation := f.incarnation
	for i, c := range []struct {
		name, says string
		fault      func()
		anew       bool
	}{
		{"dropped", "it was not in the publication", func() { dropSlot(t, conn, db); run(t, conn, "DROP PUBLICATION "+slotOf(db)) }, false},
		{"dropped, with the publication left", "the slot was made again", func() { dropSlot(t, conn, db) }, false},
		{"made again", "somebody moved the slot", func() {
			dropSlot(t, conn, db)
			run(t, conn, "DELETE FROM t WHERE id = 2500", fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", slotOf(db)))
		}, true},
		{"advanced", "somebody moved the slot", func() {
			run(t, conn, "UPDATE t SET v = 'passed over' WHERE id = 2000")
			testenv.Eventually(t, long, func() error {
				_, err := conn.Exec(t.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", slotOf(db))
				return err
			})
		}, true},
	} {
		b.Kill()
		run(t, conn, fmt.Sprintf("DELETE FROM t WHERE id = %d", 10+i), fmt.Sprintf("UPDATE t SET v = 'before %d' WHERE id = %d", i, 20+i), fmt.Sprintf("INSERT INTO t VALUES (%d, 'x')", 5000+i))
		c.fault()
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'after %d' WHERE id = %d", i, 30+i))
		was := f.caughtUp()
		b.start()
		f.converge(conn)
		b.logged(c.says)
		if now := f.incarnation; (now != incarnation) != c.anew {
			t.Errorf("%s: incarnation %s became %s", c.name, incarnation, now)
		}
		incarnation = f.incarnation
		if rows := f.end() - was; !c.anew && rows > 500 {
			t.Errorf("%s: %d messages for a few rows that differ", c.name, rows)
		}
	}
}

// Under the bridge's feet: the slot is dropped while it is read.
func TestWAL_SlotDroppedWhileItIsRead_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 1000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	stop := writeOn(t, db, 1000)
	for range 3 {
		testenv.Eventually(t, long, func() error {
			_, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slotOf(db))
			return err
		})
		testenv.Eventually(t, long, func() error {
			if query[int](t, conn, "SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1 AND active", slotOf(db)) == 0 {
				return fmt.Errorf("the slot is not read")
			}
			return nil
		})
		b.awaitReady()
	}
	stop()
	f.converge(conn)
}

// A slot that Postgres has invalidated, because it may keep only so much WAL, is
// made anew; one that keeps more than BRIDGE_SLOT_MAX_LAG is given up.
func TestWAL_SlotLostOrGivenUp_I7(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t, "max_slot_wal_keep_size=32MB", "max_wal_size=64MB", "min_wal_size=32MB"), testenv.NATS(t)
	db := c.Database()
	newBare(t, db, "t", 1000)
	newBare(t, db, "noise", 0)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	b.Kill()
	run(t, conn, "DELETE FROM t WHERE id = 1", "UPDATE t SET v = 'unseen' WHERE id = 2")
	for query[string](t, conn, "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", slotOf(db)) != "lost" {
		run(t, conn, "INSERT INTO noise SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g", "TRUNCATE noise", "SELECT pg_switch_wal()", "CHECKPOINT")
	}
	b.start()
	b.logged("Postgres has removed WAL")
	f.converge(conn)
	b.Kill()
	run(t, conn, "DELETE FROM t WHERE id = 3", "UPDATE t SET v = 'unseen' WHERE id = 4", "INSERT INTO noise SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g")
	b.env = append(b.env, "BRIDGE_SLOT_MAX_LAG=16MiB")
	b.start()
	b.logged("BRIDGE_SLOT_MAX_LAG")
	f.converge(conn)
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

// A slot that another connection reads is waited for, and its PID named.
func TestWAL_OrphanWalsender(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	pid := query[int](t, conn, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", slotOf(db))
	b.Pause() // its walsender stays
	other := startWAL(t, db, broker.URL(), "t(capture=wal)")
	other.logged(fmt.Sprintf("PID %d", pid))
	run(t, conn, "UPDATE t SET v = 'meanwhile'", fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid))
	f.converge(conn)
	b.Resume()
	run(t, conn, "DELETE FROM t WHERE id < 5")
	f.converge(conn)
}

// A slot of the bridge's name that another database's bridge reads will never be
// its own: it does not stand by for it.
func TestWAL_SlotOfAnotherDatabase_I10(t *testing.T) {
	s := newScene(t, 10)
	other := testenv.Postgres(t)
	newBare(t, other, "t", 10)
	b := startBridge(t, other, testenv.NATS(t).URL(), "t(capture=wal)", "BRIDGE_NAME="+slotOf(s.db))
	b.awaitReason("t", "is of database "+databaseOf(s.db), "another BRIDGE_NAME")
	if r, err := b.readyz(); err != nil || r.Ready {
		t.Errorf("it is ready: %+v, %v", r, err)
	}
	s.run("UPDATE t SET v = 'new' WHERE id = 3")
	s.f.converge(s.conn)
}

// From polling to the WAL and back: stream, incarnation and every position stay.
func TestWAL_SwitchOfCapture_I3(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 2000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	incarnation := f.incarnation
	for i, tables := range []string{"t(capture=wal)", "t", "t(capture=wal)", "t(capture=wal)", "t"} {
		b.Kill()
		was := f.caughtUp()
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'away %d' WHERE id <= 10", i), fmt.Sprintf("INSERT INTO t (id, v) VALUES (%d, 'new')", 5000+i))
		if strings.Contains(tables, "wal") { // which sees what polling does not
			run(t, conn, fmt.Sprintf("DELETE FROM t WHERE id = %d", 100+i), fmt.Sprintf("UPDATE t SET id = %d WHERE id = %d", 9000+i, 200+i))
		}
		b.setTables(tables)
		b.start()
		f.converge(conn)
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'live %d' WHERE id <= 10", i))
		f.converge(conn)
		if f.incarnation != incarnation {
			t.Fatalf("switch %d: another incarnation", i)
		}
		if sent := f.end() - was; sent > 400 {
			t.Errorf("switch %d: %d messages for some 30 rows that changed", i, sent)
		}
	}
	b.logged("captured from the WAL before", "bridge reconcile", `"table":"t"`)
	b.logged("no relation has capture=wal", "pg_drop_replication_slot", `"slot":"`+slotOf(db)+`"`)
}

// bridge reconcile repairs what was done to the stream behind the bridge's back,
// and publishes nothing where nothing differs, while rows are written.
func TestWAL_Reconcile_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 1000)
	conn := connect(t, db)
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL()}
	stop := writeOn(t, db, 500)
	for range 3 {
		if code, out, stderr := command(t, env, "reconcile", "t"); code != 0 || !strings.Contains(out, "0 missing, 0 stale, 0 zombies") {
			t.Errorf("exit status %d, %s%s", code, out, stderr)
		}
	}
	s, err := f.js.Stream(t.Context(), f.layout.Stream)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []int{700, 800} {
		msg, err := s.GetLastMsgForSubject(t.Context(), fmt.Sprintf("lockstep.public.t.row.%d", id))
		if err == nil {
			err = s.DeleteMsg(t.Context(), msg.Sequence)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f.set(func() {
		for key := range f.rows {
			if strings.HasSuffix(key, ".700 ") || strings.HasSuffix(key, ".800 ") {
				delete(f.rows, key)
			}
		}
	})
	if code, out, stderr := command(t, env, "reconcile", "t"); code != 0 || !strings.Contains(out, "2 missing, 0 stale, 0 zombies, repaired") {
		t.Errorf("exit status %d, %s%s", code, out, stderr)
	}
	stop()
	f.converge(conn)
}
