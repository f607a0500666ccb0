package publish_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/testenv"
)

// wantLost fails the test unless the error says that the connection was lost. nats.go
// itself speaks of a full buffer, or of a deadline.
func wantLost(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "the connection to the broker was lost") || strings.Contains(err.Error(), "nats:") {
		t.Errorf("%s: got %v, want an error that says that the connection was lost", what, err)
	}
}

// TestPublish_LostConnection (I8): when the broker is killed while rows are sent, the
// fault says that the connection was lost. The next Begin waits until the connection is
// back, and needs no second try.
func TestPublish_LostConnection(t *testing.T) {
	t.Parallel()
	broker := testenv.NATSProcess(t)
	w := newWriter(t, broker.URL(), "a")
	for round := range 3 {
		w.begin(t)
		id := 0
		w.mustRow(t, id, uint64(10*round+1))
		broker.Kill()
		testenv.Eventually(t, testenv.Patience(), func() error {
			id++
			err := w.Row(t.Context(), change(id, uint64(10*round+2), "x"))
			if !errors.Is(err, publish.ErrFault) {
				return fmt.Errorf("the writer was not told: %v", err)
			}
			wantLost(t, "a row", err)
			return nil
		})
		begun := make(chan error, 1)
		go func() {
			_, err := w.Begin(t.Context(), source, func() {})
			begun <- err
		}()
		broker.Start()
		if err := <-begun; err != nil {
			t.Errorf("the first try after the loss: %v", err)
		}
	}
}

// TestPublish_LostAnswer (I8): an answer that was awaited when the connection was lost
// is not awaited any longer, and what was awaited does no harm to the next epoch.
func TestPublish_LostAnswer(t *testing.T) {
	t.Parallel()
	broker := testenv.NATSProcess(t)
	w := newWriter(t, broker.URL(), "a")
	w.begin(t)
	w.mustRow(t, 1, 5)
	w.mustHeartbeat(t, 6)
	w.awaitContents(t, "fence 1@5 heartbeat")
	broker.Pause()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if err := w.js.Conn().FlushTimeout(100 * time.Millisecond); err == nil {
			return errors.New("the paused broker answers")
		}
		return nil
	})
	got := make(chan error, 2)
	go func() { _, err := w.Get(t.Context(), [][]byte{[]byte("1")}); got <- err }()
	go func() { _, _, err := w.Suspects(t.Context(), 1, capture.Page{}, 10); got <- err }()
	select {
	case err := <-got:
		t.Fatalf("an answer of a paused broker: %v", err)
	case <-time.After(1500 * time.Millisecond): // Run asks, too
	}
	killed := time.Now()
	broker.Kill()
	for range 2 {
		select {
		case err := <-got:
			wantLost(t, "a request", err)
		case <-time.After(10 * time.Second):
			t.Fatal("a request goes on after the connection was lost")
		}
	}
	if took := time.Since(killed); took > 2*time.Second {
		t.Errorf("the requests ended %s after the connection", took)
	}
	broker.Start()
	w.begin(t)
	// As long as a request may take: Run asked of the old epoch, and must not end the new one.
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		if err := w.Heartbeat(t.Context(), heartbeat(7)); err != nil {
			t.Fatalf("the epoch after the loss: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
}
