package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

var nop = zerolog.Nop()

func TestMain(m *testing.M) { testenv.Main(m) }

// fake is a source that answers every request alike.
type fake struct {
	open func(ctx context.Context, req edge.Request) (edge.Stream, error)

	mu    sync.Mutex
	asked []edge.Request
}

func (f *fake) Open(ctx context.Context, req edge.Request) (edge.Stream, error) {
	f.mu.Lock()
	f.asked = append(f.asked, req)
	f.mu.Unlock()
	if f.open == nil {
		return nil, &edge.Refusal{Code: edge.UnknownRelation, Message: "none"}
	}
	return f.open(ctx, req)
}

func (f *fake) List(context.Context) ([]byte, error) { return []byte("{}\n"), nil }
func (f *fake) Ready(context.Context) error          { return nil }

func (f *fake) requests() []edge.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]edge.Request(nil), f.asked...)
}

// unpaged is what most streams of tests have in common.
type unpaged struct{}

func (unpaged) Incarnation() string { return "i1" }
func (unpaged) Floor() uint64       { return 7 }

func (unpaged) Page(context.Context, int) (edge.Page, error) { return edge.Page{}, errBroken }

// feed is a stream that a test fills; a nil document ends it, "!" breaks it.
type feed struct {
	unpaged
	docs   chan []byte
	closed chan struct{}
}

func newFeed() *feed { return &feed{docs: make(chan []byte, 100), closed: make(chan struct{})} }

var errBroken = errors.New("broken")

func (f *feed) Next(ctx context.Context, wait time.Duration) (edge.Part, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		return nil, nil
	case doc := <-f.docs:
		switch {
		case doc == nil:
			return nil, io.EOF
		case string(doc) == "!":
			return nil, errBroken
		}
		return part{doc}, nil
	}
}

func (f *feed) Return(n int) (int, error) { return n, nil }

func (f *feed) Close() { close(f.closed) }

// part has whole documents, all rows.
type part [][]byte

func (p part) Render(f edge.Form) (data []byte, begin int, ends []uint32, err error) {
	return render([]byte("of another part"), p, f)
}

// render appends documents in the form, to what is there. If the form puts documents together, these become one piece.
func render(data []byte, docs [][]byte, f edge.Form) (_ []byte, begin int, ends []uint32, err error) {
	begin = len(data)
	most := 1
	if f.Together() > 0 {
		most = len(docs)
	}
	for piece := range slices.Chunk(docs, most) {
		if data, err = f.Append(data, slices.Values(piece)); err != nil {
			return nil, 0, nil, err
		}
		ends = append(ends, slices.Repeat([]uint32{uint32(len(data))}, len(piece))...)
	}
	return data, begin, ends, nil
}

func (p part) Len() int        { return len(p) }
func (p part) Size(n int) int  { return len(p[n]) }
func (p part) Row(int) bool    { return true }
func (p part) Rows() int       { return len(p) }
func (p part) Completed() bool { return false }

func (p part) Position(n int) lockstep.Cursor {
	return lockstep.Cursor{Incarnation: "i1", Epoch: "e1", Seq: uint64(n)}
}

// flood is a stream without end of documents of some size, many at once, as
// fast as they are taken.
type flood struct {
	unpaged
	docs part
}

func newFlood(size, n int) *flood {
	f := &flood{}
	for i := range n {
		f.docs = append(f.docs, fmt.Appendf(nil, `{"n":%d,"x":"%s"}`+"\n", i, strings.Repeat("x", size)))
	}
	return f
}

func (f *flood) Next(context.Context, time.Duration) (edge.Part, error) { return f.docs, nil }

func (f *flood) Return(n int) (int, error) { return n, nil }

func (f *flood) Close() {}

// running is a server under test.
type running struct {
	addr    string
	metrics *prometheus.Registry
	stop    context.CancelFunc
	done    chan error
}

func serve(t *testing.T, src edge.Source, opt edge.Options) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, src, opt)
}

