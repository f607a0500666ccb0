package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// Rows with a type that only the server can turn into JSON are read by SQL, in a look. A row that is written after the
// look's snapshot and before its marker in the WAL is never replaced by what the look saw (I4).
func TestWAL_LookNeverReplacesWhatIsNewer_I4(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn, lock := connect(t, db), connect(t, db)
	run(t, conn, append(heldSQL(),
		"CREATE TABLE t (id int PRIMARY KEY, n int, o odder)", "INSERT INTO t SELECT g, 0, NULL FROM generate_series(1, 9) g")...)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	run(t, lock, "SELECT pg_advisory_lock(7)")
	for i := 1; i <= 6; i++ {
		run(t, conn, fmt.Sprintf("UPDATE t SET o = 'a' WHERE id = %d", i))
	}
	awaitHeld(t, conn) // the look has its snapshot
	run(t, conn, "UPDATE t SET o = NULL, n = 1 WHERE id = 1", "DELETE FROM t WHERE id = 2", "UPDATE t SET id = 30, o = NULL WHERE id = 3", "UPDATE t SET id = 3 WHERE id = 9",
		"DELETE FROM t WHERE id = 4", "INSERT INTO t VALUES (4, 4, NULL)", "UPDATE t SET n = 5 WHERE id = 5")
	run(t, lock, "SELECT pg_advisory_unlock(7)")
	f.converge(conn)
	// The newer version is the last, and comes once.
	ns := f.versions(`"id":1,`)
	if want := `{"id":1,"n":1,"o":null}`; ns[len(ns)-1] != want || strings.Count(strings.Join(ns, ""), want) != 1 {
		t.Errorf("row 1 had the versions %s, want %s last, and once", ns, want)
	}
	b.running()
}

// heldSQL creates odderSQL's type so that a look of it takes its snapshot and then waits, as long as a session has
// advisory lock 7. It sleeps instead of waiting for the lock, because the bridge would give up a look that waits for one.
func heldSQL() []string {
	return append(odderSQL(), `CREATE OR REPLACE FUNCTION odd_json(odder) RETURNS json STABLE LANGUAGE plpgsql AS
		$$BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(7) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN to_json('odd ' || $1::text); END$$`)
}

// awaitHeld waits until a look has its snapshot and waits.
func awaitHeld(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		if query[int](t, conn, "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'") == 0 {
			return errors.New("no look waits")
		}
		return nil
	})
}

// While a look reads a row, the stream has an older version of it. An UPDATE comes that leaves a value alone. The bridge
// does not take the value from the stream.
func TestWAL_UnchangedWhileLookedAt_I12(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), append(heldSQL(), "CREATE TABLE t (id int PRIMARY KEY, a text, o odder)", "ALTER TABLE t ALTER a SET STORAGE EXTERNAL",
		fmt.Sprintf("INSERT INTO t SELECT 1, "+wide+", NULL", 1))...)
	s.f.converge(s.conn)
	lock := connect(t, s.db)
	run(t, lock, "SELECT pg_advisory_lock(7)")
	s.run(fmt.Sprintf("UPDATE t SET o = 'a', a = "+wide, 2))
	awaitHeld(t, s.conn)
	s.run("UPDATE t SET o = NULL")
	run(t, lock, "SELECT pg_advisory_unlock(7)")
	s.f.converge(s.conn)
}

// Rows are read again because a column's type changed, and the stream has their values in the old type. An UPDATE comes
// that leaves such a value alone. The bridge does not take it from the stream.
func TestWAL_UnchangedWhileReadAgain_I12(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), append(heldSQL(), "CREATE TABLE t (id int PRIMARY KEY, n int, a text, o odder)",
		fmt.Sprintf("INSERT INTO t SELECT g, 0, to_json("+wide+")::text, CASE WHEN g = 2 THEN 'a'::odder END FROM generate_series(1, 2) g", 1))...)
	s.f.converge(s.conn)
	lock := connect(t, s.db)
	run(t, lock, "SELECT pg_advisory_lock(7)")
	s.whileAway("ALTER TABLE t ALTER a TYPE jsonb USING a::jsonb")
	awaitHeld(t, s.conn)
	s.run("UPDATE t SET n = 1 WHERE id = 1")
	run(t, lock, "SELECT pg_advisory_unlock(7)")
	s.f.converge(s.conn)
}

// A look begins in the middle of a transaction that its snapshot does not show, because the commit waits for a standby.
// The look has not noted what the transaction changed before, and would bring the old row back. So it is void.
func TestWAL_LookInTheMiddleOfACommit_I4(t *testing.T) {
	needServers(t)
	c, broker := testenv.NewCluster(t, "synchronous_standby_names=nobody", "synchronous_commit=local"), testenv.NATS(t)
	db := c.Database()
	conn, other := connect(t, db), connect(t, db)
	run(t, conn, append(odderSQL(), "CREATE TABLE t (id int PRIMARY KEY, o odder)", "INSERT INTO t VALUES (1, 'a')")...)
	run(t, other, "SET synchronous_commit = on")
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	f.converge(conn)
	before := b.looks("done") + b.looks("again")
	done := make(chan error, 1) // the writer sends once; it may do so when the test has failed
	go func() {
		_, err := other.Exec(t.Context(), "UPDATE t SET o = 'b' WHERE id = 1")
		done <- err
	}()
	testenv.Eventually(t, long, func() error {
		if query[int](t, conn, "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == 0 {
			return errors.New("no commit waits")
		}
		return nil
	})
	testenv.Eventually(t, long, func() error { // the look is void, as it should be, or the bridge believes it
		if b.looks("done")+b.looks("again") == before {
			return errors.New("no look has ended while the commit waits")
		}
		return nil
	})
	run(t, conn, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") // it has committed here
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, long, func() error { return f.differs(conn) })
	f.converge(conn)
}

