package simtest_test

import (
	"strings"
	"testing"
	"time"

	"bridge/internal/simtest"
	"bridge/internal/testenv"
)

// A bridge is killed when it has published a part of a transaction. The next one publishes the transaction again from
// its beginning, while the stream already has later rows of it. In the transaction a row takes another key, and
// another row takes the old key. The first row's large value is not in the WAL. It must arrive with its own large
// value, not with the other row's. No heartbeat comes before the whole transaction is there again.
func TestSchedule_TransactionPublishedAgain_I12(t *testing.T) {
	s := newSceneOf(t, simtest.WAL, 1)
	conn := testenv.Conn(t, s.URL)
	const rows = 20_000
	for id := 10; ; id += 10 {
		op := s.writers.Op()
		s.exec(conn, "UPDATE accounts SET blob = $1, op = $2 WHERE id = $3", strings.Repeat("own", 1000), op, id)
		s.row(op)
		s.exec(conn, "BEGIN")
		s.exec(conn, "UPDATE accounts SET id = id + 1000, op = $1 WHERE id = $2", s.writers.Op(), id)
		s.exec(conn, "INSERT INTO accounts (id, balance, op, blob) VALUES ($1, 0, $2, $3)", id, s.writers.Op(), strings.Repeat("other", 1000))
		op = s.writers.Op()
		s.exec(conn, "INSERT INTO accounts (id, balance, op) SELECT g + 10000 * $1::int, 0, $2 FROM generate_series(1, $3::int) g", id, op, rows)
		s.exec(conn, "COMMIT")
		s.row(op)
		s.Bridges[0].Kill()
		seen := 0
		for _, e := range s.client.Log.Events() {
			if e.Kind == simtest.RowSeen && e.Op == op {
				seen++
			}
		}
		s.Bridges[0].Start()
		s.beatSince(time.Now())
		if seen < rows {
			t.Logf("the bridge was killed when %d of %d rows were there", seen, rows)
			break
		}
		if id == 100 {
			t.Fatal("the bridge was never killed within the transaction")
		}
	}
	s.judge(10)
}

// A row was deleted, and the stream had the delete, before the broker lost its files. The new load does not show that
// the row is gone. So a client that saw the row and not its delete must read everything again.
func TestSchedule_BrokerStoreDeletedBehindADelete_I3(t *testing.T) {
	s := newSceneOf(t, simtest.WAL, 1)
	conn := testenv.Conn(t, s.URL)
	s.row(s.transfer(conn, 1, 2))
	s.beatSince(time.Now())
	s.exec(conn, "BEGIN")
	s.exec(conn, "UPDATE accounts SET balance = balance + (SELECT balance FROM accounts WHERE id = 50), op = $1 WHERE id = 1", s.writers.Op())
	s.exec(conn, "DELETE FROM accounts WHERE id = 50")
	s.exec(conn, "COMMIT")
	s.beatSince(time.Now().Add(2 * time.Second)) // by then the slot has moved on
	s.NATS.Kill()
	s.ReplaceStore("")
	s.NATS.Start()
	s.beatSince(time.Now())
	s.judge(60)
}

// The broker comes back with older files, which end in a heartbeat. The slot begins before that heartbeat, so the WAL
// continues the stream, and nothing in the stream shows that it was longer. A client that holds the lost end must see
// no heartbeat before it has the last of those transactions again, not even the heartbeat in the files.
func TestSchedule_BrokerLosesTheStreamsEnd_I2(t *testing.T) {
	s := newSceneWith(t, simtest.WAL, simtest.WAL.Tables(), 1)
	open, conn := testenv.Conn(t, s.URL), testenv.Conn(t, s.URL)
	s.exec(open, "BEGIN")
	s.txid(open) // holds back every since, so that the client is served immediately when it comes back
	s.row(s.transfer(conn, 1, 2))
	s.beatSince(time.Now())
	s.exec(conn, "ALTER TABLE orders RENAME TO gone") // from the next session on, the slot waits for this relation
	s.NATS.Kill()
	older := s.CopyStore()
	s.NATS.Start()
	s.beatSince(time.Now())
	var last int64
	for i := range 500 {
		last = s.transfer(conn, 1+i%50, 1+(i+7)%50)
	}
	s.row(last)
	s.NATS.Kill()
	s.ReplaceStore(older)
	s.NATS.Start()
	s.beatSince(time.Now())
	s.exec(open, "COMMIT")
	s.judge(20)
}
