package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"bridge/internal/testenv"
)

// While the bridge is away, the slot is dropped, made again, or moved on by hand. What changed meanwhile, deletes too,
// reaches the stream all the same, and the log says what happened. (In Debezium's DBZ-5739 it was lost in silence.)
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
			t.Errorf("slot %s: incarnation %s became %s; want a new one: %t", c.name, incarnation, now, c.anew)
		}
		incarnation = f.incarnation
		if rows := f.end() - was; !c.anew && rows > 500 {
			t.Errorf("slot %s: %d messages for a few rows that differ, want at most 500", c.name, rows)
		}
	}
}

// The slot is dropped, three times, while the bridge reads it and rows are written. The bridge makes it again, and misses
// nothing.
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
				return fmt.Errorf("no session reads the slot")
			}
			return nil
		})
		b.awaitReady()
	}
	stop()
	f.converge(conn)
}

// Postgres invalidates the slot, because of max_slot_wal_keep_size. Later the slot keeps more than BRIDGE_SLOT_MAX_LAG.
// Each time the bridge says so, makes a new slot, and misses nothing.
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

// A walsender of a paused bridge still reads the slot. Another bridge logs its PID, and reads the slot when that session
// has ended.
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

// The slot with the bridge's name belongs to another database. The bridge does not stand by for it: it says whose slot it
// is, and is not ready. The other bridge goes on.
func TestWAL_SlotOfAnotherDatabase_I10(t *testing.T) {
	s := newScene(t, 10)
	other := s.cluster.Database()
	newBare(t, other, "t", 10)
	b := startBridge(t, other, testenv.NATS(t).URL(), "t(capture=wal)", "BRIDGE_NAME="+slotOf(s.db))
	b.awaitReason("t", "is of database "+databaseOf(s.db), "another BRIDGE_NAME")
	if r, err := b.readyz(); err != nil || r.Ready {
		t.Errorf("/readyz is %+v, %v; want not ready", r, err)
	}
	s.run("UPDATE t SET v = 'new' WHERE id = 3")
	s.f.converge(s.conn)
}

// Postgres can't decode the WAL that the slot needs: here because a file of it is gone, which nothing but a try shows. The
// bridge tries some times. Then it makes the slot again by itself, and nothing is missing at the end.
func TestWAL_SlotThatCannotBeDecoded_I7(t *testing.T) {
	s := newScene(t, 10)
	s.b.Kill()
	s.run("INSERT INTO t VALUES (100, 'while the bridge is away')", "DELETE FROM t WHERE id = 1")
	var file string
	if err := s.conn.QueryRow(t.Context(), "SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots WHERE slot_name = $1", slotOf(s.db)).Scan(&file); err != nil {
		t.Fatal(err)
	}
	for range 2 { // so that Postgres itself no longer needs the file
		s.run("SELECT pg_logical_emit_message(false, '', '')", "SELECT pg_switch_wal()", "CHECKPOINT")
	}
	if err := os.Remove(filepath.Join(s.cluster.Dir(), "pg_wal", file)); err != nil {
		t.Fatal(err)
	}
	s.run("INSERT INTO t VALUES (101, 'after the file was lost')")
	s.b.start()
	s.b.logged("making a new slot and comparing every relation")
	s.f.convergeLate(s.conn)
	s.run("UPDATE t SET v = 'and on' WHERE id = 2")
	s.f.converge(s.conn)
}