// shallow is a listener whose connections buffer little of what is sent.
type shallow struct{ net.Listener }

func (s shallow) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetWriteBuffer(16 << 10)
}

func serveOn(t *testing.T, l net.Listener, src edge.Source, opt edge.Options) *running {
	t.Helper()
	if opt.Metrics == nil {
		opt.Metrics = http.NotFoundHandler()
	}
	r := &running{addr: l.Addr().String(), metrics: prometheus.NewRegistry(), done: make(chan error, 1)}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	s := edge.New(src, opt, edge.NewMetrics(r.metrics), zerolog.Nop())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.done <- s.Run(ctx, l)
	}()
	t.Cleanup(func() { r.stop(); <-stopped })
	return r
}

// metric returns a collector's value; a label's value may be named.
func (r *running) metric(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

func (r *running) awaitMetric(t *testing.T, name, label string, want float64) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if got := r.metric(t, name, label); got != want {
			return fmt.Errorf("%s %s is %v, want %v", name, label, got, want)
		}
		return nil
	})
}

// awaitStall waits until the sockets take no more of what is sent, and returns
// how many bytes they took.
func (r *running) awaitStall(t *testing.T) (sent float64) {
	t.Helper()
	same := time.Now()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if n := r.metric(t, "lockstep_edge_sent_bytes_total", ""); n != sent || n == 0 {
			sent, same = n, time.Now()
		}
		if time.Since(same) < 100*time.Millisecond {
			return errors.New("the sockets still take something")
		}
		return nil
	})
	return sent
}

// conn is a client that speaks HTTP by hand.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, c)
}

func wrap(t *testing.T, c net.Conn) *conn {
	t.Helper()
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &conn{Conn: c, r: bufio.NewReader(c)}
}

func (c *conn) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// get asks for a stream and reads the response's head.
func get(t *testing.T, addr, target string) *conn {
	t.Helper()
	c := dial(t, addr)
	c.send(t, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
	if status := c.head(t); !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		t.Fatalf("GET %s: %s", target, status)
	}
	return c
}

// head reads the response up to its body, and returns it.
func (c *conn) head(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			t.Fatalf("in the response's head, behind %q: %v", b.String(), err)
		}
		b.WriteString(line)
		if line == "\r\n" {
			return b.String()
		}
	}
}

// errTorn says that the body ended within a chunk.
var errTorn = errors.New("the body ends within a chunk")

// chunk reads one chunk as existing clients do, strictly. It returns io.EOF
// where the connection ended between two chunks, and errTorn within one.
func (c *conn) chunk() ([]byte, error) {
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		if len(line) == 0 && errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%w: %w", errTorn, err)
	}
	size, err := strconv.ParseUint(string(bytes.TrimSuffix(line, []byte("\r\n"))), 16, 31)
	if err != nil {
		return nil, fmt.Errorf("%q is no size of a chunk", line)
	}
	b := make([]byte, size+2)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, fmt.Errorf("%w: %w", errTorn, err)
	}
	if !bytes.HasSuffix(b, []byte("\r\n")) {
		return nil, fmt.Errorf("a chunk of %d bytes ends with %q", size, b[size:])
	}
	return b[:size], nil
}

func (c *conn) mustChunk(t *testing.T, want string) {
	t.Helper()
	got, err := c.chunk()
	if err != nil || string(got) != want {
		t.Fatalf("got chunk %q, %v, want %q", got, err, want)
	}
}

// mustCut reads to the end of the connection, which must come between two
// chunks and without the final one.
func (c *conn) mustCut(t *testing.T) {
	t.Helper()
	for {
		b, err := c.chunk()
		if errors.Is(err, io.EOF) && !errors.Is(err, errTorn) {
			return
		}
		if err != nil || len(b) == 0 {
			t.Fatalf("got chunk %q, %v, want the connection's end between two chunks", b, err)
		}
	}
}
