package publish_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"bridge/internal/publish"
	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// A lease that has expired, and that no other bridge has taken, is taken again.
// The epoch goes on, because its fence still protects the stream (I6).
func TestPublish_ExpiredLeaseEndsNoEpoch(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	kv, err := w.js.KeyValue(t.Context(), stream.LeaseBucket("lockstep"))
	if err != nil {
		t.Fatal(err)
	}
	const key = "LOCKSTEP-public-t"
	if err := kv.Purge(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, testenv.Patience(), func() error {
		e, err := kv.Get(t.Context(), key)
		if err == nil && string(e.Value()) != "a" {
			err = fmt.Errorf("the lease is held by %q", e.Value())
		}
		return err
	})
	w.mustRow(t, 1, 5)
	w.awaitContents(t, "fence 1@5") // a second epoch would have stored a second fence
}

// Where another bridge has taken the lease, the epoch ends.
func TestPublish_LeaseOfAnotherEndsTheEpoch_I6(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	kv, err := w.js.KeyValue(t.Context(), stream.LeaseBucket("lockstep"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "LOCKSTEP-public-t", []byte("b")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, testenv.Patience(), func() error {
		if err := w.Heartbeat(t.Context(), heartbeat(5)); err == nil {
			return fmt.Errorf("the epoch goes on")
		}
		return nil
	})
}

// Many relations that start at the same time lose no epoch, also where that takes
// longer than a lease lives (issue 14, idle relations).
func TestPublish_ManyBeginAtOnce(t *testing.T) {
	t.Parallel()
	const relations = 100
	nc := testenv.NATSConn(t, testenv.NATS(t).URL(), nats.ReconnectBufSize(-1))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	timing := publish.Timing{LeaseTTL: time.Second, Tick: 200 * time.Millisecond}
	leases, err := publish.NewLeases(js, publish.LeaseOptions{Prefix: "lockstep", Holder: "a", Timing: timing})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running, beginning sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { _ = leases.Run(ctx) })
	all := make([]*publish.Publisher, relations)
	errs := make([]error, relations)
	for i := range all {
		all[i] = publish.New(nc, js, publish.Options{
			Prefix: "lockstep", Schema: "public", Table: fmt.Sprint("t", i), Leases: leases, Timing: timing,
		}, publish.NewMetrics(nil), zerolog.Nop())
		running.Go(func() { _ = all[i].Run(ctx) })
		beginning.Go(func() {
			standby := func() { t.Errorf("relation %d stands by", i) }
			_, errs[i] = all[i].Begin(ctx, source, standby)
			for errors.Is(errs[i], context.DeadlineExceeded) && ctx.Err() == nil { // a slow broker, which costs no epoch
				_, errs[i] = all[i].Begin(ctx, source, standby)
			}
		})
	}
	beginning.Wait()
	for i, p := range all {
		if errs[i] != nil {
			t.Fatalf("relation %d: %v", i, errs[i])
		}
		if err := p.Heartbeat(ctx, heartbeat(5)); err != nil {
			t.Errorf("relation %d lost its epoch: %v", i, err)
		}
	}
}
