package replay_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bridge/internal/follow"
	"bridge/internal/publish"
	"bridge/internal/replay"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
)

// hammer rewrites all of n keys in each batch, with the batch's number as txid
// and as data, until the test or stop ends; so at every heartbeat each key
// must have the heartbeat's since. The pause between two batches leaves the
// machine time to breathe: where everybody lags all the time every key has a
// hole, and no heartbeat can come.
func hammer(t *testing.T, w *writer, keys, size int, pause time.Duration) (stop func() uint64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan uint64, 1)
	pad := strings.Repeat("p", size)
	go func() {
		for n := uint64(1); ; n++ {
			err := error(nil)
			for i := 0; i < keys && err == nil; i++ {
				err = w.Row(ctx, change(i, n, n, fmt.Sprint(n, " ", pad)))
			}
			if err == nil {
				err = w.Heartbeat(ctx, heartbeat(n))
			}
			if err != nil && ctx.Err() == nil { // go on as the bridge does
				t.Logf("batch %d: %v", n, err)
				if _, err := w.Begin(ctx, source, func() {}); err != nil {
					t.Errorf("begin: %v", err)
				}
			}
			select {
			case <-ctx.Done():
				done <- n
				return
			case <-time.After(pause):
			}
		}
	}()
	return func() uint64 { cancel(); return <-done }
}

// checkHeartbeats makes the client check each heartbeat against hammer's rule.
func checkHeartbeats(t *testing.T, c *client, keys int) {
	c.onDoc = func(m lockstep.Message) {
		if m.Control == nil || m.Control.Type != lockstep.HeartbeatType {
			return
		}
		want := fmt.Sprintf(`"data":"%d `, m.Control.Since)
		for k, v := range c.state {
			if !strings.Contains(v, want) {
				t.Errorf("I2: at heartbeat %d key %s is %.40s", m.Control.Since, k, v)
				return
			}
		}
		if len(c.state) != keys {
			t.Errorf("I2: at heartbeat %d there are %d keys, want %d", m.Control.Since, len(c.state), keys)
		}
	}
}

// TestReplay_NoHeartbeatBehindAGap (I2): while every key is rewritten all the
// time, a client that begins at any moment, on a new edge or an old one, holds
// at each heartbeat exactly what the relation was then; and heartbeats come.
func TestReplay_NoHeartbeatBehindAGap(t *testing.T) {
	t.Parallel()
	const keys = 50
	w, url := beginWriter(t)
	stop := hammer(t, w, keys, 10, 50*time.Millisecond)
	old := newHub(t, url, replay.Options{CacheBytes: 1})
	live := open(t, old, request(0))
	checkHeartbeats(t, live, keys)
	live.until(t, 20)
	for range 5 {
		for _, h := range []*replay.Hub{old, newHub(t, url, replay.Options{CacheBytes: 1, IdleTime: 20 * time.Millisecond})} {
			c := open(t, h, request(0))
			checkHeartbeats(t, c, keys)
			c.until(t, 1)
			c.until(t, c.heartbeats[0]+10)
			c.Close()
		}
	}
	last := stop()
	live.until(t, last)
}

