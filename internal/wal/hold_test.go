package wal_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/testenv"
	"bridge/internal/wal"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

var long = testenv.Patience()

// memory is a sink that holds what it was given, the last version of each row by
// the first column of its key, and can be broken.
type memory struct {
	mu sync.Mutex
	// Guarded by mu.
	broken    error
	poisoned  string // the key of a row that can't be stored
	src       capture.Source
	pos       capture.Position
	stored    uint64
	rows      map[string][]byte
	announced []capture.Batch
	beats     []uint64 // the LSNs of heartbeats
	asked     int
	refused   int            // calls while it was broken
	times     map[string]int // how often a row of each key was stored
	slow      time.Duration  // what a row takes
	// onAnnounce, if not nil, is called first.
	onAnnounce func(capture.Batch) error
	// onRow, if not nil, is called first with a row's key.
	onRow func(key string)
}

func newMemory() *memory { return &memory{rows: make(map[string][]byte), times: make(map[string]int)} }

func (m *memory) do(f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken == nil {
		f()
	} else {
		m.refused++
	}
	return m.broken
}

func (m *memory) Begin(_ context.Context, src capture.Source, _ func()) (pos capture.Position, err error) {
	err = m.do(func() {
		if m.src.String() != src.String() { // not by Next
			m.restart()
		}
		m.src, pos = src, m.pos
	})
	return pos, err
}

// restart ends the incarnation.
func (m *memory) restart() {
	m.pos, m.stored = capture.Position{}, 0
	clear(m.rows)
}

func (m *memory) Schema(_ context.Context, schema []byte) error {
	return m.do(func() { m.pos.Schema = schema })
}

func (m *memory) Announce(_ context.Context, b capture.Batch) error {
	if m.onAnnounce != nil {
		if err := m.onAnnounce(b); err != nil {
			return err
		}
	}
	return m.do(func() { m.pos.Batch, m.stored, m.announced = &b, b.LSN, append(m.announced, b) })
}

func (m *memory) Row(_ context.Context, c capture.Change) error {
	key := string(c.Key[0])
	if m.onRow != nil {
		m.onRow(key)
	}
	poisoned, slow := false, time.Duration(0)
	err := m.do(func() {
		slow = m.slow
		if poisoned = key == m.poisoned; !poisoned {
			m.rows[key] = append([]byte(nil), c.Line...)
			m.times[key]++
		}
	})
	time.Sleep(slow)
	if poisoned {
		return errors.New("poisoned")
	}
	return err
}

func (m *memory) Heartbeat(_ context.Context, hb capture.Heartbeat) error {
	return m.do(func() {
		m.pos.Heartbeat, m.pos.Batch, m.stored = &hb, nil, hb.LSN
		m.beats = append(m.beats, hb.LSN)
	})
}

func (m *memory) Scan(_ context.Context, row func(capture.StoredRow) error) error {
	m.mu.Lock()
	rows := maps.Clone(m.rows)
	m.mu.Unlock()
	for key, line := range rows {
		deleted, data, _ := lockstep.Parts(line)
		if err := row(capture.StoredRow{Key: [][]byte{[]byte(key)}, Deleted: deleted, Data: data}); err != nil {
			return err
		}
	}
	return nil
}

// state returns the documents of the rows that there are.
func (m *memory) state() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := []string{}
	for _, line := range m.rows {
		if deleted, data, _ := lockstep.Parts(line); !deleted {
			list = append(list, string(data))
		}
	}
	slices.Sort(list)
	return list
}

func (m *memory) Suspects(context.Context, uint64, capture.Page, int) ([]capture.RowPosition, capture.Page, error) {
	return nil, capture.Page{}, nil
}

func (m *memory) Get(context.Context, [][]byte) (row *capture.StoredRow, err error) {
	err = m.do(func() { m.asked++ })
	return nil, err
}

func (m *memory) Yield(context.Context) {}

func (m *memory) Restart(context.Context, string, uint64) error { return m.do(m.restart) }

func (m *memory) Ended() <-chan struct{} { return nil }
func (m *memory) Stored() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored
}

// A relation that fails keeps the slot where its stream ends, and the others go
// on (I10); when that has lasted too long the slot moves on without it (I9), and
// when it comes back it is compared with its stream (I7).
func TestCapture_BrokenRelationHoldsTheSlotForAWhile_I10(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)", "INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (1)")
	conn := testenv.Conn(t, db)
	const holdFor = 3 * time.Second
	a, b := newMemory(), newMemory()
	name := capturing(t, db, wal.Options{HoldFor: holdFor}, map[string]*memory{"a": a, "b": b})
	awaitRow := func(m *memory, key string) {
		t.Helper()
		testenv.Eventually(t, long, func() error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.rows[key] == nil || m.pos.Heartbeat == nil {
				return fmt.Errorf("no row %s, or no heartbeat", key)
			}
			return nil
		})
	}
	confirmed := func() uint64 { return confirmedOf(t, conn, name) }
	awaitRow(a, "1")
	awaitRow(b, "1")
	b.mu.Lock()
	b.broken, b.announced = errors.New("broken"), nil
	ends := b.stored
	b.mu.Unlock()
	broke := time.Now()
	testenv.Exec(t, db, "INSERT INTO a VALUES (2)", "INSERT INTO b VALUES (2)", "DELETE FROM b WHERE id = 1")
	awaitRow(a, "2")
	testenv.Eventually(t, long, func() error {
		if at := confirmed(); at <= ends {
			return fmt.Errorf("the slot is at %d, and stays there", at)
		}
		return nil
	})
	if held := time.Since(broke); held < holdFor {
		t.Errorf("the slot has passed the end of a broken stream after %s", held)
	}
	b.mu.Lock()
	b.broken = nil
	b.mu.Unlock()
	awaitRow(b, "2")
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.announced) == 0 || !b.announced[0].Compare {
		t.Errorf("the stream was continued without a comparison: %+v", b.announced)
	}
}

