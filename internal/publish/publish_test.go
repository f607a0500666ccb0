package publish_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var source = capture.Source{System: 7, Timeline: 1, Database: "app", OID: 42}

// writer is a publisher under test whose Run is running.
type writer struct {
	*publish.Publisher
	js   jetstream.JetStream
	stop func()
	// broker is what the publisher sees of js.
	broker *moody
}

func newWriter(t *testing.T, url, holder string) *writer {
	t.Helper()
	return startWriter(t, url, holder, publish.Options{})
}

func newLogWriter(t *testing.T, url string, lim stream.Settings) *writer {
	t.Helper()
	return startWriter(t, url, "log", publish.Options{Log: true, Settings: lim})
}

func startWriter(t *testing.T, url, holder string, opt publish.Options) *writer {
	t.Helper()
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	if os.Getenv("LOG_LEVEL") == "debug" {
		log = log.Level(zerolog.DebugLevel)
	}
	return startLogging(t, url, holder, opt, log)
}

func startLogging(t *testing.T, url, holder string, opt publish.Options, log zerolog.Logger) *writer {
	t.Helper()
	opt.Prefix, opt.Schema, opt.Table = "lockstep", "public", "t"
	nc := testenv.NATSConn(t, url, nats.ReconnectBufSize(-1))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	opt.Leases, err = publish.NewLeases(js, publish.LeaseOptions{Prefix: opt.Prefix, Holder: holder, Replicas: opt.Settings.Replicas, Timing: opt.Timing})
	if err != nil {
		t.Fatal(err)
	}
	broker := &moody{JetStream: js}
	p := publish.New(nc, broker, opt, publish.NewMetrics(nil), log)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = opt.Leases.Run(ctx) })
	w := &writer{Publisher: p, js: js, broker: broker, stop: func() { cancel(); wg.Wait() }}
	t.Cleanup(w.stop)
	return w
}

// lockedBuffer is what several goroutines write a log to.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (w *writer) begin(t *testing.T) capture.Position {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pos, err := w.Begin(ctx, source, func() {})
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	return pos
}

func change(id int, txid uint64, data string) capture.Change {
	line := lockstep.AppendRowHead(nil, txid, txid, false)
	line = lockstep.AppendRowTail(fmt.Appendf(line, `{"id":%d,"data":%q}`, id, data))
	return capture.Change{
		Key: [][]byte{fmt.Append(nil, id)}, Txid: txid, Xmin: txid, High: txid, Line: line,
		KeyJSON: func(dst []byte) ([]byte, error) { return fmt.Appendf(dst, `{"id":%d}`, id), nil },
	}
}

func heartbeat(xmin uint64) capture.Heartbeat {
	return capture.Heartbeat{Snapshot: fmt.Sprintf("%d:%d:", xmin, xmin), Since: xmin, Durable: fmt.Sprintf("%d:%d:", xmin, xmin), High: xmin}
}

func (w *writer) mustRow(t *testing.T, id int, txid uint64) {
	t.Helper()
	if err := w.Row(t.Context(), change(id, txid, "x")); err != nil {
		t.Fatalf("row %d: %v", id, err)
	}
}

// awaitFault sends a row until the writer learns that its epoch has ended.
func (w *writer) awaitFault(t *testing.T, c capture.Change) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if err := w.Row(t.Context(), c); !errors.Is(err, publish.ErrFault) {
			return fmt.Errorf("the writer was not told: %v", err)
		}
		return nil
	})
}

func (w *writer) mustHeartbeat(t *testing.T, xmin uint64) {
	t.Helper()
	if err := w.Heartbeat(t.Context(), heartbeat(xmin)); err != nil {
		t.Fatalf("heartbeat %d: %v", xmin, err)
	}
}

// contents reads the whole stream. It returns rows as id@txid, and heartbeats and
// fences by name.
func contents(t *testing.T, js jetstream.JetStream) []string {
	t.Helper()
	l := stream.NewLayout("lockstep", "public", "t", false)
	s, err := js.Stream(t.Context(), l.Stream)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	var high uint64
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		h, err := stream.High(m.Header)
		if err != nil {
			t.Fatalf("message %d: %v", seq, err)
		}
		if h < high {
			t.Errorf("I5: High falls from %d to %d at sequence %d", high, h, seq)
		}
		high = h
		switch l.KindOf(m.Subject) {
		case stream.KindRow:
			key, err := l.Key(m.Subject, m.Header.Get(stream.KeyHeader))
			if err != nil {
				t.Fatal(err)
			}
			txid, _ := lockstep.Txid(m.Data)
			out = append(out, fmt.Sprintf("%s@%d", key[0], txid))
		case stream.KindHeartbeat:
			out = append(out, "heartbeat")
		case stream.KindFence:
			out = append(out, "fence")
		}
	}
	return out
}

