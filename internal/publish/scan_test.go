package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/testenv"
	"bridge/lockstep"
)

// scan returns the rows that Scan gives, as key@txid. It marks deleted and
// oversize rows.
func (w *writer) scan(t *testing.T) []string {
	t.Helper()
	var got []string
	err := w.Scan(t.Context(), func(r capture.StoredRow) error {
		text := fmt.Sprintf("%s@%d", r.Key[0], r.Txid)
		if r.Deleted {
			text += " deleted"
		}
		if r.Oversize {
			text += " oversize"
		}
		if (r.Data == nil) != r.Oversize {
			t.Errorf("%s has the data %q", text, r.Data)
		}
		got = append(got, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func deleted(id int, txid uint64) capture.Change {
	c := change(id, txid, "")
	c.Line = lockstep.AppendRowTail(fmt.Appendf(lockstep.AppendRowHead(nil, txid, txid, true), `{"id":%d}`, id))
	return c
}

// TestPublish_Scan: Scan gives each live and deleted row once, in the stream's
// order. It covers everything sent before it was called, even if it is not stored
// yet.
func TestPublish_Scan(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	if err := w.Scan(t.Context(), nil); err == nil {
		t.Error("a scan without an epoch")
	}
	w.begin(t)
	if got := w.scan(t); len(got) != 0 {
		t.Errorf("got %q from a stream without rows", got)
	}
	for id := range 5 {
		w.mustRow(t, id, uint64(10+id))
	}
	w.mustRow(t, 1, 20)
	for _, c := range []capture.Change{deleted(2, 21), change(3, 22, strings.Repeat("y", 2<<20))} {
		if err := w.Row(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	w.mustHeartbeat(t, 30)
	// A comparison knows what the oversize row was.
	_, data, _ := lockstep.Parts(change(3, 22, strings.Repeat("y", 2<<20)).Line)
	if r, err := w.Get(t.Context(), change(3, 22, "").Key); err != nil || !bytes.Equal(r.Comparable(), capture.Comparable(data)) {
		t.Errorf("got %+v, %v, want the digest of the oversize row's data", r, err)
	}
	want := []string{"0@10", "4@14", "1@20", "2@21 deleted", "3@22 oversize"}
	if got := w.scan(t); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	stop := errors.New("enough")
	if err := w.Scan(t.Context(), func(capture.StoredRow) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the callback's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Scan(ctx, func(capture.StoredRow) error { return nil }); err == nil {
		t.Error("a scan whose context has ended")
	}
}

// once fails the test if a key came twice.
func once(t *testing.T, rows []string) {
	t.Helper()
	seen := map[string]bool{}
	for _, row := range rows {
		key, _, _ := strings.Cut(row, "@")
		if seen[key] {
			t.Fatalf("key %s came twice", key)
		}
		seen[key] = true
	}
}

// TestPublish_ScanGivesARowOnce: new versions that are on their way to the stream
// replace the old ones before Scan reads anything.
func TestPublish_ScanGivesARowOnce(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	const keys = 1000
	for round := range uint64(20) {
		for id := range keys {
			w.mustRow(t, id, 10+round)
		}
		rows := w.scan(t)
		once(t, rows)
		if len(rows) != keys {
			t.Errorf("got %d rows, want %d", len(rows), keys)
		}
	}
}

// TestPublish_ScanBesideWrites: Scan ends although rows are stored all the time,
// and gives no key twice.
func TestPublish_ScanBesideWrites(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	const keys = 1000
	w.begin(t)
	for id := range keys {
		w.mustRow(t, id, 10)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.rewrite(keys, stop) }()
	for range 5 {
		once(t, w.scan(t))
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// rewrite writes the keys again and again until stop is closed. It pauses, so
// that the broker can keep up with it and with the readers.
func (w *writer) rewrite(keys int, stop chan struct{}) error {
	for i := 0; ; i++ {
		if i%100 == 0 {
			select {
			case <-stop:
				return nil
			case <-time.After(2 * time.Millisecond):
			}
		}
		if err := w.Row(context.Background(), change(i%keys, 20, "new")); err != nil {
			return err
		}
	}
}

// TestPublish_OversizeRowMayFitLater: a broker that takes larger messages than it did when it refused a row may take that row
// now. So the row equals nothing: a comparison must look at it again. (Issue 14, number 9.)
func TestPublish_OversizeRowMayFitLater(t *testing.T) {
	t.Parallel()
	broker := testenv.NATSProcess(t, testenv.NATSConfig{MaxPayload: 1 << 20})
	c := change(3, 22, strings.Repeat("y", 2<<20))
	_, data, _ := lockstep.Parts(c.Line)
	same := func(w *writer) bool {
		t.Helper()
		r, err := w.Get(t.Context(), c.Key)
		if err != nil || !r.Oversize {
			t.Fatalf("got %+v, %v, want an oversize row", r, err)
		}
		return bytes.Equal(r.Comparable(), capture.Comparable(data))
	}
	w := newWriter(t, broker.URL(), "a")
	w.begin(t)
	if err := w.Row(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	w.mustHeartbeat(t, 30)
	if !same(w) {
		t.Error("the broker is the same, and so is the row")
	}
	broker.Stop()
	larger := testenv.NATSProcess(t, testenv.NATSConfig{MaxPayload: 4 << 20})
	larger.Stop()
	larger.ReplaceStore(broker.CopyStore())
	larger.Start()
	w = newWriter(t, larger.URL(), "a")
	w.begin(t)
	if same(w) {
		t.Error("the broker takes more now, and the row counts as the same")
	}
}

// TestScan_SilentConsumerIsGivenUp_I8: in a cluster, the broker may put a consumer on a server whose copy of the stream lacks
// the end, and does not get it. What reads the stream does not wait there for ever: no heartbeat comes meanwhile.
func TestScan_SilentConsumerIsGivenUp_I8(t *testing.T) {
	t.Parallel()
	w := startWriter(t, testenv.NATS(t).URL(), "a", publish.Options{Timing: publish.Timing{StoredWithin: time.Second}})
	w.begin(t)
	w.mustRow(t, 1, 5)
	w.broker.mute.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience())
	defer cancel()
	if rows, _, err := w.Suspects(ctx, 1, capture.Page{}, 10); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "sent no message") {
		t.Errorf("got %v, %v, want an error that says what is missing", rows, err)
	}
	w.broker.mute.Store(false)
	if rows, _, err := w.Suspects(ctx, 1, capture.Page{}, 10); err != nil || len(rows) != 1 {
		t.Errorf("then got %v, %v, want one row", rows, err)
	}
}
