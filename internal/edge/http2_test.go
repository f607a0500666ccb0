package edge_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/internal/testenv"
)

// over2 returns a client that speaks HTTP/2 without TLS, and takes so many bytes of a response before it is read.
func over2(t *testing.T, buffer int) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: buffer}, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get2 asks for a stream. The body is closed when the test ends.
func get2(t *testing.T, c *http.Client, addr, target string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %s", target, resp.Proto, resp.Status)
	}
	return resp
}

// TestServer_HTTP2: over HTTP/2 a client gets the headers and the documents of HTTP/1.1, without the chunks; a keep-alive in
// silence; and an end only where the response is whole.
func TestServer_HTTP2(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{KeepAlive: 200 * time.Millisecond})
	resp := get2(t, over2(t, 1<<20), r.addr, "/users?follow=0")
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store", "Lockstep-Incarnation": "i1", "Lockstep-Floor": "7", "Connection": "", "Transfer-Encoding": "",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	body := bufio.NewReader(resp.Body)
	if line, err := body.ReadString('\n'); line != "\r\n" || err != nil {
		t.Errorf("in silence it got %q, %v", line, err)
	}
	f.docs <- []byte("{\"a\":1}\n")
	f.docs <- []byte("{\"a\":2}\n")
	f.docs <- nil
	rest, err := io.ReadAll(body)
	if got := strings.ReplaceAll(string(rest), "\r\n", ""); got != "{\"a\":1}\n{\"a\":2}\n" || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
	<-f.closed
	r.awaitMetric(t, "lockstep_edge_streams_ended_total", "end", 1)
}

// TestServer_HTTP2_CutIsReset (I3): where the stream breaks, and where the server stops, a client gets an error, and no end. What
// was sent before comes first.
func TestServer_HTTP2_CutIsReset_I3(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(*feed, *running){
		"the source breaks": func(f *feed, _ *running) { f.docs <- []byte("!") },
		"the server stops":  func(_ *feed, r *running) { r.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFeed()
			r := serve(t, open(f), edge.Options{})
			resp := get2(t, over2(t, 1<<20), r.addr, "/users?follow=0")
			f.docs <- []byte("{}\n")
			body := bufio.NewReader(resp.Body)
			if line, err := body.ReadString('\n'); line != "{}\n" || err != nil {
				t.Fatalf("got %q, %v", line, err)
			}
			cut(f, r)
			if rest, err := io.ReadAll(body); len(rest) > 0 || err == nil {
				t.Errorf("got %q, %v; want an error", rest, err)
			}
			<-f.closed
		})
	}
}

// TestServer_HTTP2_ClientThatLeavesIsNoticed (I9): whether it ends one request or closes the connection.
func TestServer_HTTP2_ClientThatLeavesIsNoticed_I9(t *testing.T) {
	t.Parallel()
	f := newFeed()
	r := serve(t, open(f), edge.Options{KeepAlive: 50 * time.Millisecond})
	resp := get2(t, over2(t, 1<<20), r.addr, "/users")
	_ = resp.Body.Close()
	<-f.closed
	r.awaitMetric(t, "lockstep_edge_streams_ended_total", "client", 1)
	r.awaitMetric(t, "lockstep_edge_clients", "", 0)
}

// TestServer_HTTP2_StalledClientIsCutAlone (I10): of two streams of one connection, one is not read. It is kept nothing but the
// document that it is in, and is cut. The other gets its documents meanwhile.
func TestServer_HTTP2_StalledClientIsCutAlone_I10(t *testing.T) {
	t.Parallel()
	n := &numbered{returned: make(chan int, 1000)}
	docs := newFlood(1000, 100)
	r := serve(t, &fake{open: func(_ context.Context, req edge.Request) (edge.Stream, error) {
		if req.Table == "stalled" {
			return n, nil
		}
		return docs, nil
	}}, edge.Options{WriteTimeout: 3 * time.Second})
	c := over2(t, 64<<10)
	stalled, reading := get2(t, c, r.addr, "/stalled"), get2(t, c, r.addr, "/users")
	body := bufio.NewReader(reading.Body)
	testenv.Eventually(t, testenv.Patience(), func() error {
		for range 1000 {
			if _, err := body.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if r.metric(t, "lockstep_edge_streams_ended_total", "slow") != 1 {
			return errors.New("the stalled client was not cut")
		}
		return nil
	})
	if kept := <-n.returned; kept == 0 || kept > partOfNumbered/10 {
		t.Errorf("%d documents of a part were kept", kept)
	}
	if _, err := io.Copy(io.Discard, stalled.Body); err == nil {
		t.Error("the stalled client got an end, and no error")
	}
}

// TestServer_HTTP2_DrainIsBounded: a client that takes nothing does not hold the server up.
func TestServer_HTTP2_DrainIsBounded(t *testing.T) {
	t.Parallel()
	r := serve(t, open(newFlood(1000, 1000)), edge.Options{})
	get2(t, over2(t, 64<<10), r.addr, "/users")
	r.awaitStall(t)
	begun := time.Now()
	r.stop()
	if err := <-r.done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if took := time.Since(begun); took > 6*time.Second {
		t.Errorf("the server stopped after %s", took)
	}
}

// TestServer_HTTP2_Head: HEAD, refusals and the list are those of HTTP/1.1.
func TestServer_HTTP2_Head(t *testing.T) {
	t.Parallel()
	r := serve(t, open(newFeed()), edge.Options{})
	c := over2(t, 1<<20)
	for target, want := range map[string]int{"/users": 200, "/users?since=x": 400, "/": 200} {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			if method == http.MethodGet && target == "/users" {
				continue
			}
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addr+target, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want || resp.ProtoMajor != 2 {
				t.Errorf("%s %s: %s %s, want %d", method, target, resp.Proto, resp.Status, want)
			}
		}
	}
}
