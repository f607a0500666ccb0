//go:build stack

package stacktest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// reader keeps the state of the sample's relations as a client does. It applies
// rows by key in the order in which they come, and resumes from the last since
// that it was shown.
type reader struct {
	name string

	mu sync.Mutex
	// Guarded by mu. state is the data of the live rows, by relation and key.
	state map[string]map[string]any
	// cuts counts how often a stream ended. beat is when the last heartbeat of
	// each relation came.
	cuts  int
	beat  map[string]time.Time
	fault error
}

func newReader(name string) *reader {
	r := &reader{name: name, state: map[string]map[string]any{}, beat: map[string]time.Time{}}
	for relation := range relations {
		r.state[relation] = map[string]any{}
	}
	return r
}

// take applies one document, and returns the position it shows.
func (r *reader) take(relation string, doc []byte) (since uint64, err error) {
	m, err := lockstep.Decode(doc)
	if err != nil {
		return 0, err
	}
	if m.Row == nil {
		if m.Control.Type == lockstep.HeartbeatType {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.beat[relation] = time.Now()
		}
		return m.Control.Since, nil
	}
	data, err := decode(m.Row.Data)
	if err != nil {
		return 0, err
	}
	object, ok := data.(map[string]any)
	if !ok {
		return 0, fmt.Errorf("data is not an object: %s", doc)
	}
	key := fmt.Sprint(object["id"])
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state[relation][key] = data; m.Row.Deleted {
		delete(r.state[relation], key)
	}
	return m.Row.Since, nil
}

// fail records an error that a cut does not explain. Only the first one is kept.
func (r *reader) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault == nil {
		r.fault = err
	}
}

// overHTTP follows all relations through an edge until the test ends.
func overHTTP(t *testing.T, name string, port int) *reader {
	t.Helper()
	r := newReader(name)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for relation := range relations {
		wg.Go(func() {
			var since uint64
			for ctx.Err() == nil {
				shown, err := r.follow(ctx, fmt.Sprintf("http://127.0.0.1:%d/%s?since=%d", port, relation, since), relation)
				if shown != 0 {
					since = shown
				}
				var refused *refusedError
				if errors.As(err, &refused) && refused.status == http.StatusNotFound && since == 0 {
					err = nil // a bridge that is healthy may have made no stream yet
				}
				if errors.As(err, &refused) && ctx.Err() == nil {
					r.fail(err)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		})
	}
	return r
}

// refusedError is an answer after which a further try does not help.
type refusedError struct {
	url    string
	status int
}

func (e *refusedError) Error() string { return fmt.Sprintf("GET %s: status %d", e.url, e.status) }

// follow reads one response to its end, and returns the last position that it
// showed.
func (r *reader) follow(ctx context.Context, url, relation string) (since uint64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return 0, errors.New("not ready")
	case resp.StatusCode != http.StatusOK:
		return 0, &refusedError{url, resp.StatusCode}
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cuts++
	}()
	in := bufio.NewReader(resp.Body)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return since, err
		}
		if len(line) <= 2 { // a keep-alive
			continue
		}
		shown, err := r.take(relation, line)
		if err != nil {
			return since, &refusedError{url + ": " + err.Error(), resp.StatusCode}
		}
		if shown != 0 {
			since = shown
		}
	}
}

// overNATS follows all relations in the broker until the test ends.
func overNATS(t *testing.T, port int) *reader {
	t.Helper()
	r := newReader("NATS subscriber")
	nc, err := nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", port), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	for relation := range relations {
		l := stream.NewLayout(stream.DefaultPrefix, "public", relation, false)
		var c jetstream.Consumer
		testenv.Eventually(t, healWithin, func() error {
			c, err = js.OrderedConsumer(t.Context(), l.Stream, jetstream.OrderedConsumerConfig{})
			return err
		})
		cc, err := c.Consume(func(msg jetstream.Msg) {
			if kind := l.KindOf(msg.Subject()); kind != stream.KindRow && kind != stream.KindHeartbeat {
				return
			}
			if _, err := r.take(relation, msg.Data()); err != nil {
				r.fail(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cc.Stop)
	}
	return r
}

// await waits for the product with this name.
func (r *reader) await(t *testing.T, name string) {
	t.Helper()
	testenv.Eventually(t, healWithin, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.fault != nil {
			t.Fatalf("%s: %v", r.name, r.fault)
		}
		for _, data := range r.state["products"] {
			if data.(map[string]any)["name"] == name {
				return nil
			}
		}
		return fmt.Errorf("%s does not have %q", r.name, name)
	})
}

// beats waits for a heartbeat of every relation from after since.
func (r *reader) beats(t *testing.T, since time.Time) {
	t.Helper()
	testenv.Eventually(t, healWithin, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for relation := range relations {
			if !r.beat[relation].After(since) {
				return fmt.Errorf("%s got no heartbeat of %s", r.name, relation)
			}
		}
		return nil
	})
}

// differs compares the state with Postgres. It returns the number of rows, or an
// error for the first difference.
func (r *reader) differs(relation string, truth map[string]any) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.state[relation]
	for key, want := range truth {
		if got, ok := state[key]; !ok || !reflect.DeepEqual(got, want) {
			is, _ := json.Marshal(got)
			should, _ := json.Marshal(want)
			return 0, fmt.Errorf("I1: %s, %s %s: it has %s, Postgres %s", r.name, relation, key, is, should)
		}
	}
	for key := range state {
		if _, ok := truth[key]; !ok {
			return 0, fmt.Errorf("I1: %s, %s: it has row %s, Postgres does not", r.name, relation, key)
		}
	}
	return len(truth), nil
}
