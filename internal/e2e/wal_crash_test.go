package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A bridge is killed up to four times in the middle of its first load, while the table is written. Each time it goes on
// where it was, and misses nothing.
func TestWAL_KilledInTheMiddleOfItsLoad_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	const n = 60_000
	newBare(t, db, "t", n)
	conn := connect(t, db)
	stop := writeOn(t, db, n)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	for i := 1; i <= 4; i++ {
		begun := f.await(fmt.Sprintf("announcement %d, or the load's end", i), f.last()+1, func(s seen) bool { return s.kind == stream.KindBatch || s.kind == stream.KindHeartbeat })
		if begun.kind == stream.KindHeartbeat { // this test was slower than the bridge
			if i <= 2 {
				t.Fatal("the load ended before the second kill: the test shows nothing")
			}
			break
		}
		f.await("row", f.last()+2000, func(s seen) bool { return s.kind == stream.KindRow })
		b.restart()
	}
	b.awaitReady()
	stop()
	f.converge(conn)
	if n := len(f.messages(stream.KindHeartbeat, 0)); n == 0 {
		t.Error("the stream has no heartbeat")
	}
}

// SIGTERM or kill -9 ends the bridge at six places in transactions of many rows. Nothing is lost, because the slot is
// confirmed only up to what the stream holds.
func TestWAL_EndedInTheMiddleOfATransaction_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	for i := range 6 {
		end := f.caughtUp()
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'before %d' WHERE id = 1", i), fmt.Sprintf("INSERT INTO t SELECT g, 'v' FROM generate_series(%d, %d) g", 100_000*(i+1), 100_000*(i+1)+10_000),
			fmt.Sprintf("UPDATE t SET v = 'after %d' WHERE id = 2", i))
		f.await("row in the middle", end+uint64(1+1900*i), func(s seen) bool { return s.kind == stream.KindRow })
		if i%2 == 0 {
			b.Signal(syscall.SIGTERM)
			if _, err := b.Wait(20 * time.Second); err != nil {
				t.Fatal(err)
			}
		} else {
			b.Kill()
		}
		b.start()
	}
	f.converge(conn)
	b.Signal(syscall.SIGTERM)
	if _, err := b.Wait(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	run(t, conn, "DELETE FROM t WHERE id < 5")
	b.start()
	f.converge(conn)
}

// At any moment the stream holds everything up to the position to which the slot is confirmed. The slot moves on, also if
// nothing is written.
func TestWAL_SlotIsNeverAheadOfTheStream_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10)
	newBare(t, db, "quiet", 10)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal),quiet(capture=wal)")
	nc := testenv.NATSConn(t, broker.URL())
	f, g := follow(t, nc, bare("t")), follow(t, nc, bare("quiet"))
	f.converge(conn)
	g.converge(conn)
	stop := writeOn(t, db, 10)
	begun := confirmed(t, conn, db)
	for range 8 {
		at := begun
		testenv.Eventually(t, long, func() error { // the slot moves
			if now := confirmed(t, conn, db); now == at {
				return fmt.Errorf("the slot stays at %d", at)
			}
			return nil
		})
		at = confirmed(t, conn, db)
		begun = at
		for _, f := range []*follower{f, g} {
			f.caughtUp()
			if hb := f.messages(stream.KindHeartbeat, 0); hb[len(hb)-1].lsn < at {
				t.Fatalf("the slot is at %d, stream %s only at %d", at, f.layout.Stream, hb[len(hb)-1].lsn)
			}
		}
	}
	stop()
	// The slot moves also in an idle database.
	end := query[int64](t, conn, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
	testenv.Eventually(t, long, func() error {
		if at := confirmed(t, conn, db); at < uint64(end) {
			return fmt.Errorf("the slot is at %d, want %d", at, end)
		}
		return nil
	})
	b.running()
}

