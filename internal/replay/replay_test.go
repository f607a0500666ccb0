package replay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"bridge/internal/follow"
	"bridge/internal/publish"
	"bridge/internal/replay"
	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// TestReplay_FiniteRequest gets the state, the heartbeat with which it is complete, and
// the end; immediately where nothing happens.
func TestReplay_FiniteRequest(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	want := map[string]string{}
	for i := range 300 {
		w.row(t, i%100, uint64(10+i), fmt.Sprint(i))
		k, v := rowState(i%100, fmt.Sprint(i))
		want[k] = v
	}
	w.heartbeat(t, 400)
	w.stored(t, 400)
	w.begin(t) // a fence with no row behind it is not the stream's end
	w.stop()   // and nobody writes any more
	h := newHub(t, url, replay.Options{})
	for range 3 {
		begun := time.Now()
		req := request(0)
		req.Follow = false
		c := open(t, h, req)
		c.all(t)
		c.mustState(t, want)
		n := len(c.docs)
		if c.completed != 1 || len(c.heartbeats) != 1 || c.docs[n-1].Control == nil || c.docs[n-2].Row == nil {
			t.Errorf("the answer of %d documents ends with %+v %+v; completed %d times", n, c.docs[n-2], c.docs[n-1], c.completed)
		}
		if d := time.Since(begun); d > 8*time.Second { // 10 s is how long it waits for a bridge
			t.Errorf("a quiet relation was answered after %s", d)
		}
		if _, err := c.Next(t.Context(), time.Second); !errors.Is(err, io.EOF) {
			t.Errorf("behind the end: %v", err)
		}
	}
}

// TestReplay_FiniteRequestWithoutHeartbeat is cut, not ended, where the bridge
// died in the middle of a batch.
func TestReplay_FiniteRequestWithoutHeartbeat(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	w.stored(t, 6)
	w.row(t, 2, 7, "b")
	w.stop()
	h := newHub(t, url, replay.Options{Wait: 3 * time.Second})
	req := request(0)
	req.Follow = false
	c := open(t, h, req)
	for {
		part, err := c.Next(t.Context(), time.Second)
		c.take(t, part)
		if errors.Is(err, replay.ErrIncomplete) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(c.state) != 2 || c.completed != 0 || len(c.heartbeats) != 0 {
		t.Errorf("got %d rows, completed %d times, heartbeats %v", len(c.state), c.completed, c.heartbeats)
	}
}

// TestReplay_SnapshotCompletedOnce: once, behind all rows of the request's
// moment, and before any heartbeat; take checks the order.
func TestReplay_SnapshotCompletedOnce(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	w.row(t, 2, 7, "b") // a batch without its heartbeat
	w.stored(t, 6)
	h := newHub(t, url, replay.Options{})
	testenv.Eventually(t, testenv.Patience(), func() error {
		_, _, err := stream.Last(t.Context(), w.js, w.layout.Stream, "lockstep.public.t.row.2")
		return err
	})
	first := open(t, h, request(0))
	testenv.Eventually(t, testenv.Patience(), func() error { // until both rows are there, and nothing comes behind them
		part, err := first.Next(t.Context(), 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		first.take(t, part)
		if len(first.state) != 2 || !part.Empty() {
			return fmt.Errorf("%d rows", len(first.state))
		}
		return nil
	})
	if first.completed != 0 {
		t.Fatalf("in the middle of a batch: completed %d times", first.completed)
	}
	second := open(t, h, request(0)) // from the ring
	for i := range uint64(5) {
		w.heartbeat(t, 8+i)
	}
	for _, c := range []*client{first, second} {
		c.until(t, 12)
		if c.completed != 1 || len(c.state) != 2 {
			t.Errorf("completed %d times, %d rows", c.completed, len(c.state))
		}
	}
}

// TestReplay_UnknownRelation: a name that no stream has, whatever its bytes;
// streams that are not relations' have none.
func TestReplay_UnknownRelation(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	w := startWriter(t, url, publish.Options{Schema: `odd "s".*`, Table: "a/b.c>\x01é"})
	w.begin(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	h := newHub(t, url, replay.Options{Wait: 3 * time.Second})
	for _, name := range []string{"t", "", "*", ">", "..", "a'b", `"`, "a;drop table b", "\x00", "a/b", "LEASES", "$KV", strings.Repeat("x", 5000), "LOCKSTEP_LEASES", "KV_LOCKSTEP_LEASES"} {
		for _, schema := range []string{"public", "", "*", name, `odd "s".*`} {
			if _, err := h.Open(t.Context(), replay.Request{Schema: schema, Table: name, Follow: true}); !errors.Is(err, replay.ErrUnknownRelation) {
				t.Errorf("%q.%q: %v", schema, name, err)
			}
		}
	}
	c := open(t, h, replay.Request{Schema: `odd "s".*`, Table: "a/b.c>\x01é"})
	c.all(t)
	if len(c.state) != 1 {
		t.Errorf("got %d rows", len(c.state))
	}
	list, err := h.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Table != "a/b.c>\x01é" || list[0].Heartbeat == nil {
		t.Errorf("listed %+v, %v", list, err)
	}
}

// TestReplay_SinceAhead: a since above everything is refused only at a
// heartbeat behind the stream's end, served where the source came that far,
// and not ready where no heartbeat comes.
func TestReplay_SinceAhead(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 10)
	w.stored(t, 10)
	short := newHub(t, url, replay.Options{Wait: 300 * time.Millisecond})
	if _, err := short.Open(t.Context(), request(11)); !errors.Is(err, replay.ErrNotReady) {
		t.Errorf("without a heartbeat: %v, want ErrNotReady", err)
	}
	h := newHub(t, url, replay.Options{})
	asked := make(chan error, 2)
	ask := func(since uint64) {
		r, err := h.Open(t.Context(), request(since))
		if err == nil {
			r.Close()
		}
		asked <- err
	}
	go ask(100)
	testenv.Eventually(t, testenv.Patience(), func() error {
		if err := w.Heartbeat(t.Context(), heartbeat(10)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-asked:
			if !errors.Is(err, replay.ErrSinceAhead) {
				t.Errorf("at a heartbeat below: %v, want ErrSinceAhead", err)
			}
			return nil
		default:
			return errors.New("not answered")
		}
	})
	go ask(100)
	go func() {
		r, err := h.Open(t.Context(), request(11))
		if err == nil {
			r.Close()
		}
	}()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if err := w.Heartbeat(t.Context(), heartbeat(100)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-asked:
			if err != nil {
				t.Errorf("the source came that far: %v", err)
			}
			return nil
		default:
			return errors.New("not answered")
		}
	})
}