// looks returns how many looks ended with a result, by the metrics.
func (b *bridge) looks(result string) int {
	b.t.Helper()
	return b.metric(`lockstep_bridge_wal_looks_total{result="` + result + `"}`)
}

// Rows that need a look come without pause. If each look held back the position until the next one, the slot would never
// move. It moves.
func TestWAL_LooksWithoutEnd_I9(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), append(odderSQL(),
		// No look ends before the next change has come.
		`CREATE OR REPLACE FUNCTION odd_json(odder) RETURNS json STABLE LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.03); RETURN to_json('odd ' || $1::text); END$$`,
		"CREATE TABLE t (id int PRIMARY KEY, n int, o odder)", "INSERT INTO t SELECT g, 0, 'a' FROM generate_series(1, 10) g")...)
	s.f.converge(s.conn)
	const writers = 4
	stop, done := make(chan struct{}), make(chan error, writers) // each writer sends once
	for w := range writers {
		other := connect(t, s.db)
		go func() {
			for i := w; ; i += writers {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if _, err := other.Exec(t.Context(), "UPDATE t SET n = n + 1 WHERE id = $1", i%10+1); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for i := range 3 { // the first move may be from before the writers
		from := confirmed(t, s.conn, s.db)
		testenv.Eventually(t, long, func() error {
			if confirmed(t, s.conn, s.db) == from {
				return fmt.Errorf("the slot moved %d times, and now stays at %d", i, from)
			}
			return nil
		})
	}
	close(stop)
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	s.f.converge(s.conn)
}

// Keys that a first load has passed become suspect, and the bridge is killed while they wait for a look. What made them
// suspect comes again, so the next bridge reads them.
func TestWAL_KilledWithKeysToLookAt_I7(t *testing.T) {
	const n = 100_000 / min(scale, 2)
	needServers(t)
	s := newSceneIn(t, ownDatabase(t), "t(capture=wal)", bare("t"), "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)", "ALTER TABLE t REPLICA IDENTITY FULL",
		fmt.Sprintf("INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, %d) g", n))
	lock := connect(t, s.db)
	pid := query[int](t, lock, "SELECT pg_backend_pid()")
	testenv.Eventually(t, long, func() error {
		if end := s.f.end(); end < 8000 {
			return fmt.Errorf("the stream ends at %d", end)
		}
		return nil
	})
	// From here on no look can read the table: one lock follows the other.
	s.run("BEGIN", "LOCK TABLE t", "UPDATE t SET id = 3 - id WHERE id < 3")
	done := make(chan error, 1) // the locker sends once; it may do so when the test has failed
	go func() {
		_, err := lock.Exec(t.Context(), "BEGIN; LOCK TABLE t")
		done <- err
	}()
	testenv.Eventually(t, long, func() error {
		if query[int](t, s.conn, "SELECT count(*)::int FROM pg_locks WHERE pid = $1 AND NOT granted", pid) == 0 {
			return errors.New("no session waits for the second lock")
		}
		return nil
	})
	s.run("COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	at := s.f.end()
	if at > n {
		t.Fatal("the load has ended: the test shows nothing")
	}
	for range 4 { // the first may be from before the bridge read the swap
		at = s.f.await("announcement", at+1, func(s seen) bool { return s.kind == stream.KindBatch }).seq
	}
	s.b.Kill()
	run(t, lock, "ROLLBACK")
	s.b.start()
	s.f.convergeLate(s.conn)
}

// Rows that need a look come without pause, from before the first load on. The load still has its turns, and ends. It needs
// more than one turn, because the first may come before such a row. Looks take so long that the writer, even on a slow
// machine, has always written the next row.
func TestWAL_LoadAmongLooksWithoutEnd_I9(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, append(odderSQL(),
		`CREATE OR REPLACE FUNCTION odd_json(odder) RETURNS json STABLE LANGUAGE plpgsql AS $$
BEGIN IF $1 = 'a' THEN PERFORM pg_sleep(0.1); END IF; RETURN to_json('odd ' || $1::text); END$$`,
		"CREATE TABLE t (id int PRIMARY KEY, n int, o odder)", "INSERT INTO t SELECT g, 0, CASE WHEN g <= 10 THEN 'a' ELSE 'b' END::odder FROM generate_series(1, 300) g")...)
	stop, done := make(chan struct{}), make(chan error, 1) // the writer sends once
	go func() {
		other := connect(t, db)
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := other.Exec(t.Context(), "UPDATE t SET n = n + 1 WHERE id = $1", i%10+1); err != nil {
				done <- err
				return
			}
		}
	}()
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := followAll(t, broker.URL(), bare("t"))
	b.awaitReady()
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.converge(conn)
}