// The broker stands still. The bridge receives what is written meanwhile, and the slot waits until the broker has it.
func TestWAL_SlotWaitsForTheBroker_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newBare(t, db, "t", 10)
	conn := connect(t, db)
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	broker.Pause()
	stored := uint64(query[int64](t, conn, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"))
	run(t, conn, "UPDATE t SET v = 'while the broker stood still'")
	end, wait := query[string](t, conn, "SELECT pg_current_wal_lsn()::text"), time.Time{}
	testenv.Eventually(t, long, func() error {
		var sent bool
		var reply, now time.Time
		if err := conn.QueryRow(t.Context(), `SELECT r.sent_lsn >= $1::text::pg_lsn, coalesce(r.reply_time, 'epoch'), clock_timestamp()
			FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.database = current_database()`, end).Scan(&sent, &reply, &now); err != nil {
			return err
		}
		if !sent {
			return errors.New("the bridge has not received it")
		}
		if wait.IsZero() {
			wait = now
		}
		if !reply.After(wait) {
			return errors.New("the bridge has not answered since")
		}
		return nil
	})
	if at := confirmed(t, conn, db); at > stored {
		t.Errorf("the slot is at %d, and the stream had only what was before %d", at, stored)
	}
	broker.Resume()
	f.converge(conn)
}

// Postgres is restarted and killed, its walsender is terminated, the broker and the bridge are killed. After each of these
// the stream becomes equal to the relation by itself.
func TestWAL_RidesOutEverything_I7(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t), testenv.NATSProcess(t)
	db := c.Database()
	newBare(t, db, "t", 2000)
	newBare(t, db, "u", 10)
	b := startWAL(t, db, broker.URL(), "t(capture=wal),u(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(connect(t, db))
	terminate := func() {
		conn := connect(t, db)
		if !query[bool](t, conn, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", slotOf(db)) {
			t.Fatal("no walsender was terminated")
		}
	}
	faults := []func(){terminate, func() { c.Restart() }, func() { c.Kill(); c.Start() }, func() { broker.Kill(); broker.Start() }, b.restart, terminate}
	for i, fault := range faults {
		b.awaitReady()
		run(t, connect(t, db), fmt.Sprintf("UPDATE t SET v = 'before %d' WHERE id <= 1000", i), fmt.Sprintf("DELETE FROM t WHERE id = %d", i+1))
		if i == 3 { // the broker may lose what it has stored, so the follower begins again
			f.stop()
		}
		fault()
		run(t, connect(t, db), fmt.Sprintf("UPDATE t SET v = 'after %d' WHERE id BETWEEN 500 AND 1500", i), fmt.Sprintf("DELETE FROM t WHERE id = %d", i+1501))
		if i == 3 {
			f = follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
		}
		f.converge(connect(t, db))
	}
	if strings.Contains(b.Stderr(), "sesame") {
		t.Error("the log contains the password")
	}
}

// Of two bridges with one name, one reads the slot and writes every stream. The other stands by, logs the PID that reads
// the slot, and takes over when the first is killed.
func TestWAL_StandbyTakesOver_I6(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 100)
	conn := connect(t, db)
	a := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	b.logged("is read by the session with PID", "another bridge")
	b.awaitReady()
	a.Kill()
	run(t, conn, "DELETE FROM t WHERE id < 50", "INSERT INTO t VALUES (101, 'for the standby')")
	f.converge(conn)
	f.wantEpochs(2, a, b)
}

// The broker gets an older copy of its files. It lacks changes that clients have seen, deletes too, and the slot is past
// them. So a new incarnation begins, with a floor above everything that was shown.
func TestWAL_BrokerGoesBack_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newBare(t, db, "t", 1000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	f.stop()
	b.Kill()
	broker.Stop()
	copied := broker.CopyStore()
	broker.Start()
	b.start()
	run(t, conn, "INSERT INTO t VALUES (2000, 'seen')")
	f = follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	run(t, conn, "DELETE FROM t WHERE id IN (2000, 3)")
	f.converge(conn)
	end := query[int64](t, conn, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
	testenv.Eventually(t, long, func() error {
		if at := confirmed(t, conn, db); at < uint64(end) {
			return fmt.Errorf("the slot is at %d, want %d", at, end)
		}
		return nil
	})
	var shown uint64
	f.set(func() { shown = f.high })
	f.stop()
	b.Kill()
	broker.Stop()
	broker.ReplaceStore(copied)
	broker.Start()
	b.start()
	f = follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	if floor := f.floor(); floor < shown {
		t.Errorf("the floor is %d, want at least %d, which was shown: a client that saw row 2000 would keep it", floor, shown)
	}
	b.logged("new incarnation", "after the stream's end")
}
