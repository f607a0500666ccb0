package simtest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/simtest"
	"bridge/internal/testenv"
)

// T9 takes its ID. T10 changes a row and commits. Then T9 changes the same row and commits. The later version has the
// lower txid, so the stream's order must decide.
func TestSchedule_LaterVersionWithLowerTxid_I4(t *testing.T) {
	s := newScene(t, 1)
	early, late := testenv.Conn(t, s.URL), testenv.Conn(t, s.URL)
	s.exec(early, "BEGIN")
	t9 := s.txid(early)
	op := s.transfer(late, 1, 2)
	t10 := s.row(op).Txid
	s.beatSince(time.Now())
	op = s.transfer(early, 1, 2)
	s.exec(early, "COMMIT")
	if got := s.row(op).Txid; got != t9 || got >= t10 {
		t.Errorf("got txid %d after %d, want the lower %d", got, t10, t9)
	}
	s.beatSince(time.Now())
	s.judge(60)
}

// A prepared transaction holds back every since until it ends, even through a crash of Postgres. Then its rows come.
func TestSchedule_PreparedTransaction_I3(t *testing.T) {
	s := newScene(t, 1)
	conn := testenv.Conn(t, s.URL)
	s.exec(conn, "BEGIN")
	undone := s.transfer(conn, 5, 6)
	s.exec(conn, "PREPARE TRANSACTION 'undone'")
	s.exec(conn, "BEGIN")
	prepared := s.txid(conn)
	op := s.transfer(conn, 1, 2)
	s.exec(conn, "PREPARE TRANSACTION 'late'")
	for range 3 {
		s.row(s.transfer(conn, 3, 4))
	}
	s.exec(conn, "ROLLBACK PREPARED 'undone'")
	s.KillPostgres()
	s.writers.Crashed()
	s.StartPostgres(t.Context())
	conn = testenv.Conn(t, s.URL)
	s.row(s.transfer(conn, 3, 4))
	if hb := s.beatSince(time.Now()); hb.Since > prepared {
		t.Errorf("a heartbeat's since is %d, but transaction %d is prepared", hb.Since, prepared)
	}
	s.exec(conn, "COMMIT PREPARED 'late'")
	if got := s.row(op).Txid; got != prepared {
		t.Errorf("got txid %d, want %d", got, prepared)
	}
	testenv.Eventually(t, heals, func() error {
		if hb := s.beatSince(time.Now().Add(-time.Second)); hb.Since <= prepared {
			return fmt.Errorf("a heartbeat's since is %d still", hb.Since)
		}
		return nil
	})
	for _, e := range s.client.Log.Events() {
		if e.Kind == simtest.RowSeen && e.Op == undone {
			t.Errorf("the client saw row %s of a transaction that was rolled back", e.Key)
		}
	}
	s.judge(60)
}

// Postgres loses IDs that it never flushed, and gives them out again, although a heartbeat's snapshot had shown them as
// ended. The rows of these transactions arrive nevertheless. No client was shown a since above them, also none that
// resumes (issue 14, number 11).
func TestSchedule_TxidsGivenOutAgain_I7(t *testing.T) {
	s := newScene(t, 1, "wal_writer_delay=10s")
	conn := testenv.Conn(t, s.URL)
	s.row(s.transfer(conn, 1, 2))
	for attempt := 1; ; attempt++ {
		s.exec(conn, "CHECKPOINT")
		var top uint64
		for range 2 {
			s.exec(conn, "BEGIN")
			top = s.txid(conn)
			s.exec(conn, "ROLLBACK")
		}
		s.await("a heartbeat whose snapshot shows what was rolled back", func(e simtest.Event) bool {
			sn, ok := s.Beats.Snapshot(e.Cursor)
			return e.Kind == simtest.HeartbeatSeen && ok && sn.Xmin > top
		})
		s.KillPostgres()
		s.writers.Crashed()
		s.StartPostgres(t.Context())
		conn = testenv.Conn(t, s.URL)
		e := s.row(s.transfer(conn, 3, 4))
		for _, seen := range s.client.Log.Events() {
			if seen.At < e.At && seen.Since > e.Txid && (seen.Kind == simtest.HeartbeatSeen || seen.Kind == simtest.RowSeen) {
				t.Fatalf("I5: since %d was shown before a row of transaction %d", seen.Since, e.Txid)
			}
		}
		if e.Txid <= top {
			t.Logf("transaction %d came again after %d, in attempt %d", e.Txid, top, attempt)
			break
		}
		// Something flushed the WAL meanwhile, perhaps a checkpoint.
		if attempt == 5 {
			t.Fatalf("after five crashes Postgres has given no txid out again; the last row has %d", e.Txid)
		}
	}
	s.beatSince(time.Now())
	s.judge(60)
}

