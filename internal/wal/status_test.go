package wal_test

import (
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/internal/wal"
)

// Postgres hears of the bridge also while a huge transaction is held up for longer than it waits for a sign of life. Else
// it would end the connection, and the next session would meet the same transaction, and so for ever (I9).
func TestCapture_StatusFlowsInsideAHugeTransaction_I9(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	const timeout, rows = 4 * time.Second, 30_000 // of 1 KB each: many times what the inbox takes
	db := testenv.Postgres(t)
	u, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY, v text)", fmt.Sprintf("ALTER DATABASE %s SET wal_sender_timeout = '%s'", u.Path[1:], timeout))
	conn := testenv.Conn(t, db)
	m := newMemory()
	held, release := make(chan struct{}), make(chan struct{})
	m.onRow = func(key string) {
		if key != "1" {
			return
		}
		close(held)
		select {
		case <-release:
		case <-t.Context().Done():
		}
	}
	name := capturing(t, db, wal.Options{}, map[string]*memory{"a": m})
	m.awaitBeat(t)
	// walsender returns the PID of the process that sends, 0 for none, and when it last heard of the bridge.
	walsender := func() (pid int, heard time.Time) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), `
SELECT COALESCE(max(r.pid), 0), COALESCE(max(r.reply_time), 'epoch') FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE slot_name = $1`, name).Scan(&pid, &heard); err != nil {
			t.Fatal(err)
		}
		return pid, heard
	}
	before, _ := walsender()
	testenv.Exec(t, db, fmt.Sprintf("INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(1, %d) g", rows))
	select {
	case <-held:
	case <-time.After(long):
		t.Fatal("the transaction did not come")
	}
	begun := time.Now()
	testenv.Eventually(t, long, func() error {
		switch pid, heard := walsender(); {
		case pid != before:
			t.Fatalf("Postgres has ended the connection after %s", time.Since(begun))
		case heard.Sub(begun) < 3*timeout:
			return fmt.Errorf("it last heard of the bridge at %s, held since %s", heard, begun)
		}
		return nil
	})
	close(release)
	testenv.Eventually(t, long, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.rows) != rows {
			return fmt.Errorf("%d rows, want %d", len(m.rows), rows)
		}
		return nil
	})
	if after, _ := walsender(); after != before {
		t.Errorf("the rows came from process %d, after %d", after, before)
	}
}

// A relation's status says why the WAL can't be read now, also when it failed by itself before, for instance by the same
// broken connection: nothing else heals it. What failed of it alone is said, too.
func TestCapture_StatusSaysWhatEndedTheSession(t *testing.T) {
	own, ended := errors.New("own"), errors.New("ended")
	for _, tt := range []struct {
		name     string
		own, err error
		want     string
	}{
		{"the session alone", nil, ended, "ended"},
		{"both", own, ended, "ended; before that, of this relation alone: own"},
		{"the session ended for want of relations", own, wal.ErrNobody, "own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := wal.Shown(tt.own, tt.err)
			if got == nil || got.Error() != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}
