package edge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/internal/testenv"
)

func open(st edge.Stream) *fake {
	return &fake{open: func(context.Context, edge.Request) (edge.Stream, error) { return st, nil }}
}

// TestServer_WireBytes: existing clients depend on the head, on one document
// in each chunk, on the keep-alive chunk and on the final one, byte by byte.
func TestServer_WireBytes(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{KeepAlive: 50 * time.Millisecond})
	c := dial(t, r.addr)
	c.send(t, "GET /users?since=42 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") // as the Erlang client asks
	const want = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n" +
		"Lockstep-Incarnation: i1\r\nLockstep-Floor: 7\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
	if got := c.head(t); got != want {
		t.Fatalf("got head\n%s\nwant\n%s", got, want)
	}
	c.mustChunk(t, "\r\n")
	for i := range 3 {
		f.docs <- fmt.Appendf(nil, `{"n":%d}`+"\n", i)
	}
	for i := range 3 {
		for {
			got, err := c.chunk()
			if string(got) == "\r\n" {
				continue
			}
			if want := fmt.Sprintf(`{"n":%d}`+"\n", i); err != nil || string(got) != want {
				t.Fatalf("got chunk %q, %v, want %q", got, err, want)
			}
			break
		}
	}
	f.docs <- nil
	for {
		got, err := c.chunk()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
	}
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) != 0 {
		t.Errorf("behind the final chunk: %q, %v", rest, err)
	}
	<-f.closed
	r.awaitMetric(t, "lockstep_edge_streams_ended_total", "end", 1)
	r.awaitMetric(t, "lockstep_edge_clients", "", 0)
	if rows := r.metric(t, "lockstep_edge_sent_rows_total", ""); rows != 3 {
		t.Errorf("%v rows counted, want 3", rows)
	}
}

// TestServer_KeepAliveOnlyInSilence: a client that gets documents gets no
// keep-alive between them.
func TestServer_KeepAliveOnlyInSilence(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{KeepAlive: time.Hour})
	c := get(t, r.addr, "/users")
	for range 20 {
		f.docs <- []byte("{}\n")
		c.mustChunk(t, "{}\n")
	}
}

// TestServer_BrokenSourceIsACut (I11): a stream that fails ends between two
// chunks and without the final one, so that its client comes back.
func TestServer_BrokenSourceIsACut(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{})
	c := get(t, r.addr, "/users")
	f.docs <- []byte("{}\n")
	f.docs <- []byte("!")
	c.mustChunk(t, "{}\n")
	c.mustCut(t)
	<-f.closed
	r.awaitMetric(t, "lockstep_edge_streams_ended_total", "source", 1)
}

