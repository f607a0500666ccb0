package publish_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
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