// A relation that fails at one and the same row each time, and begins well each
// time, holds the slot no longer than one that does not begin (I9).
func TestCapture_RowThatCantBeStoredHoldsTheSlotForAWhile_I9(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY)", "INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (1)")
	conn := testenv.Conn(t, db)
	const holdFor = 3 * time.Second
	a, b := newMemory(), newMemory()
	b.poisoned = "2"
	name := capturing(t, db, wal.Options{HoldFor: holdFor, RetryMax: time.Second}, map[string]*memory{"a": a, "b": b})
	testenv.Eventually(t, long, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		if a.pos.Heartbeat == nil || b.pos.Heartbeat == nil {
			return errors.New("not loaded")
		}
		return nil
	})
	broke := time.Now()
	testenv.Exec(t, db, "INSERT INTO b VALUES (2)")
	var end int64
	if err := conn.QueryRow(t.Context(), "SELECT (pg_current_wal_lsn() - '0/0')::int8").Scan(&end); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, long, func() error {
		if at := confirmedOf(t, conn, name); at < uint64(end) {
			return fmt.Errorf("the slot is at %d, and stays there", at)
		}
		return nil
	})
	if held := time.Since(broke); held < holdFor {
		t.Errorf("the slot has passed a row that could not be stored after %s", held)
	}
	b.mu.Lock()
	b.poisoned = ""
	b.mu.Unlock()
	testenv.Eventually(t, long, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.rows["2"] == nil {
			return errors.New("no row 2")
		}
		return nil
	})
}

// capturing captures tables into memory until the test's end, and returns the
// slot's name.
func capturing(t *testing.T, db string, opt wal.Options, tables map[string]*memory) (name string) {
	t.Helper()
	return capturingTo(t, zerolog.Nop(), db, opt, tables)
}

// capturingTo is capturing with a logger.
func capturingTo(t *testing.T, log zerolog.Logger, db string, opt wal.Options, tables map[string]*memory) (name string) {
	t.Helper()
	pool, err := source.Open(source.Server{URL: db}, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	opt.Name, opt.HeartbeatInterval = slotOf(t, db), 100*time.Millisecond
	c := wal.New(pool, opt, wal.NewMetrics(nil), log)
	metrics := health.NewMetrics(nil)
	for table, sink := range tables {
		spec := relation.NewSpec(relation.Name{Schema: "public", Table: table})
		spec.Capture = relation.CaptureWAL
		c.Add(spec, sink, metrics)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return opt.Name
}

// slotOf names a slot after the database, which is the test's own.
func slotOf(t *testing.T, db string) string {
	t.Helper()
	u, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	return "slot_" + u.Path[1:]
}

// What an UPDATE leaves alone is asked of the stream once, not for each.
func TestCapture_RemembersUnchangedValues_I12(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY, n int, v text)", "ALTER TABLE a ALTER v SET STORAGE EXTERNAL", "INSERT INTO a VALUES (1, 0, repeat('old', 1000))")
	m := newMemory()
	capturing(t, db, wal.Options{}, map[string]*memory{"a": m})
	await := func(want string) {
		t.Helper()
		testenv.Eventually(t, long, func() error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if row := string(m.rows["1"]); !strings.Contains(row, want) || m.pos.Heartbeat == nil {
				return fmt.Errorf("no heartbeat, or the row is %.60s… and not with %.30s…", row, want)
			}
			return nil
		})
	}
	await(`"n":0`)
	testenv.Exec(t, db, "UPDATE a SET n = 1") // found by a look, as this stream knows nothing
	await(`"n":1,"v":"old`)
	for range 10 {
		testenv.Exec(t, db, "UPDATE a SET n = n + 1")
	}
	await(`"n":11,"v":"old`)
	testenv.Exec(t, db, "UPDATE a SET v = repeat('new', 1000)", "UPDATE a SET n = 12")
	await(`"n":12,"v":"new`)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked != 1 {
		t.Errorf("the stream was asked %d times, want once", m.asked)
	}
}

// A stream never says that it holds WAL which a crash of Postgres could take
// back: other commits would come in its place, and be skipped (I7).
func TestCapture_SaysOnlyWhatIsOnDisk_I7(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE w (n int)")
	asker, writer := testenv.Conn(t, db), testenv.Conn(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	if _, err := writer.Exec(ctx, "SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	writing.Go(func() {
		for ctx.Err() == nil {
			if _, err := writer.Exec(ctx, "INSERT INTO w VALUES (1)"); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	m := newMemory()
	said := make(chan error) // each session begins anew, as its first announcement fails
	m.onAnnounce = func(b capture.Batch) error {
		var flushed int64
		err := asker.QueryRow(ctx, "SELECT (pg_current_wal_flush_lsn() - '0/0')::int8").Scan(&flushed)
		if err == nil && b.LSN > uint64(flushed) {
			err = fmt.Errorf("it says %d, and only %d is on disk", b.LSN, flushed)
		}
		select {
		case said <- err:
		case <-ctx.Done():
		}
		return errors.New("not now")
	}
	capturing(t, db, wal.Options{}, map[string]*memory{"a": m})
	for range 5 {
		select {
		case err := <-said:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(long):
			t.Fatal("nothing was announced")
		}
	}
}

func confirmedOf(t *testing.T, conn *pgx.Conn, name string) uint64 {
	t.Helper()
	var at int64
	err := conn.QueryRow(t.Context(), "SELECT COALESCE((SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = $1), 0)", name).Scan(&at)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(at)
}