// TestReplay_SlowReaderMissesNothing (I3, I9): a reader that falls out of the
// ring reads from the broker and comes back; the ring stays within its bound.
func TestReplay_SlowReaderMissesNothing(t *testing.T) {
	t.Parallel()
	const keys, cache = 200, 1 << 20
	w, url := beginWriter(t)
	registry := prometheus.NewRegistry()
	h := hubWith(t, url, replay.Options{CacheBytes: cache}, registry)
	live, slow := open(t, h, request(0)), open(t, h, request(0))
	checkHeartbeats(t, live, keys)
	checkHeartbeats(t, slow, keys)
	stop := hammer(t, w, keys, 500, 100*time.Millisecond)
	for n := uint64(40); n <= 200; n += 40 { // 4 MB each, four rings
		live.until(t, n)
		if got := gauge(t, registry, "lockstep_edge_cache_bytes"); got > cache+300<<10 {
			t.Errorf("I9: the blocks have %v bytes, want at most %d and a block", got, cache)
		}
		part, err := slow.Next(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		slow.take(t, part)
	}
	last := stop()
	live.until(t, last)
	slow.until(t, last)
	if n := gauge(t, registry, "lockstep_edge_cache_fills_total"); n < 1 {
		t.Errorf("%v readers had to catch up: the test did not reach what it is for", n)
	}
}

// TestReplay_SlowReaderOfBusyRows (I2, I10): a client that can't keep up with a
// few rows that are written all the time falls out of the ring again and again;
// it gets heartbeats still, and holds a state of the relation at each.
func TestReplay_SlowReaderOfBusyRows(t *testing.T) {
	t.Parallel()
	const keys = 20
	w, url := beginWriter(t)
	registry := prometheus.NewRegistry()
	h := hubWith(t, url, replay.Options{CacheBytes: 4 << 20}, registry)
	c := open(t, h, request(0))
	checkHeartbeats(t, c, keys)
	stop := hammer(t, w, keys, 3000, 5*time.Millisecond)
	defer stop()
	client := time.NewTicker(100 * time.Millisecond) // what it takes for one write
	defer client.Stop()
	behind := 0
	testenv.Eventually(t, 2*testenv.Patience(), func() error {
		<-client.C
		part, err := c.Next(t.Context(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		before := len(c.heartbeats)
		c.take(t, part)
		if gauge(t, registry, "lockstep_edge_cache_fills_total") >= 3 {
			behind += len(c.heartbeats) - before
		}
		if behind < 5 {
			return fmt.Errorf("I10: %d heartbeats came since the client fell behind", behind)
		}
		return nil
	})
}

func gauge(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return 0
}

// TestReplay_CacheIsBounded (I9): what the process holds is what its limit says, whatever
// the size of rows.
func TestReplay_CacheIsBounded(t *testing.T) {
	t.Parallel()
	for _, size := range []int{10, 2000, 200_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			const cache = 1 << 20
			w, url := beginWriter(t)
			w.heartbeat(t, 0)
			registry := prometheus.NewRegistry()
			h := hubWith(t, url, replay.Options{CacheBytes: cache}, registry)
			c := open(t, h, request(0))
			n := 3 << 20 / (size + 100)
			for i := range n {
				w.row(t, i%1000, uint64(i+1), strings.Repeat("x", size))
			}
			w.heartbeat(t, uint64(n+1))
			c.until(t, uint64(n+1))
			// The next reader finds in memory no more than the limit.
			held := replay.BlockBytes(h)
			if held > cache+400<<10 || held < cache/2 {
				t.Errorf("the blocks take %d bytes, their limit is %d", held, cache)
			}
			testenv.Eventually(t, testenv.Patience(), func() error { // a client that fell behind may be ahead of the tail
				if got, held := gauge(t, registry, "lockstep_edge_cache_bytes"), replay.BlockBytes(h); int(got) != held {
					return fmt.Errorf("the metric says %v bytes, there are %d", got, held)
				}
				return nil
			})
		})
	}
}

// created counts the consumers that are made on the broker from now on.
func created(t *testing.T, w *writer) *atomic.Int64 {
	t.Helper()
	n := new(atomic.Int64)
	sub, err := w.nc.Subscribe("$JS.EVENT.ADVISORY.CONSUMER.CREATED.>", func(*nats.Msg) { n.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return n
}

// manyRows fills the stream with more rows than a tail begins with, the last with the
// txid last.
func manyRows(t *testing.T, w *writer, rows int) (last uint64) {
	t.Helper()
	for i := range rows {
		w.row(t, i, uint64(i+1), "x")
	}
	last = uint64(rows + 1)
	w.heartbeat(t, last)
	w.stored(t, last)
	return last
}

// count counts the rows that come before the state is complete.
func count(t testing.TB, r *replay.Reader) (rows int, err error) {
	t.Helper()
	for deadline := time.Now().Add(testenv.Patience()); ; {
		part, err := r.Next(t.Context(), 100*time.Millisecond)
		if err != nil || part.Completed() {
			return rows, err
		}
		rows += part.Rows()
		if time.Now().After(deadline) {
			return rows, errors.New("the state was never complete")
		}
	}
}

// TestReplay_StalledReadersHoldNothing_I10: clients that stop reading in the middle of a
// replay keep nobody else from the stream, however many they are.
func TestReplay_StalledReadersHoldNothing_I10(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	const rows = 10_000
	last := manyRows(t, w, rows)
	h := newHub(t, url, replay.Options{})
	for i := range 20 {
		c := open(t, h, request(uint64(i)))
		for len(c.docs) == 0 {
			part, err := c.Next(t.Context(), 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			c.take(t, part)
		}
	}
	c := open(t, h, request(rows/2))
	c.until(t, last)
	if len(c.state) != rows/2+1 {
		t.Errorf("got %d rows, want %d", len(c.state), rows/2+1)
	}
}

// TestReplay_WhatIsGivenBackComesAgain_I3: a client that gives documents back, as one that stalls does, gets every document
// once, in order, and the state is complete once.
func TestReplay_WhatIsGivenBackComesAgain_I3(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	w, url := beginWriter(t)
	for i := range 300 {
		w.row(t, i, uint64(i+1), strings.Repeat("x", 2000))
		if i%50 == 0 {
			w.heartbeat(t, uint64(i+1))
		}
	}
	w.heartbeat(t, 301)
	w.stored(t, 301)
	h := newHub(t, url, replay.Options{})
	open := func() *replay.Reader {
		r, err := h.Open(t.Context(), request(100))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		return r
	}
	read := func(r *replay.Reader, keep func(n int) int) (docs []string, completed int) {
		testenv.Eventually(t, testenv.Patience(), func() error {
			part, err := r.Next(t.Context(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			all := documents(t, part)
			if part.Empty() {
				return errors.New("not all came")
			}
			n, complete := keep(len(all)), part.Completed()
			if n < len(all) {
				rows, err := r.Return(n)
				if beats := n - rows; err != nil || beats < 0 || beats > 1 {
					t.Errorf("of %d documents that were kept %d are rows; %v", n, rows, err)
				}
			}
			if n > 0 && complete {
				completed++
			}
			for _, doc := range all[:n] {
				docs = append(docs, string(doc))
			}
			if completed == 0 {
				return errors.New("not complete")
			}
			return nil
		})
		return docs, completed
	}
	want, _ := read(open(), func(n int) int { return n })
	got, completed := read(open(), func(n int) int { return rnd.IntN(n + 1) })
	if !slices.Equal(got, want) || completed != 1 {
		t.Errorf("got %d documents, complete %d times; want %d", len(got), completed, len(want))
	}
}

// TestReplay_StormReadsOnce_I9: clients that come back together, each from another place,
// share what is read from the broker. Neither consumers nor blocks read grow with their
// number.
func TestReplay_StormReadsOnce_I9(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	const rows, clients = 10_000, 200
	manyRows(t, w, rows)
	registry := prometheus.NewRegistry()
	h := hubWith(t, url, replay.Options{Wait: testenv.Patience()}, registry)
	consumers := created(t, w)
	var gets atomic.Int64
	sub, err := w.nc.Subscribe("$JS.API.DIRECT.GET.>", func(*nats.Msg) { gets.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := w.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range clients {
		since := uint64(1 + i*(rows-6000)/clients)
		wg.Go(func() {
			r, err := h.Open(t.Context(), request(since))
			if err != nil {
				t.Errorf("since %d: %v", since, err)
				return
			}
			defer r.Close()
			if got, err := count(t, r); err != nil || got != rows-int(since)+1 {
				t.Errorf("since %d: %v; got %d rows, want %d", since, err, got, rows-int(since)+1)
			}
		})
	}
	wg.Wait()
	if n := gets.Load(); n == 0 || n > clients {
		t.Errorf("%d clients had %d messages read to find their places", clients, n)
	}
	// A tail, and for each cold reader a few.
	if n := consumers.Load(); n > 10 {
		t.Errorf("%d consumers were made for %d clients", n, clients)
	}
	filled := gauge(t, registry, "lockstep_edge_cache_fills_total")
	if filled > 3*rows*100/(128<<10) {
		t.Errorf("%v blocks were read from the broker for %d clients", filled, clients)
	}
	// Who comes later finds all of it in memory. Until the cold readers have ended, they may fill blocks ahead of those who
	// have gone.
	testenv.Eventually(t, testenv.Patience(), func() error {
		s, err := w.js.Stream(t.Context(), w.layout.Stream)
		if err == nil && s.CachedInfo().State.Consumers > 1 {
			err = fmt.Errorf("there are %d consumers, and the tail has one", s.CachedInfo().State.Consumers)
		}
		return err
	})
	filled = gauge(t, registry, "lockstep_edge_cache_fills_total")
	r, err := h.Open(t.Context(), request(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := count(t, r); err != nil || got != rows {
		t.Errorf("one more client: %v; got %d rows, want %d", err, got, rows)
	}
	if n := gauge(t, registry, "lockstep_edge_cache_fills_total"); n > filled {
		t.Errorf("for one more client %v blocks were read", n-filled)
	}
}

// TestReplay_ColdReadersAreBounded_I9: no more consumers read side by side than the limit says,
// however many relations clients want; all of them are served.
func TestReplay_ColdReadersAreBounded_I9(t *testing.T) {
	t.Parallel()
	const relations, rows = 4, 6000
	url := testenv.NATS(t).URL()
	writers := make([]*writer, relations)
	for i := range writers {
		writers[i] = startWriter(t, url, publish.Options{Schema: "public", Table: fmt.Sprint("t", i)})
		writers[i].begin(t)
		manyRows(t, writers[i], rows)
	}
	h := newHub(t, url, replay.Options{CacheBytes: 1, ColdReaders: 1})
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			req := request(0)
			req.Table = fmt.Sprint("t", i)
			r, err := h.Open(t.Context(), req)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if got, err := count(t, r); err != nil || got != rows {
				t.Errorf("relation %d: %v; got %d rows, want %d", i, err, got, rows)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	most := 0
	for open := true; open; {
		select {
		case <-done:
			open = false
		case <-time.After(5 * time.Millisecond):
		}
		now, err := writers[0].js.AccountInfo(t.Context()) // all relations' at one moment
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, now.Consumers)
	}
	if most > relations+1 { // with the tails'
		t.Errorf("%d consumers for %d relations and one cold reader", most, relations)
	}
}

// TestReplay_StoreGoesBack (I8): the broker's files are replaced by an older
// copy while a reader is open, and the bridge goes on from there. The reader
// is cut rather than led past what it never got, and every since that was
// shown resumes right, also for clients that come at once.
func TestReplay_StoreGoesBack(t *testing.T) {
	t.Parallel()
	for _, more := range []int{0, 50} { // the new tail is shorter, or longer, than the lost one
		t.Run(fmt.Sprint(more), func(t *testing.T) {
			t.Parallel()
			broker := testenv.NATSProcess(t, testenv.NATSConfig{SyncInterval: "always"})
			w := newWriter(t, broker.URL())
			w.begin(t)
			w.row(t, 1, 5, "a")
			w.heartbeat(t, 6)
			w.stored(t, 6)
			h := newHub(t, broker.URL(), replay.Options{})
			broker.Stop()
			older := broker.CopyStore()
			broker.Start()
			w.begin(t)
			reader := open(t, h, request(0))
			for i := range 20 {
				w.row(t, 10+i, uint64(10+i), "lost and sent again")
			}
			w.heartbeat(t, 40)
			reader.until(t, 40)
			lost := token{reader.since, reader.cursor, reader.state}
			broker.Kill()
			broker.ReplaceStore(older)
			broker.Start()
			w.begin(t)
			// The bridge reads again what is new since the heartbeat of 6, and more.
			want := map[string]string{}
			put := func(id int, txid uint64, data string) {
				w.row(t, id, txid, data)
				k, v := rowState(id, data)
				want[k] = v
			}
			for i := range 20 {
				put(10+i, uint64(10+i), "lost and sent again")
			}
			for i := range more {
				put(100+i, uint64(41+i), "new")
			}
			w.heartbeat(t, 100)
			k, v := rowState(1, "a")
			want[k] = v
			if err := reader.try(t, 100); !errors.Is(err, follow.ErrReset) {
				t.Errorf("the open reader: %v, want ErrReset", err)
			}
			// The edge may have found out behind the heartbeat of 100.
			w.heartbeat(t, 101)
			// Where the new tail is longer, the stream has another message at the cursor's sequence.
			for _, req := range []replay.Request{request(lost.since), after(lost.cursor)} {
				c := open(t, h, req)
				c.cursor, c.state = lockstep.Cursor{}, maps.Clone(lost.state)
				c.until(t, 101)
				c.mustState(t, want)
			}
			c := open(t, h, request(0))
			c.until(t, 100)
			c.mustState(t, want)
		})
	}
}

// TestReplay_NoHeartbeatOfThePast_I2: the broker's files are replaced by an older
// copy, and the bridge is away. A client that holds more than the copy has, and
// no newer position, is shown no heartbeat of it; one that holds nothing is. So it
// is where another incarnation had begun meanwhile.
func TestReplay_NoHeartbeatOfThePast_I2(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted=%t", restarted), func(t *testing.T) { noHeartbeatOfThePast(t, restarted) })
	}
}

func noHeartbeatOfThePast(t *testing.T, restarted bool) {
	t.Parallel()
	broker := testenv.NATSProcess(t, testenv.NATSConfig{SyncInterval: "always"})
	w := newWriter(t, broker.URL())
	w.begin(t)
	w.row(t, 1, 5, "older")
	w.heartbeat(t, 6)
	w.stored(t, 6)
	h := newHub(t, broker.URL(), replay.Options{Wait: 2 * time.Second})
	broker.Stop()
	older := broker.CopyStore()
	broker.Start()
	w.begin(t)
	reader := open(t, h, request(0))
	if err := w.Row(t.Context(), change(1, 7, 6, "newer")); err != nil { // transaction 6 runs still
		t.Fatal(err)
	}
	key, newer := rowState(1, "newer")
	testenv.Eventually(t, testenv.Patience(), func() error {
		part, err := reader.Next(t.Context(), 100*time.Millisecond)
		if reader.take(t, part); err == nil && reader.state[key] != newer {
			err = errors.New("the newer row has not come")
		}
		return err
	})
	if restarted {
		if err := w.Restart(t.Context(), "test", 0); err != nil {
			t.Fatal(err)
		}
		w.begin(t)
		w.row(t, 1, 7, "newer")
		w.heartbeat(t, 8)
		reader = open(t, h, request(0))
		reader.until(t, 8)
	}
	broker.Kill()
	broker.ReplaceStore(older)
	broker.Start()
	if err := reader.try(t, 100); !errors.Is(err, follow.ErrReset) {
		t.Fatalf("the open reader: %v, want ErrReset", err)
	}
	finite := request(6)
	finite.Follow = false
	if err := open(t, h, finite).try(t, 6); !errors.Is(err, replay.ErrIncomplete) {
		t.Errorf("a client that resumes: %v, want ErrIncomplete", err)
	}
	finite.Since = 0
	open(t, h, finite).all(t)
	follows := open(t, h, request(6))
	w.begin(t)
	w.row(t, 1, 7, "newer")
	w.heartbeat(t, 8)
	follows.until(t, 8)
	if len(follows.heartbeats) != 1 {
		t.Errorf("a client that resumed was shown heartbeats %v, want that of 8", follows.heartbeats)
	}
	follows.mustState(t, map[string]string{key: newer})
}

// TestReplay_GoesBackTwice: the second copy is much shorter than the first one,
// and nobody read when it came. Who resumes then waits for no more than the next
// heartbeat.
func TestReplay_GoesBackTwice(t *testing.T) {
	t.Parallel()
	broker := testenv.NATSProcess(t, testenv.NATSConfig{SyncInterval: "always"})
	w := newWriter(t, broker.URL())
	w.begin(t)
	replace := func(by string) {
		broker.Kill()
		broker.ReplaceStore(by)
		broker.Start()
	}
	w.row(t, 1, 5, "older")
	w.heartbeat(t, 6)
	w.stored(t, 6)
	short := broker.CopyStore()
	for range 50 {
		w.heartbeat(t, 6)
	}
	w.row(t, 2, 6, "more")
	w.heartbeat(t, 7)
	w.stored(t, 7)
	longer := broker.CopyStore() // of the same epoch
	h := newHub(t, broker.URL(), replay.Options{})
	reader := open(t, h, request(0))
	w.row(t, 1, 8, "newer")
	w.heartbeat(t, 9)
	reader.until(t, 9)
	replace(longer)
	if err := reader.try(t, 100); !errors.Is(err, follow.ErrReset) {
		t.Fatalf("the open reader: %v, want ErrReset", err)
	}
	reader.Close()
	replace(short)
	c := open(t, h, request(6))
	w.begin(t)
	w.row(t, 1, 8, "newer")
	w.heartbeat(t, 9)
	c.until(t, 9)
}

// TestReplay_DroppedMessageIsReadAgain (I3): a message that gets lost between
// the broker and the edge is not taken for one that was replaced.
func TestReplay_DroppedMessageIsReadAgain(t *testing.T) {
	t.Parallel()
	for _, tail := range []bool{true, false} {
		t.Run(fmt.Sprintf("tail=%v", tail), func(t *testing.T) {
			t.Parallel()
			w, url := beginWriter(t)
			rows := 300
			if !tail { // the reader's own consumer
				rows = 6000
			}
			var seen atomic.Int64
			h := newHub(t, newProxy(t, url, func(line string) bool {
				return !strings.HasPrefix(line, "HMSG lockstep.public.t.row.77 ") || seen.Add(1) > 1
			}), replay.Options{CacheBytes: 1 << 20})
			for i := range rows {
				w.row(t, i, uint64(i+1), "x")
			}
			w.heartbeat(t, uint64(rows+1))
			w.stored(t, uint64(rows+1))
			c := open(t, h, request(0))
			c.until(t, uint64(rows+1))
			if len(c.state) != rows {
				t.Errorf("got %d rows, want %d", len(c.state), rows)
			}
			if seen.Load() < 2 {
				t.Error("the message was not dropped, or not read again")
			}
		})
	}
}

// TestReplay_LookThatFailsLosesNothing (I3): a reader has caught up with the
// ring, and its look at the stream then fails: what it had read and not yet
// handed out is read again.
func TestReplay_LookThatFailsLosesNothing(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	const rows = 6000
	var reading, failed atomic.Bool
	h := newHub(t, newProxy(t, url, func(line string) bool {
		switch {
		case strings.HasPrefix(line, "HMSG lockstep.public.t.row.0 "):
			reading.Store(true)
		case reading.Load() && strings.Contains(line, "PUB $JS.API.STREAM.INFO."):
			return !failed.CompareAndSwap(false, true)
		}
		return true
	}), replay.Options{CacheBytes: 1 << 20})
	for i := range rows {
		w.row(t, i, uint64(i+1), "x")
	}
	w.heartbeat(t, rows+1)
	w.stored(t, rows+1)
	c := open(t, h, request(0))
	c.until(t, rows+1)
	if len(c.state) != rows {
		t.Errorf("got %d rows, want %d", len(c.state), rows)
	}
	if !failed.Load() {
		t.Error("no look at the stream failed")
	}
}

// newProxy starts a proxy before a broker. It shows each line of the protocol
// with its direction to pass, which may take its time, and loses the line and
// its payload where pass returns false.
func newProxy(t *testing.T, url string, pass func(line string) bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
			if err != nil {
				_ = client.Close()
				return
			}
			go func() { forward(server, client, pass); _ = server.Close() }()
			go func() { forward(client, server, pass); _ = client.Close() }()
		}
	}()
	return "nats://" + l.Addr().String()
}

func forward(to io.Writer, from io.Reader, pass func(string) bool) {
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		out := line
		verb, _, _ := bytes.Cut(line, []byte(" "))
		switch string(verb) {
		case "MSG", "HMSG", "PUB", "HPUB":
			fields := bytes.Fields(line)
			size, err := strconv.Atoi(string(fields[len(fields)-1]))
			if err != nil {
				return
			}
			payload := make([]byte, size+2)
			if _, err := io.ReadFull(r, payload); err != nil {
				return
			}
			out = append(out, payload...)
		}
		if !pass(string(line)) {
			continue
		}
		if _, err := to.Write(out); err != nil {
			return
		}
	}
}

// TestReplay_GapHoldsHeartbeatsBack (I2): rows that were replaced before an
// edge came to read them, between its look at the stream and its consumer's
// start: the heartbeat behind the hole stands for a state that the client does
// not have, and only the next one may pass.
func TestReplay_GapHoldsHeartbeatsBack(t *testing.T) {
	t.Parallel()
	for _, tail := range []bool{true, false} {
		t.Run(fmt.Sprintf("tail=%v", tail), func(t *testing.T) {
			t.Parallel()
			w, url := beginWriter(t)
			keys := 10
			if !tail { // too far behind for a tail to begin with it
				keys = 6000
			}
			batch := func(n uint64, from, to int) {
				for i := from; i < to; i++ {
					w.row(t, i, n, fmt.Sprint(n, " "))
				}
			}
			batch(1, 0, keys)
			w.heartbeat(t, 1)
			w.stored(t, 1)
			asked, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			h := newHub(t, newProxy(t, url, func(line string) bool {
				if strings.Contains(line, "PUB $JS.API.CONSUMER.CREATE.") {
					once.Do(func() { close(asked); <-release })
				}
				return true
			}), replay.Options{})
			c := open(t, h, request(0))
			checkHeartbeats(t, c, keys)
			<-asked
			batch(2, 0, keys/2) // and its other half later
			testenv.Eventually(t, testenv.Patience(), func() error {
				_, _, err := stream.Last(t.Context(), w.js, w.layout.Stream, fmt.Sprint("lockstep.public.t.row.", keys/2-1))
				if err != nil {
					return err
				}
				s, err := w.js.Stream(t.Context(), w.layout.Stream)
				if err == nil && s.CachedInfo().State.Msgs > uint64(keys+3) {
					err = errors.New("not replaced yet")
				}
				return err
			})
			close(release)
			for len(c.state) < keys { // all that is there, so also the first heartbeat, was read
				part, err := c.Next(t.Context(), time.Second)
				if err != nil {
					t.Fatal(err)
				}
				c.take(t, part)
			}
			batch(2, keys/2, keys)
			w.heartbeat(t, 2)
			c.until(t, 2)
			if len(c.heartbeats) != 1 {
				t.Errorf("heartbeats %v came, want only the second", c.heartbeats)
			}
		})
	}
}