func (w *writer) awaitContents(t *testing.T, want string) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if got := strings.Join(contents(t, w.js), " "); got != want {
			return fmt.Errorf("the stream holds %q, want %q", got, want)
		}
		return nil
	})
}

// TestPublish_ResumesFromTheStreamAlone (I7): the stream holds everything that a
// new writer needs to go on.
func TestPublish_ResumesFromTheStreamAlone(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	w := newWriter(t, url, "a")
	if pos := w.begin(t); pos.Heartbeat != nil || pos.Batch != nil || pos.After != nil || pos.Schema != nil || pos.High != 0 {
		t.Fatalf("an empty stream has position %+v", pos)
	}
	if err := w.Schema(t.Context(), []byte(`{"v":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := w.Announce(t.Context(), capture.Batch{Snapshot: "10:10:"}); err != nil {
		t.Fatal(err)
	}
	if pos := w.begin(t); pos.Batch == nil || pos.After != nil {
		t.Fatalf("announced, no row: position %+v", pos)
	}
	w.mustRow(t, 1, 5)
	w.mustRow(t, 2, 7)
	pos := w.begin(t)
	if pos.Batch == nil || pos.Batch.Snapshot != "10:10:" || pos.After == nil || pos.After.Txid != 7 || string(pos.After.Key[0]) != "2" {
		t.Fatalf("in the middle of a batch: position %+v, after %+v", pos, pos.After)
	}
	w.begin(t) // fences and alive messages after the row change nothing
	pos = w.begin(t)
	if pos.After == nil || pos.After.Txid != 7 || string(pos.Schema) != `{"v":1}` || pos.High != 7 {
		t.Fatalf("killed twice in the middle: position %+v", pos)
	}
	w.mustRow(t, 3, 8)
	w.mustHeartbeat(t, 10)
	pos = w.begin(t)
	if pos.Batch != nil || pos.Heartbeat == nil || *pos.Heartbeat != heartbeat(10) || pos.High != 10 {
		t.Fatalf("after the heartbeat: position %+v heartbeat %+v", pos, pos.Heartbeat)
	}
}

// TestPublish_DeposedWriterStoresNothing (I6): once another writer has stored its
// fence, no message of the old one is stored, whatever it still sends.
func TestPublish_DeposedWriterStoresNothing(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	// The same holder twice: two processes that both believe they hold the lease.
	a, b := newWriter(t, url, "same"), newWriter(t, url, "same")
	a.begin(t)
	a.mustRow(t, 1, 5)
	a.mustHeartbeat(t, 6)
	a.awaitContents(t, "fence 1@5 heartbeat")
	b.begin(t)
	b.mustRow(t, 2, 7)
	b.awaitContents(t, "1@5 heartbeat fence 2@7")
	for i := range 2000 {
		if err := a.Row(t.Context(), change(100+i, 9, "old")); err != nil {
			if !errors.Is(err, publish.ErrFault) {
				t.Fatalf("got %v, want ErrFault", err)
			}
			break
		}
	}
	a.awaitFault(t, change(1, 9, "old"))
	b.mustRow(t, 3, 8)
	b.mustHeartbeat(t, 9)
	b.awaitContents(t, "1@5 fence 2@7 3@8 heartbeat")
}

// TestPublish_SlowBrokerEndsNoEpoch: a broker that stops for two seconds loses nothing, so it costs no epoch either. (The
// client library asks it for its acknowledgements after 1.3 s.)
func TestPublish_SlowBrokerEndsNoEpoch(t *testing.T) {
	t.Parallel()
	broker := testenv.NATSProcess(t)
	w := startWriter(t, broker.URL(), "a", publish.Options{Timing: publish.Timing{LeaseTTL: time.Minute}})
	w.begin(t)
	w.mustRow(t, 0, 10)
	broker.Pause()
	resumed := make(chan struct{})
	time.AfterFunc(2*time.Second, func() { broker.Resume(); close(resumed) })
	for id := range 5000 { // more than is ever in flight
		w.mustRow(t, id, 10)
	}
	select {
	case <-resumed:
	default:
		t.Error("the writer never waited for the broker: the test shows nothing")
	}
	w.mustHeartbeat(t, 11)
	if rows := w.scan(t); len(rows) != 5000 { // it waits until everything is stored
		t.Errorf("the stream has %d rows, want 5000", len(rows))
	}
}

// TestPublish_ForeignMessageBeginsAnew (I8): a message that no bridge wrote may
// have replaced a row or the last heartbeat. So the stream is filled again, and
// the floor tells clients.
func TestPublish_ForeignMessageBeginsAnew(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	for n, subject := range []string{"row.2", "heartbeat", "fence", "row.1"} {
		w.mustRow(t, 1, 5)
		w.mustRow(t, 2, 6)
		w.mustHeartbeat(t, 9)
		w.mustRow(t, 3, uint64(20+n))
		testenv.Eventually(t, testenv.Patience(), func() error {
			if got := contents(t, w.js); !slices.Contains(got, fmt.Sprint("3@", 20+n)) {
				return fmt.Errorf("the stream holds %q", got)
			}
			return nil
		})
		if _, err := w.js.Publish(t.Context(), "_lockstep.public.t."+subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		pos := w.begin(t)
		if pos.Heartbeat != nil || pos.Batch != nil || pos.Schema != nil {
			t.Errorf("%s: %+v, want nothing to go on from", subject, pos)
		}
		s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
		if err != nil {
			t.Fatal(err)
		}
		if m, err := stream.ReadMeta(s.CachedInfo().Config); err != nil || m.Floor <= uint64(20+n) {
			t.Errorf("%s: floor %d, %v; want more than was shown, %d", subject, m.Floor, err, 20+n)
		}
		w.mustHeartbeat(t, uint64(21+n))
		w.awaitContents(t, "fence heartbeat")
	}
}

// TestPublish_ForeignMessageEndsTheEpoch (I6): a message of anybody else ends
// the epoch, and nothing of the epoch is stored after it.
func TestPublish_ForeignMessageEndsTheEpoch(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	w := newWriter(t, url, "a")
	w.begin(t)
	w.mustRow(t, 1, 5)
	w.awaitContents(t, "fence 1@5")
	foreign := change(66, 6, "foreign")
	msg := &nats.Msg{Subject: "_lockstep.public.t.row.66", Data: foreign.Line, Header: nats.Header{stream.HighHeader: {"6"}}}
	if _, err := w.js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	w.awaitFault(t, change(2, 7, "x"))
	w.awaitContents(t, "fence 1@5 66@6")
	w.begin(t)
	w.mustRow(t, 2, 7)
	w.awaitContents(t, "1@5 66@6 fence 2@7")
}

// TestPublish_StandbyTakesOver (I6): while one bridge holds the lease, the other
// waits. It takes over within 5 s after the first one stops.
func TestPublish_StandbyTakesOver(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	a, b := newWriter(t, url, "a"), newWriter(t, url, "b")
	a.begin(t)
	a.mustRow(t, 1, 5)
	took := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		_, err := b.Begin(ctx, source, func() {})
		took <- err
	}()
	// Longer than the lease lives: it must be renewed.
	select {
	case err := <-took:
		t.Fatalf("the standby did not wait: %v", err)
	case <-time.After(5 * time.Second):
	}
	a.mustRow(t, 2, 6)
	a.stop()
	select {
	case err := <-took:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the standby did not take over within 5 s")
	}
	b.mustRow(t, 3, 7)
	b.awaitContents(t, "1@5 2@6 fence 3@7")
}

// TestPublish_QuietBatchStaysOpen: the server drops a batch after 10 s of
// silence, but alive messages keep it open.
func TestPublish_QuietBatchStaysOpen(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 12 s")
	}
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	w.mustRow(t, 1, 5)
	<-time.After(12 * time.Second) // longer than the server's limit
	w.mustRow(t, 2, 6)
	w.awaitContents(t, "fence 1@5 2@6")
	if err := w.Row(t.Context(), change(3, 7, "x")); err != nil {
		t.Fatal(err)
	}
}

// TestPublish_LostTailIsNoticed (I8): if the broker loses messages while a writer
// runs, the epoch ends. The next epoch goes on from what the broker still has.
func TestPublish_LostTailIsNoticed(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	w := newWriter(t, url, "a")
	w.begin(t)
	w.mustRow(t, 1, 5)
	w.mustHeartbeat(t, 6)
	w.awaitContents(t, "fence 1@5 heartbeat")
	if err := w.js.DeleteStream(t.Context(), "LOCKSTEP-public-t"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, testenv.Patience(), func() error {
		if err := w.Heartbeat(t.Context(), heartbeat(7)); !errors.Is(err, publish.ErrFault) {
			return fmt.Errorf("the writer was not told: %v", err)
		}
		return nil
	})
	if pos := w.begin(t); pos.Heartbeat != nil || pos.High != 0 {
		t.Fatalf("a new stream has position %+v", pos)
	}
}

// TestPublish_NewIncarnation: a new incarnation has no old rows, and its floor is
// above every position ever shown. If the writer crashes between the two steps,
// the next epoch completes them.
func TestPublish_NewIncarnation(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	meta := func() stream.Meta {
		s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.ReadMeta(s.CachedInfo().Config)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	w.begin(t)
	first := meta()
	w.mustRow(t, 1, 5)
	w.mustHeartbeat(t, 9)
	w.awaitContents(t, "fence 1@5 heartbeat")
	if err := w.Restart(t.Context(), "a test", 0); err != nil {
		t.Fatal(err)
	}
	// Here a crash would leave the old rows under the new incarnation.
	if pos := w.begin(t); pos.Heartbeat != nil || pos.High != 0 || pos.Schema != nil {
		t.Fatalf("a new incarnation has position %+v", pos)
	}
	w.mustRow(t, 2, 3)
	w.awaitContents(t, "fence 2@3")
	if m := meta(); m.Incarnation == first.Incarnation || m.Floor != 10 {
		t.Errorf("got %+v, want another incarnation than %s with floor 10", m, first.Incarnation)
	}
	other := source
	other.OID++
	if _, err := w.Begin(t.Context(), other, func() {}); err != nil {
		t.Fatal(err)
	}
	w.awaitContents(t, "fence")
	other.Database = "elsewhere"
	if _, err := w.Begin(t.Context(), other, func() {}); !errors.Is(err, capture.ErrOtherSource) {
		t.Fatalf("another database: got %v, want ErrOtherSource", err)
	}
	if err := w.Adopt(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Begin(t.Context(), other, func() {}); err != nil {
		t.Fatalf("after adopt: %v", err)
	}
}

// TestPublish_Suspects: Suspects returns the keys from a txid on, in pages, each
// key once.
func TestPublish_Suspects(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	for i := range 50 {
		w.mustRow(t, i, uint64(100+i))
	}
	w.mustRow(t, 3, 160)
	w.mustHeartbeat(t, 160)
	w.begin(t)
	got := map[string]int{}
	var page capture.Page
	for more := true; more; more = page != (capture.Page{}) {
		rows, next, err := w.Suspects(t.Context(), 120, page, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) > 7 {
			t.Fatalf("%d rows in a page of 7", len(rows))
		}
		for _, r := range rows {
			got[string(r.Key[0])]++
			if err := w.Row(t.Context(), change(1000+len(got), 200, "repaired")); err != nil {
				t.Fatal(err) // rows stored meanwhile are not suspect
			}
		}
		page = next
	}
	for i := range 50 {
		want := 0
		if i >= 20 || i == 3 {
			want = 1
		}
		if n := got[fmt.Sprint(i)]; n != want {
			t.Errorf("key %d came %d times, want %d", i, n, want)
		}
	}
}

// TestPublish_SuspectsReadOnlyWhatMayBeSuspect: a search from a txid on reads
// nothing that stands before the first row with such a txid. A search that lasts
// says in the log how far it has come (issue 14, number 11).
func TestPublish_SuspectsReadOnlyWhatMayBeSuspect(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	w := startLogging(t, testenv.NATS(t).URL(), "a", publish.Options{Timing: publish.Timing{Progress: time.Nanosecond}}, zerolog.New(&log))
	w.begin(t)
	for i := range 100 {
		w.mustRow(t, i, uint64(100+i))
	}
	w.mustHeartbeat(t, 200)
	w.begin(t)
	const said = "looking in the stream for rows that a crash of Postgres may have undone"
	read := func(txid uint64) int {
		t.Helper()
		before := strings.Count(log.String(), said)
		rows, next, err := w.Suspects(t.Context(), txid, capture.Page{}, 1000)
		if err != nil || next != (capture.Page{}) {
			t.Fatalf("got %v, %v", next, err)
		}
		if want := int(max(200, txid) - txid); len(rows) != want {
			t.Errorf("from %d on: %d rows, want %d", txid, len(rows), want)
		}
		return strings.Count(log.String(), said) - before
	}
	// Besides rows there are a heartbeat, a fence and a message that opens the batch.
	if n := read(190); n < 10 || n > 14 {
		t.Errorf("%d messages were read from 190 on, want those of 10 rows, and few more", n)
	}
	if n := read(200); n > 4 {
		t.Errorf("%d messages were read from 200 on, want none of a row", n)
	}
	if !strings.Contains(log.String(), `"last":`) {
		t.Errorf("the log does not say how far it is to go:\n%s", log.String())
	}
}

// TestPublish_FloorAfterAFailover (I3): after a failover Postgres may give out
// again IDs that were shown before. So a stream that did not exist, and one whose
// end may be lost, refuse every position of a time before (issue 14, number 11).
func TestPublish_FloorAfterAFailover(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		first capture.Source // of a stream that exists; zero for none
		then  capture.Source
		floor uint64
	}{
		{"no stream, first timeline", capture.Source{}, capture.Source{Timeline: 1, Next: 500}, 0},
		{"no stream, second timeline", capture.Source{}, capture.Source{Timeline: 2, Next: 500}, 500},
		{"a stream of the first timeline", capture.Source{Timeline: 1}, capture.Source{Timeline: 2, Next: 500}, 500},
		{"a stream that is ahead", capture.Source{Timeline: 1}, capture.Source{Timeline: 2, Next: 5}, 10},
		{"a stream of the same timeline", capture.Source{Timeline: 2, Next: 3}, capture.Source{Timeline: 2, Next: 500}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWriter(t, testenv.NATS(t).URL(), "a")
			begin := func(src capture.Source) {
				t.Helper()
				src.System, src.Database, src.OID = 7, "app", 42
				if _, err := w.Begin(t.Context(), src, func() {}); err != nil {
					t.Fatal(err)
				}
			}
			if c.first.Timeline != 0 {
				begin(c.first)
				w.mustRow(t, 1, 5)
				w.mustHeartbeat(t, 9)
			}
			begin(c.then)
			s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
			if err != nil {
				t.Fatal(err)
			}
			if m, err := stream.ReadMeta(s.CachedInfo().Config); err != nil || m.Floor != c.floor {
				t.Errorf("the floor is %d, want %d (%v)", m.Floor, c.floor, err)
			}
		})
	}
}

// TestPublish_HighNeverFalls (I5): a row with a lower position does not lower
// High. Such rows come after a crash, and from transactions that took their txid
// early and wrote late.
func TestPublish_HighNeverFalls(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	for i, txid := range []uint64{5, 9, 6, 7} {
		w.mustRow(t, i, txid)
	}
	w.awaitContents(t, "fence 0@5 1@9 2@6 3@7") // contents also checks High
	if pos := w.begin(t); pos.High != 9 {
		t.Errorf("High is %d, want 9", pos.High)
	}
}

// TestPublish_LastRowIsFoundAnywhere (I7): the last row stored after an
// announcement is found, whatever lies between it and the stream's end.
func TestPublish_LastRowIsFoundAnywhere(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	for rows := 1; rows <= 12; rows++ {
		if err := w.Announce(t.Context(), capture.Batch{Snapshot: "10:10:"}); err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			w.mustRow(t, i, uint64(100*rows+i))
		}
		for range rows % 5 { // fences that replace each other leave holes
			w.begin(t)
		}
		pos := w.begin(t)
		if want := uint64(100*rows + rows - 1); pos.After == nil || pos.After.Txid != want || string(pos.After.Key[0]) != fmt.Sprint(rows-1) {
			t.Fatalf("%d rows: position %+v, want the row of txid %d", rows, pos.After, want)
		}
	}
}

// TestPublish_LogKeepsItsSchema: in a stream whose messages expire, the schema is
// repeated before it does, and the limits follow the configuration.
func TestPublish_LogKeepsItsSchema(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	w := newLogWriter(t, url, stream.Settings{MaxAge: time.Hour, MaxBytes: 64 << 10})
	w.begin(t)
	if err := w.Schema(t.Context(), []byte(`{"v":1}`)); err != nil {
		t.Fatal(err)
	}
	for i := range 400 { // several times what the stream keeps
		if err := w.Row(t.Context(), change(i, uint64(i+1), strings.Repeat("z", 1000))); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 {
			w.mustHeartbeat(t, uint64(i+2))
		}
	}
	w.stop()
	again := newLogWriter(t, url, stream.Settings{MaxAge: 2 * time.Hour, MaxBytes: 64 << 10})
	pos := again.begin(t)
	if string(pos.Schema) != `{"v":1}` || pos.Heartbeat == nil || pos.Heartbeat.Since != 401 {
		t.Errorf("position %+v, want the schema and the last heartbeat", pos)
	}
	s, err := again.js.Stream(t.Context(), "LOCKSTEP-public-t")
	if err != nil {
		t.Fatal(err)
	}
	info := s.CachedInfo()
	if info.State.FirstSeq == 1 || info.Config.MaxAge != 2*time.Hour {
		t.Errorf("first sequence %d, max age %s: want old versions gone and the new limit", info.State.FirstSeq, info.Config.MaxAge)
	}
}

// TestPublish_TombstonesExpire (I3): old deleted rows are removed, and everything
// else stays. The floor rises above every position from which a client would
// still need them, and readers of the stream are told of it first.
func TestPublish_TombstonesExpire(t *testing.T) {
	t.Parallel()
	w := startWriter(t, testenv.NATS(t).URL(), "a", publish.Options{Tombstones: 2 * time.Second})
	w.begin(t)
	w.mustRow(t, 1, 5)
	gone := change(2, 6, "x")
	gone.Line = lockstep.AppendRowTail(append(lockstep.AppendRowHead(nil, 6, 6, true), `{"id":2}`...))
	if err := w.Row(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	w.mustRow(t, 3, 7)
	w.awaitContents(t, "fence 1@5 2@6 3@7")
	s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
	if err != nil {
		t.Fatal(err)
	}
	floor := func() uint64 {
		t.Helper()
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.ReadMeta(info.Config)
		if err != nil || m.Floor != 0 && m.Floor != 7 {
			t.Fatalf("floor %d, %v; want 7", m.Floor, err)
		}
		return m.Floor
	}
	there := func() bool {
		t.Helper()
		_, err := s.GetLastMsgForSubject(t.Context(), "lockstep.public.t.row.2")
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	testenv.Eventually(t, testenv.Patience(), func() error {
		w.mustHeartbeat(t, 9) // one of them has the floor
		if there() {
			return fmt.Errorf("row 2 is there still; the floor is %d", floor())
		}
		return nil
	})
	if f := floor(); f != 7 {
		t.Errorf("row 2 is gone, and the floor is %d, want 7", f)
	}
	w.awaitContents(t, "fence 1@5 3@7 heartbeat")
	msg, err := s.GetLastMsgForSubject(t.Context(), "lockstep.public.t.heartbeat")
	if err != nil || msg.Header.Get(stream.FloorHeader) != "7" {
		t.Errorf("the heartbeat's floor is %q, %v; want 7", msg.Header.Get(stream.FloorHeader), err)
	}
	w.mustHeartbeat(t, 9) // the epoch goes on
}

// TestPublish_TombstoneRounds_I3: the rounds one by one. A deleted row stays while no stored heartbeat has the floor that is
// above it, and for one round more.
func TestPublish_TombstoneRounds_I3(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	gone := change(2, 6, "x")
	gone.Line = lockstep.AppendRowTail(append(lockstep.AppendRowHead(nil, 6, 6, true), `{"id":2}`...))
	if err := w.Row(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	w.awaitContents(t, "fence 2@6")
	round := w.TombstoneRounds(time.Now().Add(time.Hour))
	removes := func(what string, want int) {
		t.Helper()
		if n, err := round(t.Context()); err != nil || n != want {
			t.Fatalf("%s: %d rows removed, %v; want %d", what, n, err, want)
		}
	}
	for range 3 {
		removes("no heartbeat has the floor", 0)
	}
	w.mustHeartbeat(t, 9)
	w.awaitContents(t, "fence 2@6 heartbeat")
	removes("the first round after it was stored", 0)
	removes("the second", 1)
	w.awaitContents(t, "fence heartbeat")
}
