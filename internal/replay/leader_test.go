package replay_test

import (
	"sync"
	"testing"

	"bridge/internal/replay"
	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// TestOpen_SharesTheLeadersAnswer_I9: what many requests ask of the stream's leader does not grow with their number, if they
// come together. Each gets what it asked for.
func TestOpen_SharesTheLeadersAnswer_I9(t *testing.T) {
	t.Parallel()
	broker := testenv.NATS(t)
	w := newWriter(t, broker.URL())
	w.begin(t)
	for i := range 20 {
		w.row(t, i, uint64(10+i), "x")
	}
	w.heartbeat(t, 40)
	w.stored(t, 40)
	h := newHub(t, broker.URL(), replay.Options{})
	open(t, h, request(0)).until(t, 40)
	const requests = 200
	before := broker.APIRequests(t)
	clients := make([]*client, requests)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			r, err := h.Open(t.Context(), request(uint64(i%2*25))) // half of them from the start
			if err != nil {
				t.Error(err)
				return
			}
			clients[i] = &client{Reader: r, state: map[string]string{}}
		})
	}
	wg.Wait()
	if n := broker.APIRequests(t) - before; n > requests {
		t.Errorf("%d requests asked the stream's leader %d times", requests, n)
	}
	for i, c := range clients {
		if c == nil {
			continue
		}
		c.until(t, 40)
		if want := 20 - i%2*15; len(c.state) != want {
			t.Errorf("client %d has %d rows, want %d", i, len(c.state), want)
		}
		c.Close()
	}
}

// TestOpen_AnswerIsNoOlderThanTheRequest_I2: a request never gets an answer to a question that was asked before it came. What
// the stream held by then would be missing from what completes it.
func TestOpen_AnswerIsNoOlderThanTheRequest_I2(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.heartbeat(t, 5)
	w.stored(t, 5)
	h := newHub(t, url, replay.Options{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				ack, err := w.js.Publish(t.Context(), stream.Ingest(w.layout.Alive()), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if last, err := h.LastSeq(t.Context(), w.layout); err != nil || last < ack.Sequence {
					t.Errorf("message %d was stored, and then the stream's last was %d, %v", ack.Sequence, last, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