// TestServer_Refusals: what is refused outside the path, each with its status.
func TestServer_Refusals(t *testing.T) {
	t.Parallel()
	src := &fake{}
	r := serve(t, src, edge.Options{})
	header := func(n int) string { return "X: " + strings.Repeat("h", n) + "\r\n" }
	for _, c := range []struct{ name, request, want string }{
		{"HTTP/1.0", "GET /users HTTP/1.0\r\nHost: x\r\n\r\n", "505 "},
		{"a body", "GET /users HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "400 "},
		{"a chunked body", "GET /users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 "},
		{"an announced body", "GET /users HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", "400 "},
		{"a body that is not sent", "POST /users HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n", "405 "},
		{"17 KiB of header", "GET /users HTTP/1.1\r\nHost: x\r\n" + header(17<<10) + "\r\n", "431 "},
		{"17 KiB of target", "GET /" + strings.Repeat("x", 17<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431 "},
		{"15 KiB of header", "GET /users HTTP/1.1\r\nHost: x\r\n" + header(15<<10) + "\r\n", "404 "},
		{"no host", "GET /users HTTP/1.1\r\n\r\n", "400 "},
		{"not HTTP", "hello\r\n\r\n", "400 "},
		{"a control character", "GET /us\x00ers HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"two answers", "GET /users HTTP/1.1\r\nHost: x\r\n\r\nGET /users HTTP/1.1\r\nHost: x\r\n\r\n", "404 "},
		{"healthz", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
		{"readyz", "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
		{"the list", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, r.addr)
			conn.send(t, c.request)
			if got := conn.head(t); !strings.HasPrefix(got, "HTTP/1.1 "+c.want) && !strings.HasPrefix(got, "HTTP/1.0 "+c.want) || strings.Contains(got, "Location:") {
				t.Errorf("got %q, want status %s", got, c.want)
			}
		})
	}
}

// TestServer_SourceRefusals: each code of a source has its status, and what is
// not a refusal shows nothing of itself.
func TestServer_SourceRefusals(t *testing.T) {
	t.Parallel()
	var err error
	src := &fake{open: func(context.Context, edge.Request) (edge.Stream, error) { return nil, err }}
	r := serve(t, src, edge.Options{})
	for code, want := range map[edge.Code]string{
		edge.UnknownRelation: "404", edge.SinceAhead: "409", edge.SinceTooOld: "410", edge.NotReady: "503", edge.Internal: "500", "never heard of": "500",
	} {
		err = &edge.Refusal{Code: code, Message: "because", Cause: errors.New("secret")}
		c := dial(t, r.addr)
		c.send(t, "GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
		head := c.head(t)
		body, _ := io.ReadAll(c.r)
		if !strings.HasPrefix(head, "HTTP/1.1 "+want) || string(body) != fmt.Sprintf(`{"error":{"code":%q,"message":"because"}}`+"\n", code) {
			t.Errorf("%s: %s%s", code, head, body)
		}
		if (want == "503") != strings.Contains(head, "Retry-After: ") {
			t.Errorf("%s: %s", code, head)
		}
	}
	err = errors.New("secret")
	c := dial(t, r.addr)
	c.send(t, "GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
	head := c.head(t)
	if body, _ := io.ReadAll(c.r); !strings.HasPrefix(head, "HTTP/1.1 500") || strings.Contains(string(body), "secret") {
		t.Errorf("an unknown error: %s%s", head, body)
	}
}

// TestServer_Head: a HEAD request gets the status that a GET would, and no body.
func TestServer_Head(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{})
	c := dial(t, r.addr)
	c.send(t, "HEAD /users HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if head := c.head(t); !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") || !strings.Contains(head, "Content-Type: application/json\r\n") {
		t.Errorf("got %s", head)
	}
	if body, err := io.ReadAll(c.r); err != nil || len(body) > 0 {
		t.Errorf("got body %q, %v", body, err)
	}
	<-f.closed
}

// TestServer_SlowHeaderIsCut: a client that sends its header a byte at a time
// is cut after 5 s.
func TestServer_SlowHeaderIsCut(t *testing.T) {
	t.Parallel()
	r := serve(t, &fake{}, edge.Options{})
	begun := time.Now()
	c := dial(t, r.addr)
	c.send(t, "GET /users HTTP/1.1\r\nHost: x\r\nX: ")
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
		}
	}()
	_, _ = io.Copy(io.Discard, c.r)
	if d := time.Since(begun); d < 4*time.Second || d > 10*time.Second {
		t.Errorf("cut after %s", d)
	}
}

// TestServer_BodyThatNeverComesIsCut (I9): a body that is announced and not sent
// holds no connection for long.
func TestServer_BodyThatNeverComesIsCut(t *testing.T) {
	t.Parallel()
	r := serve(t, &fake{}, edge.Options{})
	for _, request := range []string{
		"GET /users HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
		"POST /users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n",
	} {
		t.Run(request[:12], func(t *testing.T) {
			t.Parallel()
			c := dial(t, r.addr)
			c.send(t, request)
			begun := time.Now()
			_, _ = io.Copy(io.Discard, c.r)
			if d := time.Since(begun); d > 20*time.Second {
				t.Errorf("cut after %s", d)
			}
		})
	}
}

// TestServer_StalledClientIsCutAlone (I10): a client that takes nothing is cut
// by the write deadline, and others don't notice.
func TestServer_StalledClientIsCutAlone(t *testing.T) {
	t.Parallel()
	docs := newFlood(1000, 100)
	r := serve(t, &fake{open: func(context.Context, edge.Request) (edge.Stream, error) { return docs, nil }},
		edge.Options{WriteTimeout: 2 * time.Second})
	stalled, reading := get(t, r.addr, "/users"), get(t, r.addr, "/users")
	if err := stalled.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	read := 0
	testenv.Eventually(t, testenv.Patience(), func() error {
		for range 100 {
			if _, err := reading.chunk(); err != nil {
				t.Fatalf("the reading client, after %d chunks: %v", read, err)
			}
			read++
		}
		if r.metric(t, "lockstep_edge_streams_ended_total", "slow") != 1 {
			return errors.New("the stalled client was not cut")
		}
		return nil
	})
	r.awaitMetric(t, "lockstep_edge_clients", "", 1) // the reading one
}

// TestServer_SlowClientIsNotCut (I10): a client that takes a document more slowly than the write timeout, but always something,
// gets all of it.
func TestServer_SlowClientIsNotCut(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	docs := newFlood(1<<20, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := serveOn(t, shallow{l}, open(docs), edge.Options{WriteTimeout: timeout})
	c := get(t, r.addr, "/users")
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	r.awaitStall(t)
	// The client takes what one write has more slowly than the timeout, but takes something within each.
	pace := time.NewTicker(timeout / 10)
	defer pace.Stop()
	begun, taken := time.Now(), 0
	for ; time.Since(begun) < 5*timeout || taken < 512<<10; <-pace.C {
		n, err := io.CopyN(io.Discard, c.r, 16<<10)
		if taken += int(n); err != nil {
			t.Fatalf("after %d bytes and %s: %v", taken, time.Since(begun), err)
		}
	}
}

// TestServer_StalledClientIsKeptNothing (I9): of what a client does not take, only the chunk that it is in is kept; the rest is
// given back, and comes again when the client goes on. It gets every document once, in order.
func TestServer_StalledClientIsKeptNothing(t *testing.T) {
	t.Parallel()
	n := &numbered{returned: make(chan int, 1000)}
	r := serve(t, open(n), edge.Options{})
	c := get(t, r.addr, "/users")
	for range 2 { // it stalls twice
		kept := <-n.returned
		if kept == 0 || kept > partOfNumbered {
			t.Errorf("%d documents of a part were kept, want those that were begun", kept)
		}
		for range 3 * partOfNumbered {
			c.mustChunk(t, string(n.doc(n.read)))
			n.read++
		}
	}
}

// numbered is a stream of documents with numbers.
type numbered struct {
	unpaged
	// next is the number of the next document, read of the next that the client reads.
	next, read int
	returned   chan int
}

// partOfNumbered is more than sockets take.
const partOfNumbered = 20_000

func (*numbered) doc(n int) []byte {
	return fmt.Appendf(nil, `{"n":%d,"x":"%s"}`+"\n", n, strings.Repeat("x", 1000))
}

func (n *numbered) Next(context.Context, time.Duration) (edge.Part, error) {
	var p part
	for range partOfNumbered {
		p = append(p, n.doc(n.next))
		n.next++
	}
	return p, nil
}

func (n *numbered) Return(kept int) (int, error) {
	n.next -= partOfNumbered - kept
	n.returned <- kept
	return kept, nil
}

func (*numbered) Close() {}

// TestServer_HalfCloseIsNoEnd: a client that has sent all that it will send still gets everything.
func TestServer_HalfCloseIsNoEnd(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{KeepAlive: 20 * time.Millisecond})
	c := get(t, r.addr, "/users")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		c.mustChunk(t, "\r\n") // the edge has looked by then
	}
	f.docs <- []byte("{}\n")
	f.docs <- nil
	for seen := false; ; {
		b, err := c.chunk()
		if err != nil {
			t.Fatal(err)
		}
		if seen = seen || string(b) == "{}\n"; len(b) == 0 && seen {
			break
		}
	}
}

// TestServer_FinalChunkSurvivesWhatIsNotHeard (I11): what a client sends after its request does not keep the end of the answer
// from it.
func TestServer_FinalChunkSurvivesWhatIsNotHeard(t *testing.T) {
	t.Parallel()
	docs := newFlood(1000, 1000)
	for range 20 {
		f := newFeed()
		r := serve(t, open(f), edge.Options{})
		c := get(t, r.addr, "/users")
		c.send(t, strings.Repeat("y", 40<<10))
		for _, doc := range docs.docs[:50] {
			f.docs <- doc
		}
		f.docs <- nil
		for n := 0; ; n++ {
			b, err := c.chunk()
			if err != nil {
				t.Fatalf("after %d documents: %v", n, err)
			}
			if len(b) == 0 {
				break
			}
		}
	}
}

// TestServer_ClientThatClosesIsNoticed ends its stream though nothing is sent.
func TestServer_ClientThatClosesIsNoticed(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{KeepAlive: 100 * time.Millisecond})
	c := get(t, r.addr, "/users")
	r.awaitMetric(t, "lockstep_edge_clients", "", 1)
	_ = c.Close()
	select {
	case <-f.closed:
	case <-time.After(5 * time.Second):
		t.Fatal("the stream of a client that closed lives on")
	}
	r.awaitMetric(t, "lockstep_edge_streams_ended_total", "client", 1)
}

// TestServer_ClientThatClosesEarlyIsNoticed: also while the place to start is
// looked for.
func TestServer_ClientThatClosesEarlyIsNoticed(t *testing.T) {
	t.Parallel()
	opening, ended := make(chan struct{}), make(chan struct{})
	r := serve(t, &fake{open: func(ctx context.Context, _ edge.Request) (edge.Stream, error) {
		close(opening)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}}, edge.Options{})
	c := dial(t, r.addr)
	c.send(t, "GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
	<-opening
	_ = c.Close()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the request of a client that closed lives on")
	}
}

// TestServer_DrainEndsBetweenChunks (I11): a server that stops ends every
// stream between two chunks, without the final one, within 5 s, whatever its
// clients do.
func TestServer_DrainEndsBetweenChunks(t *testing.T) {
	t.Parallel()
	quiet := newFeed()
	docs := newFlood(1000, 100)
	opening := make(chan struct{})
	src := &fake{open: func(ctx context.Context, req edge.Request) (edge.Stream, error) {
		switch req.Table {
		case "quiet":
			return quiet, nil
		case "slow":
			close(opening)
			<-ctx.Done()
			return nil, &edge.Refusal{Code: edge.NotReady, Message: "stopping"}
		}
		return docs, nil
	}}
	r := serve(t, src, edge.Options{})
	idle, busy, stalled, waiting, keptOpen := get(t, r.addr, "/quiet"), get(t, r.addr, "/busy"), get(t, r.addr, "/stalled"), dial(t, r.addr), dial(t, r.addr)
	waiting.send(t, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-opening
	keptOpen.send(t, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	keptOpen.head(t)
	var before float64
	testenv.Eventually(t, testenv.Patience(), func() error { // until the stalled client takes no more
		for range 1000 {
			if _, err := busy.chunk(); err != nil {
				t.Fatal(err)
			}
		}
		before++
		if before < 20 {
			return errors.New("too early")
		}
		return nil
	})
	begun := time.Now()
	r.stop()
	busy.mustCut(t)
	idle.mustCut(t)
	if head := waiting.head(t); !strings.HasPrefix(head, "HTTP/1.1 503") {
		t.Errorf("a request that waited got %s", head)
	}
	select {
	case err := <-r.done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server did not stop")
	}
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("stopped after %s", d)
	}
	if _, err := net.Dial("tcp", r.addr); err == nil {
		t.Error("a stopped server takes clients")
	}
	if n := r.metric(t, "lockstep_edge_streams_ended_total", "drain"); n != 3 {
		t.Errorf("%v streams were ended by the drain, want 3", n)
	}
	_ = stalled
}

// TestServer_DrainFinishesTheChunk (I11): a server that stops finishes the
// chunk that a slow client is in.
func TestServer_DrainFinishesTheChunk(t *testing.T) {
	t.Parallel()
	docs := newFlood(300<<10, 5) // a document is larger than one write
	r := serve(t, open(docs), edge.Options{})
	c := get(t, r.addr, "/users")
	r.awaitStall(t)
	r.stop()
	<-time.After(edge.DrainWrite) // until then the server writes as if nothing were
	c.mustCut(t)
	r.awaitMetric(t, "lockstep_edge_streams_ended_total", "drain", 1)
}

// TestServer_DrainIsBounded (I10): a client that takes a long document slowly,
// but always something, does not keep a server that stops.
func TestServer_DrainIsBounded(t *testing.T) {
	t.Parallel()
	docs := newFlood(40<<20, 1)
	r := serve(t, open(docs), edge.Options{})
	c := get(t, r.addr, "/users")
	r.awaitStall(t)
	begun := time.Now()
	r.stop()
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-pace.C:
			_, _ = io.CopyN(io.Discard, c.r, 256<<10)
		case <-r.done:
			if d := time.Since(begun); d > 5*time.Second {
				t.Errorf("stopped after %s", d)
			}
			return
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatal("a slow client keeps the server from stopping")
		}
	}
}

// TestServer_ListenerFails: a server without a listener ends its streams too.
func TestServer_ListenerFails(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFeed()
	s := edge.New(open(f), edge.Options{Metrics: http.NotFoundHandler()}, edge.NewMetrics(nil), nop)
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context(), l) }()
	c := get(t, l.Addr().String(), "/users")
	_ = l.Close()
	c.mustCut(t)
	if err := <-done; err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("Run returned %v", err)
	}
}