// TestReplay_Floor: what a new incarnation can't honour is refused with the
// floor, and everything is always honoured.
func TestReplay_Floor(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 9)
	w.stored(t, 9)
	h := newHub(t, url, replay.Options{})
	old := open(t, h, request(0))
	old.until(t, 9)
	if err := w.Restart(t.Context(), "a test", 0); err != nil {
		t.Fatal(err)
	}
	w.begin(t)
	w.row(t, 2, 10, "b")
	w.heartbeat(t, 12)
	w.stored(t, 12)
	if err := old.try(t, 12); !errors.Is(err, follow.ErrReset) {
		t.Errorf("a client of the old incarnation: %v, want ErrReset", err)
	}
	for since, floor := range map[uint64]uint64{1: 10, 9: 10, 10: 0, 0: 0} {
		r, err := h.Open(t.Context(), request(since))
		var tooOld *replay.TooOldError
		if errors.As(err, &tooOld) != (floor != 0) || tooOld != nil && tooOld.Floor != floor {
			t.Errorf("since %d: %v, want floor %d", since, err, floor)
		}
		if err == nil {
			c := &client{Reader: r, state: map[string]string{}}
			c.until(t, 12)
			k, v := rowState(2, "b")
			c.mustState(t, map[string]string{k: v})
			r.Close()
		}
	}
}

