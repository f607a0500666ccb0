package wal_test

import (
	"fmt"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/internal/wal"
)

const (
	// longValue is a value of longLength bytes; a look holds about a dozen.
	longValue  = "repeat('old', 60000)"
	longLength = 180_000
	// longRows is how many such rows capturingLongRows makes.
	longRows = 300
)

// capturingLongRows captures table a, whose rows are long, and waits until the
// stream has them. It returns the publication's name, too.
func capturingLongRows(t *testing.T, opt wal.Options) (db string, m *memory, name string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db, m = testenv.Postgres(t), newMemory()
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY, v text)", "ALTER TABLE a ALTER v SET STORAGE EXTERNAL",
		fmt.Sprintf("INSERT INTO a SELECT g, %s FROM generate_series(1, %d) g", longValue, longRows))
	name = capturing(t, db, opt, map[string]*memory{"a": m})
	awaitRows(t, m, longRows, longLength)
	return db, m, name
}

// awaitRows waits until the stream has so many rows of the length, and says that
// it is up to date.
func awaitRows(t *testing.T, m *memory, rows, length int) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		n := 0
		for _, line := range m.rows {
			if len(line) >= length {
				n++
			}
		}
		if n != rows || m.pos.Heartbeat == nil || m.pos.Batch != nil {
			return fmt.Errorf("%d rows of %d", n, rows)
		}
		return nil
	})
}

// A load of long rows asks Postgres for few at a time: what is asked for is
// sent, though a look holds only so much.
func TestCapture_LoadReadsLongRowsOnce(t *testing.T) {
	db, _, _ := capturingLongRows(t, wal.Options{})
	conn := testenv.Conn(t, db)
	// A session counts what it read when it ends, if not before.
	if _, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, long, func() error {
		var read int
		err := conn.QueryRow(t.Context(), "SELECT s.idx_scan FROM pg_class c JOIN pg_stat_all_tables s ON s.relid = c.reltoastrelid WHERE c.oid = 'a'::regclass").Scan(&read)
		switch {
		case err != nil:
			return err
		case read > 3*longRows: // once to store it, once to load it, and a few more
			t.Fatalf("%d values were read for a load of %d", read, longRows)
		case read < longRows:
			return fmt.Errorf("%d values read", read)
		}
		return nil
	})
}

// Suspect keys whose rows are together too long for one look are looked at in
// several (I9), all of them.
func TestCapture_LooksAtLongRows_I9(t *testing.T) {
	db, m, name := capturingLongRows(t, wal.Options{ShapeInterval: 100 * time.Millisecond})
	m.mu.Lock()
	clear(m.rows) // as if the stream had lost them
	m.mu.Unlock()
	testenv.Exec(t, db, fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE a", name), fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE a", name))
	awaitRows(t, m, longRows, longLength)
}
