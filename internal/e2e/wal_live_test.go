package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// A first load arrives, and then inserts, updates, deletes, a change of a key, and a TRUNCATE, all in one epoch.
func TestWAL_LoadsThenFollows_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 10_000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	b.awaitReady()
	run(t, conn, "INSERT INTO t VALUES (0, 'new')", "UPDATE t SET v = 'changed' WHERE id <= 3", "DELETE FROM t WHERE id = 4",
		"UPDATE t SET id = 20000 WHERE id = 5")
	f.converge(conn)
	run(t, conn, "TRUNCATE t", "INSERT INTO t VALUES (1, 'after')")
	f.converge(conn)
	f.wantEpochs(1, b)
}

// A transaction that stays open keeps since from moving. The metric lag_transactions says by how much.
func TestWAL_OpenTransactionShowsAsLag(t *testing.T) {
	s := newScene(t, 3)
	run(t, connect(t, s.db), "BEGIN", "SELECT pg_current_xact_id()")
	const others = 20
	for range others {
		run(t, s.conn, "SELECT pg_current_xact_id()")
	}
	testenv.Eventually(t, long, func() error {
		if n := s.b.metric(`lockstep_bridge_lag_transactions{relation="public.t"}`); n < others {
			return fmt.Errorf("since lags by %d transactions, and the metric says %d", others, n)
		}
		return nil
	})
}

// A bridge is stopped while rows come. It logs no warning about that.
func TestWAL_StopsWithoutAWarning(t *testing.T) {
	s := newScene(t, 3)
	writer, done := connect(t, s.db), make(chan struct{})
	go func() { // until its connection is closed
		defer close(done)
		for i := 1; ; i++ {
			if _, err := writer.Exec(t.Context(), "INSERT INTO t (id) SELECT g FROM generate_series($1::int, $2::int) g", i*1000, i*1000+999); err != nil {
				return
			}
		}
	}()
	select {
	case <-t.Context().Done():
	case <-time.After(300 * time.Millisecond):
	}
	s.b.stop()
	run(t, s.conn, fmt.Sprintf("SELECT pg_terminate_backend(%d)", writer.PgConn().PID()))
	<-done
	_, after, ok := strings.Cut(s.b.Stderr(), `"stopping"`)
	if !ok || strings.Contains(after, `"level":"warn"`) {
		t.Errorf("want no warning after \"stopping\", got the log %s", after)
	}
}
