package simtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Outcome is how a transaction ended.
type Outcome uint8

// Outcomes. Writers.Resolve replaces TxUnknown.
const (
	TxOpen Outcome = iota
	TxCommitted
	TxRolledBack
	TxUnknown
)

// Tx is one transaction of the workload.
type Tx struct {
	ID      int64
	Kind    string
	Era     int
	Async   bool // synchronous_commit is off: a crash may undo it
	Ops     []int64
	Outcome Outcome
	At      time.Duration
}

// Writers change the relations at random. Create them with NewWriters, then call Prepare and Run.
type Writers struct {
	// Static after construction.
	url     string
	n       int
	pause   time.Duration
	seed    uint64
	elapsed func() time.Duration
	// AsyncPercent is how many transactions in a hundred commit asynchronously.
	AsyncPercent int
	// Capture decides what the transactions may do. It is Poll unless it is set before Prepare.
	Capture Capture

	ids, ops, accounts atomic.Int64
	commits            atomic.Int64
	era                atomic.Int64
	async, storm       atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	txs      []*Tx
	prepared []*Tx // prepared transactions that have not ended
	kinds    map[string]int
}

// NewWriters returns n writers. Each pauses between two transactions, on average for pause.
func NewWriters(url string, n int, pause time.Duration, seed uint64, elapsed func() time.Duration) *Writers {
	w := &Writers{url: url, n: n, pause: pause, seed: seed, elapsed: elapsed, AsyncPercent: 10, Capture: Poll, kinds: map[string]int{}}
	w.accounts.Store(StartAccounts)
	return w
}

// Prepare creates the schema and the first rows.
func (w *Writers) Prepare(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, w.schema()); err != nil {
		return fmt.Errorf("create the schema: %w", err)
	}
	return w.do(ctx, conn, "fill", false, func(s *session) error {
		return s.exec(StartAccounts, fill, StartBalance, s.op(), StartAccounts)
	})
}

func (w *Writers) schema() string {
	switch {
	case w.Capture != WAL:
		return Schema
	case w.seed%2 == 1:
		return Schema + walSchema + walIdentity + ";" + notesSchema + "ALTER TABLE notes REPLICA IDENTITY FULL;"
	}
	return Schema + walSchema + notesSchema
}

// Crashed says that Postgres was killed. Connections from now on belong to the next era.
func (w *Writers) Crashed() { w.era.Add(1) }

// AsyncOnly makes all transactions commit asynchronously, until it is called with false. Then a crash undoes some of
// them: no synchronous commit flushes those before it.
func (w *Writers) AsyncOnly(yes bool) { w.async.Store(yes) }

// Storm makes all writers change many rows at a time without a pause, until it is called with false. Readers then fall
// behind, and messages that they have not yet read are replaced.
func (w *Writers) Storm(yes bool) { w.storm.Store(yes) }

// Commits returns how many transactions are known to be committed.
func (w *Writers) Commits() int { return int(w.commits.Load()) }

// Kinds returns how many transactions of each kind were committed.
func (w *Writers) Kinds() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]int{}
	for k, n := range w.kinds {
		out[k] = n
	}
	return out
}

// Run writes until ctx ends. Transactions may still be prepared then; Resolve ends them.
func (w *Writers) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range w.n {
		wg.Go(func() { w.write(ctx, rand.New(rand.NewPCG(w.seed, uint64(1000+i)))) })
	}
	wg.Wait()
}

// write is the loop of one writer.
func (w *Writers) write(ctx context.Context, rnd *rand.Rand) {
	var conn *pgx.Conn
	defer func() { disconnect(conn) }()
	for ctx.Err() == nil {
		if conn == nil || conn.IsClosed() {
			conn = w.connect(ctx)
			if conn == nil {
				sleep(ctx, 50*time.Millisecond)
				continue
			}
		}
		// A transaction that has begun goes on until its end, even if ctx ends.
		w.transaction(context.WithoutCancel(ctx), conn, rnd)
		if !w.storm.Load() {
			sleep(ctx, time.Duration(rnd.ExpFloat64()*float64(w.pause)))
		}
	}
}

// eras is the key under which a connection keeps its era.
const eras = "simtest.era"

// connect returns a connection, or nil if Postgres is away.
func (w *Writers) connect(ctx context.Context) *pgx.Conn {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	era := w.era.Load()
	cfg, err := pgx.ParseConfig(w.url)
	if err != nil {
		return nil
	}
	cfg.RuntimeParams["lock_timeout"] = "100ms"
	cfg.RuntimeParams["deadlock_timeout"] = "50ms"
	cfg.RuntimeParams["statement_timeout"] = "10s"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil
	}
	// Crashed is called while Postgres is down. So if the era is the same before and after connecting, it is the
	// connection's.
	if w.era.Load() != era {
		disconnect(conn)
		return nil
	}
	conn.PgConn().CustomData()[eras] = int(era)
	return conn
}

func disconnect(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// session is one transaction while it is written.
type session struct {
	ctx  context.Context // the transaction's
	w    *Writers
	conn *pgx.Conn
	tx   *Tx
}

var errChanged = errors.New("a row was not as expected")

// op returns the number of a new statement, and records it.
func (s *session) op() int64 {
	op := s.w.ops.Add(1)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.tx.Ops = append(s.tx.Ops, op)
	return op
}

// exec runs a statement that must change this number of rows; -1 allows any number.
func (s *session) exec(rows int64, sql string, args ...any) error {
	tag, err := s.conn.Exec(s.ctx, sql, args...)
	if err == nil && rows >= 0 && tag.RowsAffected() != rows {
		err = errChanged
	}
	return err
}

// do runs one transaction to its end and records it.
func (w *Writers) do(ctx context.Context, conn *pgx.Conn, kind string, async bool, write func(*session) error) error {
	tx := w.begin(conn, kind, async)
	s := &session{ctx: ctx, w: w, conn: conn, tx: tx}
	if err := s.exec(-1, "BEGIN"); err != nil {
		w.end(tx, TxRolledBack)
		return err
	}
	err := write(s)
	if err == nil && async {
		err = s.exec(-1, "SET LOCAL synchronous_commit = off")
	}
	if err == nil {
		err = s.exec(1, "INSERT INTO commits VALUES ($1)", tx.ID)
	}
	if err != nil {
		_, _ = conn.Exec(ctx, "ROLLBACK")
		w.end(tx, TxRolledBack)
		return err
	}
	return s.commit("COMMIT")
}

func (s *session) commit(sql string) error {
	tag, err := s.conn.Exec(s.ctx, sql)
	switch {
	case err != nil:
		s.w.end(s.tx, TxUnknown)
	case tag.String() == "ROLLBACK":
		s.w.end(s.tx, TxRolledBack)
	default:
		s.w.end(s.tx, TxCommitted)
	}
	return err
}

func (w *Writers) begin(conn *pgx.Conn, kind string, async bool) *Tx {
	era, _ := conn.PgConn().CustomData()[eras].(int)
	tx := &Tx{ID: w.ids.Add(1), Kind: kind, Era: era, Async: async, At: w.elapsed()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.txs = append(w.txs, tx)
	return tx
}

func (w *Writers) end(tx *Tx, o Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if tx.Outcome = o; o == TxCommitted {
		w.kinds[tx.Kind]++
		w.commits.Add(1)
	}
}
