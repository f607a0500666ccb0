package poller_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/poller"
	"bridge/internal/reconcile"
	"bridge/internal/source"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

// stored is a sink that holds the latest version of each row, as a stream does.
type stored struct {
	memory
	// beside, if not nil, is called at the end of each Scan, after all its rows,
	// with the scan's number.
	beside func(scan int)

	mu sync.Mutex
	// Guarded by mu. order has the keys of all rows in the order in which they
	// came, all has the rows.
	latest  map[string]capture.StoredRow
	order   []string
	all     []lockstep.Row
	scans   int
	standby chan struct{} // if not nil, Begin waits for it
}

func (s *stored) Begin(ctx context.Context, src capture.Source, standby func()) (capture.Position, error) {
	if s.standby != nil {
		standby()
		select {
		case <-s.standby:
		case <-ctx.Done():
			return capture.Position{}, ctx.Err()
		}
	}
	return s.memory.Begin(ctx, src, standby)
}

func (s *stored) Row(ctx context.Context, c capture.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	deleted, data, ok := lockstep.Parts(c.Line)
	if !ok {
		return fmt.Errorf("not a row: %s", c.Line)
	}
	key := string(c.Key[0])
	s.latest[key] = capture.StoredRow{Key: [][]byte{[]byte(key)}, Deleted: deleted, Data: bytes.Clone(data), Txid: c.Txid}
	s.order = append(s.order, key)
	m, err := lockstep.Decode(c.Line)
	if err == nil {
		s.all = append(s.all, *m.Row)
	}
	return err
}

func (s *stored) Scan(_ context.Context, row func(capture.StoredRow) error) error {
	s.mu.Lock()
	rows := slices.Collect(maps.Values(s.latest))
	s.scans++
	scan := s.scans
	s.mu.Unlock()
	for _, r := range rows {
		if err := row(r); err != nil {
			return err
		}
	}
	if s.beside != nil {
		s.beside(scan)
	}
	return nil
}

// lose removes a row without a message, as a broker's loss would.
func (s *stored) lose(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.latest, key)
}

// state returns the documents of the live rows, sorted.
func (s *stored) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, r := range s.latest {
		if !r.Deleted {
			list = append(list, string(r.Data))
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func (s *stored) rows() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// reconciled is a running poller with its table t (id, v) and its sink.
type reconciled struct {
	*poller.Poller
	t    *testing.T
	pool *source.Pool
	sink *stored
	conn *pgx.Conn
}

func startReconciled(t *testing.T, rows int, opt poller.Options, sink *stored) *reconciled {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE t (id bigint PRIMARY KEY, v text, txid bigint NOT NULL)", "CREATE INDEX ON t (txid)",
		"CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.txid := txid_current(); RETURN NEW; END$$",
		"CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION stamp()",
		fmt.Sprintf("INSERT INTO t SELECT g, 'v' FROM generate_series(1, %d) g", rows))
	pool, err := source.Open(source.Server{URL: db}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	opt.Spec = spec(t, "t")
	opt.Interval, opt.HeartbeatInterval = 10*time.Millisecond, 100*time.Millisecond
	sink.latest = map[string]capture.StoredRow{}
	p := poller.New(pool, sink, opt, poller.NewListener(pool, zerolog.Nop()), health.NewMetrics(nil), zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return &reconciled{Poller: p, t: t, pool: pool, sink: sink, conn: testenv.Conn(t, db)}
}

func (r *reconciled) run(statements ...string) {
	r.t.Helper()
	for _, s := range statements {
		if _, err := r.conn.Exec(r.t.Context(), s); err != nil {
			r.t.Fatalf("%s: %v", s, err)
		}
	}
}

// unstamped runs statements with triggers off, so that rows keep their txid.
func (r *reconciled) unstamped(statements ...string) {
	r.t.Helper()
	r.run("SET session_replication_role = replica")
	r.run(statements...)
	r.run("RESET session_replication_role")
}

// published waits until the sink holds everything that is visible now.
func (r *reconciled) published() {
	r.t.Helper()
	r.run("INSERT INTO t VALUES (0, clock_timestamp()::text) ON CONFLICT (id) DO UPDATE SET v = excluded.v")
	var mark string
	if err := r.conn.QueryRow(r.t.Context(), "SELECT v FROM t WHERE id = 0").Scan(&mark); err != nil {
		r.t.Fatal(err)
	}
	testenv.Eventually(r.t, testenv.Patience(), func() error {
		if !strings.Contains(r.sink.state(), mark) {
			return errors.New("the last row is not there")
		}
		return nil
	})
}

// same fails the test unless the sink's live rows are the relation's.
func (r *reconciled) same() {
	r.t.Helper()
	var want string
	err := r.conn.QueryRow(r.t.Context(), `SELECT coalesce(string_agg(d, ' ' ORDER BY d COLLATE "C"), '')
		FROM (SELECT row_to_json(x)::text AS d FROM (SELECT id, v FROM t) x) y`).Scan(&want)
	if err != nil {
		r.t.Fatal(err)
	}
	if got := r.sink.state(); got != want {
		r.t.Errorf("I1: the sink holds\n%s\nand the relation\n%s", got, want)
	}
}

func (r *reconciled) reconcile() reconcile.Counts {
	r.t.Helper()
	c, err := r.Reconcile(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}
