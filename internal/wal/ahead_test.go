package wal_test

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/internal/wal"
)

// The broker has lost the end of a stream, which the WAL that the slot has continues. Clients may hold that end, and meet
// its transactions again: no heartbeat stands among them.
func TestCapture_LostEndComesAgainWithoutHeartbeats_I2(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)")
	conn := testenv.Conn(t, db)
	a, b := newMemory(), newMemory()
	capturing(t, db, wal.Options{HoldFor: time.Hour}, map[string]*memory{"a": a, "b": b})
	// beat waits for a heartbeat that stands for all that was committed before.
	beat := func(m *memory) (end uint64) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "SELECT (pg_current_wal_lsn() - '0/0')::int8").Scan(&end); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, long, func() error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.pos.Heartbeat == nil || m.pos.Heartbeat.LSN < end {
				return fmt.Errorf("no heartbeat of %d or later", end)
			}
			return nil
		})
		return end
	}
	beat(a)
	beat(b)
	b.mu.Lock()
	b.broken = errors.New("broken") // and holds the slot
	b.mu.Unlock()
	testenv.Exec(t, db, "INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (1)")
	beat(a)
	a.mu.Lock()
	pos, rows := a.pos, maps.Clone(a.rows)
	a.mu.Unlock()
	// So many that a session that sends heartbeats when it may sends some among them.
	const last = 30_000
	for _, sql := range []string{
		"SET synchronous_commit = off",
		fmt.Sprintf("DO $$ BEGIN FOR i IN 2..%d LOOP INSERT INTO a VALUES (i); COMMIT; END LOOP; END $$", last),
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	lost := beat(a)
	a.mu.Lock()
	a.broken = errors.New("the broker is away")
	a.mu.Unlock()
	testenv.Exec(t, db, "INSERT INTO a VALUES (0)")
	a.awaitRefusal(t)
	a.mu.Lock()
	a.broken, a.pos, a.rows, a.beats = nil, pos, rows, nil
	a.mu.Unlock()
	beat(a)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.rows) != last+1 {
		t.Errorf("got %d rows, want %d", len(a.rows), last+1)
	}
	if a.beats[0] < lost {
		t.Errorf("a heartbeat of %d, but a client may hold rows up to %d", a.beats[0], lost)
	}
}

// A relation that fails each time soon after it began waits until the others have read what was there when the session
// began: none of that is kept before, and a new session would read it again.
func TestCapture_BrokenRelationLetsOthersCatchUp_I10(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY, t text)", "CREATE TABLE b (id int PRIMARY KEY)")
	conn := testenv.Conn(t, db)
	a, b := newMemory(), newMemory()
	capturing(t, db, wal.Options{HoldFor: time.Hour, RetryMax: 500 * time.Millisecond}, map[string]*memory{"a": a, "b": b})
	a.awaitBeat(t)
	b.awaitBeat(t)
	a.mu.Lock()
	a.broken = errors.New("the broker is away")
	a.mu.Unlock()
	b.mu.Lock()
	b.poisoned = "1"
	b.mu.Unlock()
	for _, sql := range []string{
		"INSERT INTO b VALUES (1)",
		// Sixteen times what the session takes at once.
		"DO $$ BEGIN FOR i IN 1..1600 LOOP INSERT INTO a VALUES (i, repeat('x', 40000)); COMMIT; END LOOP; END $$",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	a.awaitRefusal(t)
	a.mu.Lock()
	a.broken, a.beats, a.slow = nil, nil, 3*time.Millisecond // some seconds for all
	a.mu.Unlock()
	a.awaitBeat(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	// A session that reads the backlog again stores its first row again. How often the sink was asked to begin does not
	// tell: a relation that fails is also tried by itself.
	if n := a.times["1"]; n != 1 {
		t.Errorf("the backlog's first row came %d times before all of it was read, want once", n)
	}
}

// awaitBeat waits for the first of beats.
func (m *memory) awaitBeat(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.beats) == 0 {
			return errors.New("no heartbeat")
		}
		return nil
	})
}

// awaitRefusal waits until the session has met the broken sink.
func (m *memory) awaitRefusal(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.refused == 0 {
			return errors.New("nothing was refused")
		}
		return nil
	})
}
