package poller_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"bridge/internal/poller"
	"bridge/internal/source"
	"bridge/internal/testenv"

	"github.com/rs/zerolog"
)

// watched is a watcher that runs, and the server it looks at.
func watched(t *testing.T, url string) (w *poller.Watcher, server func() string) {
	t.Helper()
	pool, err := source.Open(source.Server{URL: url}, 1)
	if err != nil {
		t.Fatal(err)
	}
	w = poller.NewWatcher(pool, 20*time.Millisecond, zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; pool.Close() })
	return w, func() string {
		c, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
		return source.ConnectionOf(c).Server
	}
}

// awaitStill waits until a relation that is polled again each time it is not still
// rests.
func awaitStill(t *testing.T, w *poller.Watcher, server string) (still func() bool) {
	t.Helper()
	stop := func() {}
	testenv.Eventually(t, testenv.Patience(), func() error {
		stop()
		wake := poller.NewWake()
		still, stop = w.Rest(wake, server)
		after(t, w, time.Now())
		if !still() {
			return errors.New("the relation is not still")
		}
		return nil
	})
	t.Cleanup(stop)
	return still
}

// after waits for a look that began after the time.
func after(t *testing.T, w *poller.Watcher, at time.Time) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if !w.Looked().After(at) {
			return errors.New("no look since")
		}
		return nil
	})
}

// A relation rests until a transaction ends, also one that was prepared before the
// poll, and one that began before another that ended first.
func TestWatcher_WakesWhenATransactionEnds_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	pg := testenv.NewCluster(t, "max_prepared_transactions=5")
	db := pg.Database()
	testenv.Exec(t, db, "CREATE TABLE t (id int)")
	w, server := watched(t, db)
	early, prepared := testenv.Conn(t, db), testenv.Conn(t, db)
	for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)"} {
		if _, err := early.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (2)", "PREPARE TRANSACTION 'p'"} {
		if _, err := prepared.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for name, end := range map[string]func(){
		"one statement":        func() { testenv.Exec(t, db, "INSERT INTO t VALUES (3)") },
		"prepared transaction": func() { testenv.Exec(t, db, "COMMIT PREPARED 'p'") },
		"early transaction": func() {
			if _, err := early.Exec(t.Context(), "COMMIT"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		still := awaitStill(t, w, server())
		end()
		after(t, w, time.Now())
		if still() {
			t.Errorf("I1: after %s the relation still rests", name)
		}
	}
}

// After a crash of Postgres the same snapshot may show other rows: asynchronous
// commits are lost, and their transaction IDs are given out again. So a relation
// is not still, even if the snapshot's text is what it was.
func TestWatcher_SameSnapshotAfterACrash_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	pg := testenv.NewCluster(t)
	db := pg.Database()
	w, server := watched(t, db)
	const snapshot = "SELECT pg_current_snapshot()::text"
	for range 5 {
		testenv.Exec(t, db, "CHECKPOINT")
		still := awaitStill(t, w, server())
		before := ask(t, db, snapshot)
		pg.Kill()
		pg.Start()
		if ask(t, db, snapshot) != before {
			continue // something of Postgres itself took an ID
		}
		after(t, w, time.Now())
		if ask(t, db, snapshot) == before {
			if still() {
				t.Error("I1: after a crash the relation still rests")
			}
			return
		}
	}
	t.Error("after no crash the snapshot was what it was before: the test shows nothing")
}

// A relation whose server can't be looked at does not rest.
func TestWatcher_WakesAllWithoutPostgres_I10(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	pg := testenv.NewCluster(t)
	w, server := watched(t, pg.Database())
	still := awaitStill(t, w, server())
	wake := poller.NewWake()
	_, stop := w.Rest(wake, server())
	defer stop()
	pg.Kill()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if still() || !wake.Woken() {
			return errors.New("the relation rests")
		}
		return nil
	})
}

func ask(t *testing.T, url, sql string) string {
	t.Helper()
	conn := testenv.Conn(t, url)
	defer conn.Close(t.Context())
	var text string
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}
