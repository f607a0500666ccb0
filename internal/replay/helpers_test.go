package replay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"sync"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/replay"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var source = capture.Source{System: 7, Timeline: 1, Database: "app", OID: 42}

func logger(t testing.TB) zerolog.Logger {
	if os.Getenv("LOG_LEVEL") == "debug" {
		return zerolog.New(zerolog.NewTestWriter(t))
	}
	return zerolog.Nop()
}

// writer fills a stream as a bridge does.
type writer struct {
	*publish.Publisher
	nc     *nats.Conn
	js     jetstream.JetStream
	layout stream.Layout
	stop   func()
	// rows counts those sent by row.
	rows uint64
}

func newWriter(t testing.TB, url string) *writer { return startWriter(t, url, publish.Options{}) }

// beginWriter returns one that has begun, and its broker's URL.
func beginWriter(t testing.TB) (*writer, string) {
	t.Helper()
	url := testenv.NATS(t).URL()
	w := newWriter(t, url)
	w.begin(t)
	return w, url
}

// beginShortLog is beginWriter for a log that keeps 64 KiB.
func beginShortLog(t *testing.T) (*writer, string) {
	t.Helper()
	url := testenv.NATS(t).URL()
	w := startWriter(t, url, publish.Options{Log: true, Settings: stream.Settings{MaxBytes: 64 << 10}})
	w.begin(t)
	return w, url
}

func startWriter(t testing.TB, url string, opt publish.Options) *writer {
	t.Helper()
	opt.Prefix = "lockstep"
	if opt.Table == "" {
		opt.Schema, opt.Table = "public", "t"
	}
	nc := testenv.NATSConn(t, url, nats.ReconnectBufSize(-1))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	opt.Leases, err = publish.NewLeases(js, publish.LeaseOptions{Prefix: opt.Prefix, Holder: "test"})
	if err != nil {
		t.Fatal(err)
	}
	p := publish.New(nc, js, opt, publish.NewMetrics(nil), logger(t))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = opt.Leases.Run(ctx) })
	w := &writer{Publisher: p, nc: nc, js: js, layout: stream.NewLayout("lockstep", opt.Schema, opt.Table, opt.Log), stop: func() { cancel(); wg.Wait() }}
	t.Cleanup(w.stop)
	return w
}

// begin starts an epoch, also where the broker has only just come back.
func (w *writer) begin(t testing.TB) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := w.Begin(ctx, source, func() {})
		return err
	})
}

func change(id int, txid, xmin uint64, data string) capture.Change {
	line := lockstep.AppendRowHead(nil, txid, xmin, false)
	line = lockstep.AppendRowTail(fmt.Appendf(line, `{"id":%d,"data":%q}`, id, data))
	return capture.Change{
		Key: [][]byte{fmt.Append(nil, id)}, Txid: txid, Xmin: xmin, High: max(txid, xmin), Line: line,
		KeyJSON: func(dst []byte) ([]byte, error) { return fmt.Appendf(dst, `{"id":%d}`, id), nil },
	}
}

func heartbeat(xmin uint64) capture.Heartbeat {
	return capture.Heartbeat{Snapshot: fmt.Sprintf("%d:%d:", xmin, xmin), Since: xmin, High: xmin}
}

func (w *writer) row(t testing.TB, id int, txid uint64, data string) {
	t.Helper()
	if err := w.Row(t.Context(), change(id, txid, txid, data)); err != nil {
		t.Fatalf("row %d: %v", id, err)
	}
	if w.rows++; w.rows%1000 > 0 {
		return
	}
	// A test that writes much does not run far ahead of its broker.
	testenv.Eventually(t, testenv.Patience(), func() error {
		s, err := w.js.Stream(t.Context(), w.layout.Stream)
		if err == nil && s.CachedInfo().State.LastSeq < w.rows {
			err = fmt.Errorf("%d rows were sent, the stream ends at %d", w.rows, s.CachedInfo().State.LastSeq)
		}
		return err
	})
}

func (w *writer) heartbeat(t testing.TB, xmin uint64) {
	t.Helper()
	if err := w.Heartbeat(t.Context(), heartbeat(xmin)); err != nil {
		t.Fatalf("heartbeat %d: %v", xmin, err)
	}
}

