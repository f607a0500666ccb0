package poller_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/poller"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

// shapeSQL creates a relation with an enum and a composite type, directly and
// inside domains, arrays and ranges.
var shapeSQL = []string{
	"CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TYPE empty AS ENUM ()", "CREATE TYPE moods AS RANGE (subtype = mood)",
	"CREATE DOMAIN feeling AS mood", "CREATE TYPE inner_t AS (f feeling[], n varchar(3))", "CREATE TYPE outer_t AS (i inner_t[])",
	`CREATE TABLE t (id bigint PRIMARY KEY, gone int, txid bigint NOT NULL DEFAULT txid_current(),
		m moods, o outer_t, e empty, c int)`,
	"ALTER TABLE t DROP gone", "CREATE INDEX ON t (txid)",
}

func schemaOf(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	rel, _, err := relation.Load(t.Context(), conn, spec(t, "t"))
	if err != nil {
		t.Fatal(err)
	}
	types, err := relation.LoadTypes(t.Context(), conn, rel.Columns)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := relation.Document(rel, types)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func spec(t *testing.T, name string) relation.Spec {
	t.Helper()
	specs, err := relation.ParseSpecs(name)
	if err != nil {
		t.Fatal(err)
	}
	return specs.List[0]
}

// The schema document shows every change that changes rows without their txids.
// Rows stay as they were only after new labels and changed constraints.
func TestSchema_TellsWhatChangesRows_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, shapeSQL...)
	conn := testenv.Conn(t, db)
	was := schemaOf(t, conn)
	const want = `{"relation":"public.t","columns":[` +
		`{"id":1,"name":"id","type":"bigint","nullable":false},` +
		`{"id":3,"name":"txid","type":"bigint","nullable":false},` +
		`{"id":4,"name":"m","type":"moods","nullable":true,"labels":["sad","ok"]},` +
		`{"id":5,"name":"o","type":"outer_t","nullable":true,"attributes":[{"id":1,"name":"i","type":"inner_t[]","attributes":[` +
		`{"id":1,"name":"f","type":"feeling[]","labels":["sad","ok"]},{"id":2,"name":"n","type":"character varying(3)"}]}]},` +
		`{"id":6,"name":"e","type":"empty","nullable":true,"labels":[]},` +
		`{"id":7,"name":"c","type":"integer","nullable":true}],"key":["id"],"txid":"txid"}`
	if was != want {
		t.Errorf("\n got %s\nwant %s", was, want)
	}
	for _, c := range []struct {
		change string
		same   bool
	}{
		{"ALTER TYPE mood ADD VALUE 'glad'", true},
		{"ALTER TABLE t ALTER c SET NOT NULL", true},
		{"ALTER TABLE t ALTER c DROP NOT NULL", true},
		{"ALTER TYPE mood ADD VALUE 'so so' BEFORE 'ok'", true},
		{"ALTER TYPE empty ADD VALUE 'first'", true},
		{"ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", false},
		{"ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'fine' TO 'sad'; ALTER TYPE mood RENAME VALUE 'x' TO 'fine'", false},
		{"ALTER TYPE inner_t RENAME ATTRIBUTE n TO k", false},
		{"ALTER TYPE inner_t ADD ATTRIBUTE n text CASCADE", false},
		{"ALTER TYPE inner_t DROP ATTRIBUTE n; ALTER TYPE inner_t ADD ATTRIBUTE n text", false},
		{"ALTER TYPE inner_t DROP ATTRIBUTE n", false},
		{"ALTER TABLE t DROP c; ALTER TABLE t ADD c int DEFAULT 7", false},
	} {
		for _, sql := range strings.Split(c.change, "; ") {
			testenv.Exec(t, db, sql)
		}
		is := schemaOf(t, conn)
		if is == was {
			t.Errorf("%s: does not show in %s", c.change, is)
		}
		if got := relation.SameRows([]byte(was), []byte(is)); got != c.same {
			t.Errorf("%s: rows are as before: %t, want %t", c.change, got, c.same)
		}
		was = is
	}
	for _, stored := range []string{
		"", "{", strings.Replace(was, `"id":1,`, "", 1), // the last is as older versions stored it
		strings.Replace(was, `"txid":`, `"later":1,"txid":`, 1),
		strings.Replace(was, `"labels":["first"]`, `"labels":["first","last"]`, 1),
		strings.Replace(was, `,"labels":["first"]`, "", 1), // another type of that name
	} {
		if stored == was {
			t.Fatal("the stored document is the new one")
		}
		if relation.SameRows([]byte(stored), []byte(was)) {
			t.Errorf("rows are as those of %q", stored)
		}
	}
}