// TestReplay_DeletesRemovedWhileCatchingUp (I3): a client below a floor that
// rises while it reads may have missed deletes, and is cut; one that began with
// nothing has not.
func TestReplay_DeletesRemovedWhileCatchingUp(t *testing.T) {
	t.Parallel()
	const rows = 6000 // more than what a new tail begins with
	w, url := beginWriter(t)
	for id := range rows {
		w.row(t, id, uint64(100+id), strings.Repeat("a", 1000)) // more than is read ahead
	}
	w.heartbeat(t, 100+rows)
	w.stored(t, 100+rows)
	h := newHub(t, url, replay.Options{CacheBytes: 1})
	old, above, fresh := open(t, h, request(200)), open(t, h, request(301)), open(t, h, request(0))
	for _, c := range []*client{old, above, fresh} {
		part, err := c.Next(t.Context(), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.take(t, part)
	}
	setFloor(t, w, 300)
	if err := old.try(t, 100+rows); !errors.Is(err, follow.ErrReset) {
		t.Errorf("a client below the floor: %v, want ErrReset", err)
	}
	above.until(t, 100+rows)
	fresh.until(t, 100+rows)
}

// setFloor raises the stream's floor, as the bridge does before it removes tombstones.
func setFloor(t *testing.T, w *writer, floor uint64) {
	t.Helper()
	s, err := w.js.Stream(t.Context(), w.layout.Stream)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := stream.ReadMeta(s.CachedInfo().Config)
	if err != nil {
		t.Fatal(err)
	}
	meta.Floor = floor
	if _, err := w.js.UpdateStream(t.Context(), stream.Config(w.layout, meta, stream.Settings{})); err != nil {
		t.Fatal(err)
	}
}

// TestReplay_BlocksBelowTheFloorAreVoid_I9: a block that was filled when the stream's High was below a floor of later is filled
// again. Else clients that begin with it would be cut where blocks with that floor follow, and so for ever.
func TestReplay_BlocksBelowTheFloorAreVoid_I9(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	last := manyRows(t, w, 6000)
	h := newHub(t, url, replay.Options{})
	before := open(t, h, request(0))
	before.until(t, last)
	for i := range 100 {
		w.row(t, i, last+uint64(i), "new")
	}
	last += 100
	w.heartbeat(t, last)
	before.until(t, last)
	setFloor(t, w, last-50)
	for n := range uint64(3) {
		c := open(t, h, request(0))
		w.heartbeat(t, last+n+1)
		c.until(t, last+n+1)
		c.Close()
	}
}

// TestReplay_StreamDeletedAndMadeAnew: a stream that is deleted cuts its clients, and
// one made anew in its place is served.
func TestReplay_StreamDeletedAndMadeAnew(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	h := newHub(t, url, replay.Options{})
	c := open(t, h, request(0))
	c.until(t, 6)
	if err := w.js.DeleteStream(t.Context(), w.layout.Stream); err != nil {
		t.Fatal(err)
	}
	if err := c.try(t, 100); !errors.Is(err, follow.ErrReset) {
		t.Errorf("a deleted stream: %v, want ErrReset", err)
	}
	if _, err := h.Open(t.Context(), request(0)); !errors.Is(err, replay.ErrUnknownRelation) {
		t.Errorf("a deleted stream: %v, want ErrUnknownRelation", err)
	}
	w.begin(t)
	w.row(t, 2, 7, "b")
	w.heartbeat(t, 8)
	again := open(t, h, request(6))
	again.until(t, 8)
	k, v := rowState(2, "b")
	again.mustState(t, map[string]string{k: v})
}

// TestReplay_LargeRows (I11): rows of 500 KB come whole, between small ones.
func TestReplay_LargeRows(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	want := map[string]string{}
	for i := range 30 {
		data := strings.Repeat("x", 10+i%3*250_000)
		w.row(t, i, uint64(10+i), data)
		k, v := rowState(i, data)
		want[k] = v
	}
	w.heartbeat(t, 50)
	w.stored(t, 50)
	for _, cache := range []int{1 << 20, 64 << 20} {
		h := newHub(t, url, replay.Options{CacheBytes: cache})
		for range 2 {
			c := open(t, h, request(0))
			c.until(t, 50)
			c.mustState(t, want)
		}
	}
}

// TestReplay_BrokerAway: an open reader waits for the broker to come back and
// goes on; a request meanwhile is told to come again.
func TestReplay_BrokerAway(t *testing.T) {
	t.Parallel()
	broker := testenv.NATSProcess(t, testenv.NATSConfig{SyncInterval: "always"})
	w := newWriter(t, broker.URL())
	w.begin(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	h := newHub(t, broker.URL(), replay.Options{Wait: 3 * time.Second})
	c := open(t, h, request(0))
	c.until(t, 6)
	w.stored(t, 6)
	broker.Kill()
	if _, err := h.Open(t.Context(), request(0)); !errors.Is(err, replay.ErrNotReady) {
		t.Errorf("without a broker: %v, want ErrNotReady", err)
	}
	if part, err := c.Next(t.Context(), 200*time.Millisecond); err != nil || !part.Empty() {
		t.Errorf("without a broker: %q, %v", fmt.Sprint(part.Rows(), " rows"), err)
	}
	broker.Start()
	w.begin(t)
	w.row(t, 2, 7, "b")
	w.heartbeat(t, 8)
	begun := time.Now()
	c.until(t, 8)
	if len(c.state) != 2 {
		t.Errorf("got %d rows, want 2", len(c.state))
	}
	if d := time.Since(begun); d > 8*time.Second {
		t.Errorf("the reader went on after %s", d)
	}
}

// TestReplay_HubThatEnds ends its readers and refuses requests.
func TestReplay_HubThatEnds(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	h := newHub(t, url, replay.Options{IdleTime: 50 * time.Millisecond, Wait: 3 * time.Second})
	for range 3 { // each time with a tail of its own
		c := open(t, h, request(0))
		c.until(t, 6)
		c.Close()
		s, err := w.js.Stream(t.Context(), w.layout.Stream)
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, testenv.Patience(), func() error {
			info, err := s.Info(t.Context())
			if err == nil && info.State.Consumers > 0 {
				err = errors.New("a relation that nobody reads is still read")
			}
			return err
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Open(ctx, request(0)); !errors.Is(err, replay.ErrNotReady) {
		t.Errorf("a request that is over: %v", err)
	}
}