// stored waits until the stream's last heartbeat is that of xmin.
func (w *writer) stored(t testing.TB, xmin uint64) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		msg, _, err := stream.Last(t.Context(), w.js, w.layout.Stream, w.layout.Heartbeat())
		if err != nil {
			return err
		}
		hb, err := stream.ParseHeartbeat(msg.Header, msg.Data)
		if err == nil && hb.Since != xmin {
			err = fmt.Errorf("the last heartbeat is %d, want %d", hb.Since, xmin)
		}
		return err
	})
}

// newHub starts a hub with a connection of its own.
func newHub(t *testing.T, url string, opt replay.Options) *replay.Hub {
	t.Helper()
	return hubWith(t, url, opt, nil)
}

func hubWith(t *testing.T, url string, opt replay.Options, reg prometheus.Registerer) *replay.Hub {
	t.Helper()
	h, stop := startHub(t, url, opt, reg)
	t.Cleanup(stop)
	return h
}

func startHub(t *testing.T, url string, opt replay.Options, reg prometheus.Registerer) (h *replay.Hub, stop func()) {
	t.Helper()
	nc := testenv.NATSConn(t, url, nats.ReconnectBufSize(-1))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if opt.Past == nil {
		if opt.Past, err = jetstream.New(testenv.NATSConn(t, url, nats.ReconnectBufSize(-1))); err != nil {
			t.Fatal(err)
		}
	}
	opt.Native = framed{}
	h = replay.NewHub(js, opt, replay.NewMetrics(reg), logger(t))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Run(ctx)
	}()
	return h, func() { cancel(); <-done }
}

// client reads a relation as HTTP clients do, and keeps its state.
type client struct {
	*replay.Reader
	state map[string]string
	// docs are the documents seen, heartbeats the since of each one.
	docs       []lockstep.Message
	heartbeats []uint64
	completed  int
	// since and cursor are what the client would resume with.
	since  uint64
	cursor lockstep.Cursor
	// onDoc, where set, is called behind each document.
	onDoc func(lockstep.Message)
}

func request(since uint64) replay.Request {
	return replay.Request{Schema: "public", Table: "t", Since: since, Follow: true}
}

func open(t *testing.T, h *replay.Hub, req replay.Request) *client {
	t.Helper()
	r, err := h.Open(t.Context(), req)
	if err != nil {
		t.Fatalf("open %+v: %v", req, err)
	}
	t.Cleanup(r.Close)
	return &client{Reader: r, state: map[string]string{}, since: req.Since, cursor: req.Cursor}
}

// after is a request that goes on after a cursor.
func after(c lockstep.Cursor) replay.Request {
	req := request(0)
	req.Cursor = c
	return req
}

// plain is the form of documents as they are.
type plain struct{}

func (plain) Append(dst []byte, docs iter.Seq[[]byte]) ([]byte, error) {
	for doc := range docs {
		dst = append(dst, doc...)
	}
	return dst, nil
}

func (plain) Together() int { return 0 }

// framed is the native form: documents in brackets.
type framed struct{}

func (f framed) Append(dst []byte, docs iter.Seq[[]byte]) ([]byte, error) {
	for doc := range docs {
		dst, _ = f.Frame(dst, doc)
	}
	return dst, nil
}

func (framed) Together() int { return 0 }

func (framed) Frame(dst, doc []byte) ([]byte, int) {
	return append(append(append(dst, "<<"...), doc...), '>'), len("<<")
}

// documents returns what is in a part, which is the same in the native form and in another.
func documents(t *testing.T, p *replay.Part) [][]byte {
	t.Helper()
	if p.Empty() {
		return nil
	}
	docs, native := rendered(t, p, plain{}), rendered(t, p, framed{})
	for i, doc := range docs {
		if bytes.IndexByte(doc, '\n') != len(doc)-1 {
			t.Fatalf("I11: not one line: %.60q", doc)
		}
		if want, _ := (framed{}).Frame(nil, doc); len(native) != len(docs) || !bytes.Equal(native[i], want) {
			t.Fatalf("I3: in the native form document %d of %d is %.60q, want %.60q", i, len(docs), native[min(i, len(native)-1)], want)
		}
	}
	return docs
}