// A session checks the catalog even if nothing is written. If the shape changed,
// it publishes the whole relation again.
func TestPoller_LooksAtTheShapeAgain_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, append(shapeSQL, "INSERT INTO t (id, m) VALUES (1, '[sad,ok]')")...)
	pool, err := source.Open(source.Server{URL: db}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	sink := &memory{}
	w := poller.NewWatcher(pool, 10*time.Millisecond, zerolog.Nop())
	p := poller.New(pool, sink, poller.Options{
		Spec: spec(t, "t"), Interval: 10 * time.Millisecond, HeartbeatInterval: time.Second, ShapeInterval: 50 * time.Millisecond, Watcher: w,
	}, poller.NewListener(pool, zerolog.Nop()), health.NewMetrics(nil), zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	watched := make(chan error, 1)
	go func() { watched <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; <-watched })
	sink.await(t, "[sad,ok]", 1)
	testenv.Exec(t, db, "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'")
	sink.await(t, "[sad,fine]", 2)
	testenv.Exec(t, db, "ALTER TYPE mood ADD VALUE 'glad'")
	sink.awaitSchema(t, `"labels":["sad","fine","glad"]`)
	testenv.Exec(t, db, "INSERT INTO t (id, m) VALUES (2, '[glad,glad]')")
	sink.await(t, "[glad,glad]", 3)
}

// memory is a sink that keeps what a session needs to go on. It keeps no
// announcements, so a session that ends in a batch begins the batch again.
type memory struct {
	mu sync.Mutex
	// Guarded by mu.
	pos  capture.Position
	rows []string
}

func (m *memory) change(change func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	return nil
}

func (m *memory) Begin(context.Context, capture.Source, func()) (pos capture.Position, err error) {
	return pos, m.change(func() { pos = m.pos })
}

func (m *memory) Schema(_ context.Context, schema []byte) error {
	return m.change(func() { m.pos.Schema = schema })
}

func (m *memory) Row(_ context.Context, c capture.Change) error {
	return m.change(func() { m.rows = append(m.rows, string(c.Line)) })
}

func (m *memory) Heartbeat(_ context.Context, hb capture.Heartbeat) error {
	return m.change(func() { m.pos.Heartbeat = &hb })
}

func (m *memory) Suspects(context.Context, uint64, capture.Page, int) ([]capture.RowPosition, capture.Page, error) {
	return nil, capture.Page{}, nil
}
func (m *memory) Announce(context.Context, capture.Batch) error             { return nil }
func (m *memory) Yield(context.Context)                                     {}
func (m *memory) Restart(context.Context, string, uint64) error             { return nil }
func (m *memory) Ended() <-chan struct{}                                    { return nil }
func (m *memory) Stored() uint64                                            { return 0 }
func (m *memory) Get(context.Context, [][]byte) (*capture.StoredRow, error) { return nil, nil }
func (m *memory) Scan(context.Context, func(capture.StoredRow) error) error { return nil }

// await waits for the nth row, which must contain the text.
func (m *memory) await(t *testing.T, text string, n int) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.rows) != n || !strings.Contains(m.rows[n-1], text) {
			return fmt.Errorf("got %q, want %d with %s at the end", m.rows, n, text)
		}
		return nil
	})
}

// awaitSchema waits for a schema document that contains the text.
func (m *memory) awaitSchema(t *testing.T, text string) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !strings.Contains(string(m.pos.Schema), text) {
			return fmt.Errorf("got %s, want %s in it", m.pos.Schema, text)
		}
		return nil
	})
}
