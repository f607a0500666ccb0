package wal_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/internal/wal"
)

// Where long transactions follow each other so fast that the session, with all it has, is always within one, heartbeats
// stand between them nevertheless: they move the clients' positions and the slot.
func TestCapture_HeartbeatsBetweenLongTransactions_I2(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE t (id int PRIMARY KEY)")
	conn := testenv.Conn(t, db)
	const transactions, rows = 7, 1000 // less than what is taken at once
	last := strconv.Itoa((transactions-1)*rows + 1)
	m := newMemory()
	reached, release := make(chan struct{}), make(chan struct{})
	var before, between int
	m.onRow = func(key string) {
		m.mu.Lock()
		beats := len(m.beats)
		m.mu.Unlock()
		switch {
		case key == "0":
			close(reached)
			<-release
		case key == "1":
			before = beats
		case key == last:
			between = beats - before
		case strings.HasSuffix(key, "0"):
			time.Sleep(time.Millisecond) // a busy broker
		}
	}
	slot := capturing(t, db, wal.Options{}, map[string]*memory{"t": m})
	m.awaitBeat(t)
	testenv.Exec(t, db, "INSERT INTO t VALUES (0)")
	<-reached
	for i := range transactions {
		testenv.Exec(t, db, fmt.Sprintf("INSERT INTO t SELECT generate_series(%d, %d)", rows*i+1, rows*i+rows))
	}
	var end string
	if err := conn.QueryRow(t.Context(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, long, func() error {
		var sent bool
		err := conn.QueryRow(t.Context(), `SELECT sent_lsn >= $2::pg_lsn FROM pg_stat_replication
			JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = $1`, slot, end).Scan(&sent)
		if err == nil && !sent {
			err = errors.New("not sent")
		}
		return err
	})
	close(release)
	testenv.Eventually(t, long, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if n := len(m.rows); n <= rows*transactions {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
	m.mu.Lock() // the session's goroutine writes between before a row is counted
	defer m.mu.Unlock()
	if between == 0 {
		t.Error("no heartbeat between the first transaction and the last")
	}
}