func rendered(t *testing.T, p *replay.Part, f replay.Form) (docs [][]byte) {
	t.Helper()
	data, begin, ends, err := p.Render(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range ends {
		docs = append(docs, data[begin:end])
		begin = int(end)
	}
	return docs
}

// take applies one answer of Next.
func (c *client) take(t *testing.T, p *replay.Part) {
	t.Helper()
	if p.Completed() {
		if c.completed++; c.completed > 1 || len(c.heartbeats) > 0 {
			t.Errorf("the state was complete for the first time %d times, after %d heartbeats", c.completed, len(c.heartbeats))
		}
	}
	rows := 0
	for i, doc := range documents(t, p) {
		m, err := lockstep.Decode(doc)
		if err != nil {
			t.Fatalf("I11: %v: %.80q", err, doc)
		}
		c.docs = append(c.docs, m)
		if p.Row(i) != (m.Row != nil || m.Control.Type != lockstep.HeartbeatType) {
			t.Errorf("a part says that this is a row: %v: %s", p.Row(i), doc)
		}
		at := p.Position(i + 1)
		if parsed, err := lockstep.ParseCursor(at.String()); err != nil || parsed != at {
			t.Errorf("the cursor %s: %v", at, err)
		}
		if at.Seq <= c.cursor.Seq && at.Incarnation == c.cursor.Incarnation {
			t.Errorf("what is at %d came after the cursor %s", at.Seq, c.cursor)
		}
		c.cursor = at
		switch {
		case m.Row != nil:
			rows++
			if id, _, ok := bytes.Cut(m.Row.Data, []byte(`,"data":`)); ok {
				c.state[string(id)] = string(m.Row.Data)
			}
			c.since = m.Row.Since
		case m.Control.Type == lockstep.HeartbeatType:
			if c.completed == 0 {
				t.Error("a heartbeat came before the state was complete")
			}
			c.heartbeats = append(c.heartbeats, m.Control.Since)
			c.since = m.Control.Since
			own, err := lockstep.ParseCursor(m.Control.Cursor)
			if own.Epoch = at.Epoch; err != nil || own != at { // the edge may know a later one
				t.Errorf("the heartbeat has the cursor %s, %v; the edge says %s", m.Control.Cursor, err, at)
			}
		}
		if c.onDoc != nil {
			c.onDoc(m)
		}
	}
	if !p.Empty() && c.cursor.Holds != c.Holds() {
		t.Errorf("the cursor %s, and its client must be told of deletes from %d on", c.cursor, c.Holds())
	}
	if rows != p.Rows() {
		t.Errorf("a part of %d rows says %d", rows, p.Rows())
	}
}

// until reads until a heartbeat of at least xmin came.
func (c *client) until(t *testing.T, xmin uint64) {
	t.Helper()
	if err := c.try(t, xmin); err != nil {
		t.Fatalf("since %d: %v after %d documents, heartbeats %v", xmin, err, len(c.docs), c.heartbeats)
	}
}

func (c *client) try(t *testing.T, xmin uint64) error {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for len(c.heartbeats) == 0 || c.heartbeats[len(c.heartbeats)-1] < xmin {
		if time.Now().After(deadline) {
			return errors.New("no such heartbeat in 1 min")
		}
		part, err := c.Next(t.Context(), 100*time.Millisecond)
		c.take(t, part)
		if err != nil {
			return err
		}
	}
	return nil
}

// all reads a finite request to its end.
func (c *client) all(t *testing.T) {
	t.Helper()
	for {
		part, err := c.Next(t.Context(), 100*time.Millisecond)
		c.take(t, part)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%v after %d documents", err, len(c.docs))
		}
	}
}

func (c *client) mustState(t *testing.T, want map[string]string) {
	t.Helper()
	if maps.Equal(c.state, want) {
		return
	}
	n := 0
	for k, v := range want {
		if c.state[k] != v && n < 5 {
			n++
			t.Errorf("key %s: have %q, want %q", k, c.state[k], v)
		}
	}
	t.Fatalf("the state has %d rows and differs, want %d", len(c.state), len(want))
}

func rowState(id int, data string) (key, value string) {
	return fmt.Sprintf(`{"id":%d`, id), fmt.Sprintf(`{"id":%d,"data":%q}`, id, data)
}
