package poller_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/poller"
	"bridge/internal/reconcile"
	"bridge/internal/testenv"
)

// Reconcile finds, repairs and counts what no poll sees, while polls go on. A
// second comparison finds nothing and publishes nothing.
func TestPoller_ReconcileFindsWhatNoPollSees_I1(t *testing.T) {
	r := startReconciled(t, 3000, poller.Options{}, &stored{})
	r.published()
	r.unstamped("DELETE FROM t WHERE id IN (3, 4)", "UPDATE t SET id = 5000 WHERE id = 5", "UPDATE t SET v = 'unstamped' WHERE id <= 2 AND id > 0")
	r.sink.lose("7")
	if got, want := r.reconcile(), (reconcile.Counts{Rows: 2999, Missing: 2, Stale: 2, Zombie: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r.same()
	before := r.sink.rows()
	if got, want := r.reconcile(), (reconcile.Counts{Rows: 2999}); got != want || r.sink.rows() != before {
		t.Errorf("got %+v and %d rows, want %+v and none", got, r.sink.rows()-before, want)
	}
}

// After the comparison has read both sides and before it repairs, the suspect keys
// are written again and published, and others too. What the comparison saw does
// not count then: the repair looks again (I4).
func TestPoller_ReconcileLooksAgain_I4(t *testing.T) {
	sink := &stored{}
	r := startReconciled(t, 100, poller.Options{}, sink)
	r.published()
	r.unstamped("DELETE FROM t WHERE id IN (11, 12)", "UPDATE t SET v = 'unstamped' WHERE id IN (21, 22, 23)",
		"INSERT INTO t SELECT g, 'unseen', 3 FROM generate_series(201, 203) g")
	sink.beside = func(scan int) {
		if scan != 2 { // the second scan is the last: it compares key by key
			return
		}
		r.run("INSERT INTO t VALUES (11, 'back')", "UPDATE t SET v = 'newer' WHERE id IN (21, 201)", "DELETE FROM t WHERE id IN (22, 202)",
			"INSERT INTO t VALUES (301, 'new')", "UPDATE t SET v = 'newer' WHERE id = 301")
		r.published()
		r.run("DELETE FROM t WHERE id = 301", "UPDATE t SET v = 'newest' WHERE id = 21", "DELETE FROM t WHERE id = 11", "INSERT INTO t VALUES (11, 'again')")
		r.published()
	}
	got := r.reconcile()
	// Polls brought 11, 21 and 201; 12, 22 and 202 are gone.
	if want := (reconcile.Counts{Rows: 102, Missing: 1, Stale: 1, Zombie: 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r.published()
	if state := sink.state(); !strings.Contains(state, `{"id":301,`) {
		t.Errorf("301 was never suspect, and is in the sink until the next comparison: %s", state)
	}
	sink.beside = nil
	if got := r.reconcile(); got.Zombie != 1 || got.Differ() != 1 {
		t.Errorf("got %+v, want the zombie 301", got)
	}
	r.same()
}

// A row that is suspect only because it was written between the two reads is not
// counted and not published once more.
func TestPoller_ReconcileSparesWhatWasWrittenMeanwhile(t *testing.T) {
	sink := &stored{}
	r := startReconciled(t, 100, poller.Options{}, sink)
	r.published()
	sink.beside = func(int) {
		r.run("UPDATE t SET v = v || '+' WHERE id BETWEEN 1 AND 10", "INSERT INTO t SELECT max(id) + 1, 'new' FROM t")
		r.published()
	}
	r.unstamped("UPDATE t SET v = 'unstamped' WHERE id = 50")
	got := r.reconcile()
	if got.Stale != 1 || got.Differ() != 1 {
		t.Errorf("got %+v, want the one stale row", got)
	}
	n := 0
	for _, key := range sink.order {
		if key == "1" {
			n++
		}
	}
	if want := 1 + sink.scans; n != want {
		t.Errorf("row 1 was published %d times, was written %d times", n, want)
	}
	r.same()
}

// If the relation is locked when a page must be repaired, the repair waits as
// polls do. Here the transaction that holds the lock also writes a row. The repair
// sees that row, and the batch after the repair brings it. So what the repair
// publishes before it must show no since above that row's txid.
func TestPoller_ReconcilePromisesNoMore_I5(t *testing.T) {
	sink := &stored{}
	r := startReconciled(t, 100, poller.Options{}, sink)
	r.published()
	lock := testenv.Conn(t, r.conn.Config().ConnString())
	var late uint64
	committed := make(chan error, 1)
	sink.beside = func(scan int) {
		if scan != 2 {
			return
		}
		if _, err := lock.Exec(t.Context(), "BEGIN; LOCK TABLE t; DELETE FROM t WHERE id = 5; UPDATE t SET v = 'late' WHERE id = 1"); err != nil {
			t.Error(err)
		}
		if err := lock.QueryRow(t.Context(), "SELECT txid_current()").Scan(&late); err != nil {
			t.Error(err)
		}
		r.run("SELECT txid_current()", "SELECT txid_current()")
		time.AfterFunc(300*time.Millisecond, func() {
			_, err := lock.Exec(context.Background(), "COMMIT")
			committed <- err
		})
	}
	r.unstamped("DELETE FROM t WHERE id = 4", "UPDATE t SET v = 'unstamped' WHERE id IN (5, 6)")
	if got, want := r.reconcile(), (reconcile.Counts{Rows: 100, Stale: 1, Zombie: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := <-committed; err != nil {
		t.Error(err)
	}
	r.published()
	r.same()
	var since uint64
	for _, row := range sink.all {
		if row.Txid == late && since > late {
			t.Errorf("a since of %d was shown before the row of transaction %d", since, late)
		}
		since = max(since, row.Since)
	}
}

// Only a few relations of a process are compared at the same time.
func TestPoller_ReconcilesAreFewAtOnce_I9(t *testing.T) {
	r := startReconciled(t, 10, poller.Options{}, &stored{})
	r.published()
	for range cap(r.pool.Comparisons) {
		r.pool.Comparisons <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := r.Reconcile(ctx); !errors.Is(err, context.DeadlineExceeded) || r.sink.scans > 0 {
		t.Errorf("got %v after %d scans, want it to wait", err, r.sink.scans)
	}
	for range cap(r.pool.Comparisons) {
		<-r.pool.Comparisons
	}
	r.reconcile()
	if n := len(r.pool.Comparisons); n != 0 {
		t.Errorf("%d places were not given back", n)
	}
}

func TestPoller_ReconcileSaysWhyNot(t *testing.T) {
	sink := &stored{standby: make(chan struct{})}
	r := startReconciled(t, 10, poller.Options{}, sink)
	testenv.Eventually(t, testenv.Patience(), func() error {
		if _, err := r.Reconcile(t.Context()); !errors.Is(err, reconcile.ErrStandby) {
			return fmt.Errorf("got %v, want ErrStandby", err)
		}
		return nil
	})
	close(sink.standby)
	r.published()
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan struct{}, 2)
	sink.beside = func(int) {
		entered <- struct{}{}
		<-ctx.Done()
	}
	first := make(chan error, 1)
	r.unstamped("DELETE FROM t WHERE id = 4")
	go func() {
		_, err := r.Reconcile(ctx)
		first <- err
	}()
	<-entered
	if _, err := r.Reconcile(t.Context()); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second one at the same time: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("its context ended: %v", err)
	}

	ended := make(chan struct{})
	sink.beside = func(scan int) {
		select {
		case <-ended:
			return
		default:
			close(ended)
		}
		r.run("ALTER TABLE t ADD another int", "UPDATE t SET v = 'x' WHERE id = 1") // ends the session
		testenv.Eventually(t, testenv.Patience(), func() error {
			if !strings.Contains(sink.state(), "another") {
				return errors.New("the next session has published nothing yet")
			}
			return nil
		})
	}
	if _, err := r.Reconcile(t.Context()); err == nil || !strings.Contains(err.Error(), "session ended") {
		t.Errorf("its session ended: %v", err)
	}
	r.run("ALTER TABLE t DROP txid")
	testenv.Eventually(t, testenv.Patience(), func() error {
		if _, err := r.Reconcile(t.Context()); err == nil || !strings.Contains(err.Error(), "not being captured") || !strings.Contains(err.Error(), "txid") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
}

// Periodic comparisons repair without a request.
func TestPoller_ReconcilesFromTimeToTime_I1(t *testing.T) {
	sink := &stored{}
	r := startReconciled(t, 10, poller.Options{ReconcileInterval: 100 * time.Millisecond}, sink)
	r.published()
	for id := range 3 {
		r.run(fmt.Sprintf("DELETE FROM t WHERE id = %d", id+1))
		testenv.Eventually(t, testenv.Patience(), func() error {
			if strings.Contains(sink.state(), fmt.Sprintf(`{"id":%d,`, id+1)) {
				return errors.New("the deleted row is still there")
			}
			return nil
		})
	}
	r.same()
}