// A writer is stopped in the middle of a batch, for longer than its lease. One of two standbys deposes it within
// seconds. When it wakes, it stores nothing of what it read before.
func TestSchedule_TwoStandbysAndAWokenWriter_I6(t *testing.T) {
	s := newScene(t, 3)
	conn := testenv.Conn(t, s.URL)
	const rows = 6_000
	s.exec(conn, "INSERT INTO accounts (id, balance, op) SELECT g, 0, $1 FROM generate_series(1001, 1000 + $2::int) g", s.writers.Op(), rows)
	update := func() int64 {
		op := s.writers.Op()
		s.exec(conn, "UPDATE accounts SET op = $1 WHERE id > 1000", op)
		return op
	}
	for range 2 {
		writer, took := s.depose(update, rows)
		if t.Logf("another bridge took over from %s after %v", writer.Name, took.Round(time.Millisecond)); took > 10*time.Second {
			t.Errorf("another bridge took over after %v, want 5 s or less", took)
		}
		writer.Resume()
		s.beatSince(time.Now().Add(2 * time.Second)) // give the old one time to try
	}
	s.judge(10)
}

// depose stops the writing bridge while it sends the rows of an update. It returns the stopped bridge, and how long it
// took until another one wrote.
func (s *scene) depose(update func() int64, rows int) (*simtest.Proc, time.Duration) {
	s.t.Helper()
	for range 10 {
		before := s.beatSince(time.Now())
		writer := s.writer()
		op := update()
		s.row(op)
		writer.Pause()
		paused := time.Now()
		seen := 0
		for _, e := range s.client.Log.Events() {
			if e.Kind == simtest.RowSeen && e.Op == op {
				seen++
			}
		}
		if seen >= rows {
			s.t.Log("the writer was stopped too late, trying again")
			writer.Resume()
			continue
		}
		update() // the rows that the stopped bridge has read are now out of date
		testenv.Eventually(s.t, time.Minute, func() error {
			if s.writer() == writer {
				return errors.New("no other bridge writes")
			}
			return nil
		})
		took := time.Since(paused)
		s.await("a heartbeat of another bridge", func(e simtest.Event) bool {
			return e.Kind == simtest.HeartbeatSeen && e.At > before.At && e.Cursor.Epoch != before.Cursor.Epoch
		})
		return writer, took
	}
	s.t.Fatal("the writer was never stopped within a batch")
	return nil, 0
}

// writer returns the bridge that began the last epoch, according to the logs.
func (s *scene) writer() *simtest.Proc {
	s.t.Helper()
	var writer *simtest.Proc
	newest := ""
	for _, b := range s.Bridges {
		for line := range strings.Lines(b.Stderr()) {
			if _, at, ok := strings.Cut(line, `"time":"`); ok && strings.Contains(line, `"epoch begun"`) && at >= newest {
				writer, newest = b, at
			}
		}
	}
	if writer == nil {
		s.t.Fatal("no bridge has begun an epoch")
	}
	return writer
}

// The broker loses its files while bridge and edge run. Everything heals from Postgres. Positions from before are
// served, or refused where rows may have been deleted for good.
func TestSchedule_BrokerStoreDeleted_I8(t *testing.T) {
	for _, c := range simtest.Captures() {
		t.Run(string(c), func(t *testing.T) { brokerLoss(t, c, func(s *scene) string { return "" }) })
	}
}

// The same with an older copy of the files. Bridge and edge must not simply go on from it.
func TestSchedule_BrokerStoreReplacedByAnOlderCopy_I8(t *testing.T) {
	for _, c := range simtest.Captures() {
		t.Run(string(c), func(t *testing.T) {
			brokerLoss(t, c, func(s *scene) string {
				s.NATS.Kill()
				older := s.CopyStore()
				s.NATS.Start()
				s.beatSince(time.Now().Add(time.Second))
				return older
			})
		})
	}
}

func brokerLoss(t *testing.T, c simtest.Capture, copied func(*scene) string) {
	s := newSceneOf(t, c, 2)
	stop := s.write()
	s.beatSince(time.Now())
	older := copied(s)
	s.NATS.Kill()
	s.ReplaceStore(older)
	s.NATS.Start()
	begun := time.Now()
	s.beatSince(begun)
	t.Logf("healed after %v", time.Since(begun).Round(time.Millisecond))
	s.beatSince(time.Now())
	stop()
	if err := s.writers.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.judge(60)
}
