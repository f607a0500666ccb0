package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// Debezium's connector for Postgres was found to lose rows in the ways of these tests. They are named by its reports. The
// bridge must lose no row in any of them.

// DBZ-5739: a slot that was made again begins after what is missing.
func TestWAL_DBZ5739_SlotMadeAgain_I7(t *testing.T) {
	s := newScene(t, 100)
	s.stop()
	run(t, s.conn, "DELETE FROM t WHERE id = 1", "UPDATE t SET v = 'unseen' WHERE id = 2")
	dropSlot(t, s.conn, s.db)
	run(t, s.conn, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", slotOf(s.db)))
	s.b.start()
	s.f.converge(s.conn)
	s.b.logged("after the stream's end")
}

// DBZ-5915: other transactions commit in the middle of a long one. A restart at such a place skips the rest of it.
func TestWAL_DBZ5915_RestartsAmongInterleavedTransactions_I7(t *testing.T) {
	s := newScene(t, 10)
	other := connect(t, s.db)
	for i := range 3 {
		end := s.f.caughtUp()
		run(t, s.conn, "BEGIN", fmt.Sprintf("INSERT INTO t SELECT g, 'long' FROM generate_series(%d, %d) g", 100_000*(i+1), 100_000*(i+1)+6000))
		run(t, other, fmt.Sprintf("UPDATE t SET v = 'short %d' WHERE id = 1", i), fmt.Sprintf("DELETE FROM t WHERE id = %d", i+5))
		run(t, s.conn, fmt.Sprintf("UPDATE t SET v = 'end of the long one %d' WHERE id = 2", i), "COMMIT")
		run(t, other, fmt.Sprintf("UPDATE t SET v = 'after it %d' WHERE id = 3", i))
		s.f.await("row in the middle", end+uint64(1000+1500*i), func(m seen) bool { return m.kind == stream.KindRow })
		s.stop()
		s.b.start()
	}
	s.f.converge(s.conn)
}

// DBZ-7816, DBZ-9149: rows are confirmed when they are handed over, before they are stored.
func TestWAL_DBZ7816_OnlyWhatIsStoredIsConfirmed_I7(t *testing.T) {
	s := newScene(t, 10)
	s.broker.Pause()
	run(t, s.conn, "INSERT INTO t SELECT g, 'never stored' FROM generate_series(100, 2000) g", "DELETE FROM t WHERE id = 1")
	at := uint64(query[int64](t, s.conn, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"))
	// The walsender has sent it all, and waits for more.
	testenv.Eventually(t, long, func() error {
		if query[int](t, s.conn, "SELECT count(*)::int FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = $1 AND r.sent_lsn - '0/0' >= $2", slotOf(s.db), at) == 0 {
			return fmt.Errorf("Postgres has not sent everything")
		}
		return nil
	})
	if got := confirmed(t, s.conn, s.db); got >= at {
		t.Errorf("the slot is confirmed up to %d, although the broker has stored nothing since before %d", got, at)
	}
	s.b.Kill()
	s.f.stop()
	s.broker.Kill()
	s.broker.Start()
	s.b.start()
	s.f = follow(t, testenv.NATSConn(t, s.broker.URL()), bare("t"))
	s.f.converge(s.conn)
}

// DBZ-8312: rows come while the connector is being restarted.
func TestWAL_DBZ8312_RestartsWhileRowsCome_I7(t *testing.T) {
	s := newScene(t, 100)
	stop := writeOn(t, s.db, 100)
	for i := range 4 {
		s.f.await("row", s.f.last()+20, func(m seen) bool { return m.kind == stream.KindRow })
		if i%2 == 0 {
			s.stop()
		} else {
			s.b.Kill()
		}
		s.b.start()
	}
	stop()
	s.f.converge(s.conn)
}

// DBZ-2288: a transaction is open while the slot is made or the table is added. It commits after the snapshot of the first
// load.
func TestWAL_DBZ2288_TransactionOpenAtTheHandOver_I1(t *testing.T) {
	s := newScene(t, 10)
	newBare(t, s.db, "u", 100)
	run(t, s.conn, "BEGIN", "INSERT INTO u VALUES (1000, 'written before it was published')", "DELETE FROM u WHERE id = 5", "UPDATE u SET v = 'too' WHERE id = 6")
	s.b.setTables("t(capture=wal),u(capture=wal)")
	s.b.restart()
	other := connect(t, s.db)
	testenv.Eventually(t, long, func() error {
		if query[int](t, other, "SELECT count(*)::int FROM pg_publication_tables WHERE pubname = $1 AND tablename = 'u'", slotOf(s.db)) == 0 {
			return fmt.Errorf("u is not published")
		}
		return nil
	})
	run(t, other, "UPDATE u SET v = 'meanwhile' WHERE id = 7")
	run(t, s.conn, "INSERT INTO u VALUES (1001, 'written after')", "COMMIT")
	g := follow(t, testenv.NATSConn(t, s.broker.URL()), bare("u"))
	g.converge(s.conn)
}

// DBZ-1730: after a restart the newest transaction is taken for the next one, and those between are skipped.
func TestWAL_DBZ1730_NoTransactionIsSkipped_I7(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 1)
	conn := connect(t, db)
	run(t, conn, "ALTER TABLE t REPLICA IDENTITY FULL")
	b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	rel := bare("t")
	rel.log = true
	f := followAll(t, broker.URL(), rel)
	f.heartbeat(conn)
	for i := range 60 {
		if i%20 == 10 {
			b.Kill()
		}
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'change %d.' WHERE id = 1", i))
		if i%20 == 19 {
			b.start()
			f.heartbeat(conn)
		}
	}
	f.heartbeat(conn)
	all := strings.Join(f.versions(`"id":1`), "")
	for i := range 60 {
		if !strings.Contains(all, fmt.Sprintf("change %d.", i)) {
			t.Errorf("change %d is missing", i)
		}
	}
}

// dbz#2058: a transaction has a logical message of another program in its middle.
func TestWAL_DBZ2058_MessagesInsideOfTransactions_I7(t *testing.T) {
	s := newScene(t, 10)
	for i := range 3 {
		run(t, s.conn, "BEGIN", fmt.Sprintf("INSERT INTO t VALUES (%d, 'before the message')", 100+i), "SELECT pg_logical_emit_message(true, 'else', '12 34')",
			fmt.Sprintf("INSERT INTO t VALUES (%d, 'after the message')", 200+i), "COMMIT", "SELECT pg_logical_emit_message(false, 'else', 'x')")
		s.b.restart()
		run(t, s.conn, fmt.Sprintf("UPDATE t SET v = 'the next %d' WHERE id = %d", i, 200+i))
		s.f.converge(s.conn)
	}
}

// dbz#1554: the rows of one COPY share a place in the WAL.
func TestWAL_DBZ1554_RowsOfOneCopy_I7(t *testing.T) {
	s := newScene(t, 10)
	for i := range 2 {
		var rows [][]any
		for n := range 5000 {
			rows = append(rows, []any{1000 + 10_000*i + n, "copied"})
		}
		end := s.f.caughtUp()
		if _, err := s.conn.CopyFrom(t.Context(), pgx.Identifier{"t"}, []string{"id", "v"}, pgx.CopyFromRows(rows)); err != nil {
			t.Fatal(err)
		}
		s.f.await("row in the middle", end+2000, func(m seen) bool { return m.kind == stream.KindRow })
		s.b.restart()
	}
	s.f.converge(s.conn)
}

// dbz#1863: only tables change that are not captured. A restart reads nothing again, and the slot moves.
func TestWAL_DBZ1863_OnlyOtherTablesChange_I7(t *testing.T) {
	s := newScene(t, 100)
	run(t, s.conn, "CREATE TABLE other (id int)")
	begun := confirmed(t, s.conn, s.db)
	for i := range 3 {
		run(t, s.conn, "INSERT INTO other SELECT generate_series(1, 1000)")
		s.b.restart()
		run(t, s.conn, fmt.Sprintf("DELETE FROM t WHERE id = %d", i+1))
		s.f.converge(s.conn)
	}
	if n := len(s.f.messages(stream.KindRow, 0)); n > 110 {
		t.Errorf("%d rows were sent for 100 rows and 3 deletes, want at most 110", n)
	}
	testenv.Eventually(t, long, func() error {
		if confirmed(t, s.conn, s.db) == begun {
			return fmt.Errorf("the slot did not move")
		}
		return nil
	})
}
