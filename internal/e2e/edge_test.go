package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// start starts the edge, and returns the address where it listens.
func start(t *testing.T, natsURL string, env ...string) (*testenv.Process, string) {
	t.Helper()
	return startEdge(t, testenv.Build(t, "./cmd/httpedge"), natsURL, env...)
}

// startEdge is start for a program that was built in another way.
func startEdge(t *testing.T, program, natsURL string, env ...string) (*testenv.Process, string) {
	t.Helper()
	p := testenv.Start(t, program, append([]string{"NATS_URL=" + natsURL, "HTTPEDGE_LISTEN=127.0.0.1:0"}, env...))
	var addr string
	testenv.Eventually(t, long, func() error {
		for line := range strings.Lines(p.Stderr()) {
			var entry struct{ Message, Remote string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == "listening" {
				addr = entry.Remote
				return nil
			}
		}
		return errors.New("the edge does not listen")
	})
	return p, addr
}

// write fills the relation t with n rows and a heartbeat. Then it writes heartbeats until the test ends.
func write(t *testing.T, url string, n int) {
	t.Helper()
	writeTable(t, url, "t", time.Second, n)
}

// writeTable is write for any table, by a writer that promises a heartbeat in each interval. stop ends the heartbeats.
func writeTable(t *testing.T, url, table string, interval time.Duration, n int) (stop func()) {
	t.Helper()
	nc := testenv.NATSConn(t, url, nats.ReconnectBufSize(-1))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	leases, err := publish.NewLeases(js, publish.LeaseOptions{Prefix: "lockstep", Holder: "test"})
	if err != nil {
		t.Fatal(err)
	}
	p := publish.New(nc, js, publish.Options{
		Prefix: "lockstep", Schema: "public", Table: table, Leases: leases, HeartbeatInterval: interval,
	}, publish.NewMetrics(nil), zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = leases.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	if _, err := p.Begin(t.Context(), capture.Source{System: 7, Timeline: 1, Database: "app", OID: 42}, func() {}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		txid := uint64(i + 1)
		line := lockstep.AppendRowTail(fmt.Appendf(lockstep.AppendRowHead(nil, txid, txid, false), `{"id":%d,"text":"é\n\"{}"}`, i))
		if err := p.Row(t.Context(), capture.Change{Key: [][]byte{fmt.Append(nil, i)}, Txid: txid, Xmin: txid, High: txid, Line: line}); err != nil {
			t.Fatal(err)
		}
	}
	beats := make(chan struct{})
	beatCtx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); <-beats })
	go func() {
		defer close(beats)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			xmin := uint64(n + 1)
			if err := p.Heartbeat(beatCtx, capture.Heartbeat{Snapshot: fmt.Sprintf("%d:%d:", xmin, xmin), Since: xmin, High: xmin}); err != nil {
				return
			}
			select {
			case <-beatCtx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return stop
}

// get sends a request and reads the whole answer.
func get(t *testing.T, url string) (status int, header http.Header, body string) {
	t.Helper()
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v after %q", url, err, b)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// --help prints settings, examples and commands, --version the version. An unknown command ends with status 2.
func TestHTTPEdge_CommandLine(t *testing.T) {
	t.Parallel()
	prog := testenv.Build(t, "./cmd/httpedge")
	for _, c := range []struct {
		args   []string
		status int
		out    []string
	}{
		{[]string{"--help"}, 0, []string{"NATS_URL", "HTTPEDGE_LISTEN", "127.0.0.1:8080", "HTTPEDGE_CACHE_BYTES", "LOG_LEVEL", "Examples:", "healthcheck"}},
		{[]string{"--version"}, 0, []string{"httpedge ", "go1"}},
		{[]string{"serve"}, 2, []string{`"serve"`, "--help"}},
	} {
		p := testenv.Start(t, prog, nil, c.args...)
		status, err := p.Wait(20 * time.Second)
		if err != nil || status != c.status {
			t.Errorf("%v: exit status %d, %v, want %d", c.args, status, err, c.status)
		}
		for _, want := range c.out {
			if !strings.Contains(p.Stdout()+p.Stderr(), want) {
				t.Errorf("%v: no %q in %s%s", c.args, want, p.Stdout(), p.Stderr())
			}
		}
	}
}

// If settings are bad, one message names each of them once, without a secret. The exit status is 2.
func TestHTTPEdge_BadConfiguration(t *testing.T) {
	t.Parallel()
	p := testenv.Start(t, testenv.Build(t, "./cmd/httpedge"), []string{
		"NATS_URL=http://user:sesame@127.0.0.1:4222", "HTTPEDGE_LISTEN=nowhere", "HTTPEDGE_CACHE_BYTES=12", "HTTPEDGE_WRITE_TIMEOUT=fast",
		"HTTPEDGE_KEEPALIVE_INTERVAL=0s", "HTTPEDGE_STREAM_PREFIX=a.b", "LOG_LEVEL=loud", "NATS_CREDS=/nonexistent/creds",
	})
	status, err := p.Wait(20 * time.Second)
	if err != nil || status != 2 {
		t.Errorf("exit status %d, %v, want 2", status, err)
	}
	for _, name := range []string{"NATS_URL", "HTTPEDGE_LISTEN", "HTTPEDGE_CACHE_BYTES", "HTTPEDGE_WRITE_TIMEOUT", "HTTPEDGE_KEEPALIVE_INTERVAL", "HTTPEDGE_STREAM_PREFIX", "LOG_LEVEL", "NATS_CREDS"} {
		if strings.Count(p.Stderr(), name+": ") != 1 {
			t.Errorf("want %s once in\n%s", name, p.Stderr())
		}
	}
	if strings.Contains(p.Stderr(), "sesame") {
		t.Errorf("the message contains a secret:\n%s", p.Stderr())
	}
}

// Without a broker the edge runs, and /readyz says why it is not ready. A request gets 503 and Retry-After after
// about 10 s. When the broker is there, the edge serves, without a restart.
func TestHTTPEdge_BrokerComesLater(t *testing.T) {
	needServers(t)
	broker := testenv.NATSProcess(t)
	broker.Stop()
	_, addr := start(t, broker.URL())
	if status, _, _ := get(t, "http://"+addr+"/healthz"); status != 200 {
		t.Errorf("/healthz without a broker: status %d, want 200", status)
	}
	if status, _, body := get(t, "http://"+addr+"/readyz"); status != 503 || !strings.Contains(body, "broker") {
		t.Errorf("/readyz without a broker: status %d %s, want 503", status, body)
	}
	begun := time.Now()
	status, header, body := get(t, "http://"+addr+"/t")
	if d := time.Since(begun); status != 503 || header.Get("Retry-After") == "" || !strings.Contains(body, `"not_ready"`) || d < 5*time.Second || d > 15*time.Second {
		t.Errorf("a request without a broker: status %d %s after %s, want 503 and Retry-After after 5 to 15 s", status, body, d)
	}
	broker.Start()
	write(t, broker.URL(), 3)
	testenv.Eventually(t, long, func() error {
		if status, _, body := get(t, "http://"+addr+"/t?follow=0"); status != 200 || strings.Count(body, "\n") != 5 {
			return fmt.Errorf("status %d, want 200 and 5 documents: %s", status, body)
		}
		return nil
	})
	testenv.Eventually(t, long, func() error {
		if status, _, body := get(t, "http://"+addr+"/readyz"); status != 200 {
			return fmt.Errorf("readyz: %d %s", status, body)
		}
		return nil
	})
	testenv.Eventually(t, long, func() error {
		if _, _, body := get(t, "http://"+addr+"/metrics"); !strings.Contains(body, "lockstep_edge_clients 0") || !strings.Contains(body, "lockstep_edge_sent_rows_total 3") {
			return fmt.Errorf("want 0 clients and 3 sent rows in the metrics:\n%s", body)
		}
		return nil
	})
	if _, _, body := get(t, "http://"+addr+"/"); !strings.Contains(body, `"relation": "t"`) {
		t.Errorf("the list of relations has no t: %s", body)
	}
}

// Each relation is ready for three of the heartbeat intervals that its own writer promised. Heartbeats stop, and only the
// relation with the short interval is not ready any more.
func TestHTTPEdge_ReadyByTheBridgesInterval(t *testing.T) {
	needServers(t)
	broker := testenv.NATS(t)
	quick := writeTable(t, broker.URL(), "quick", time.Second, 1)
	slow := writeTable(t, broker.URL(), "slow", time.Hour, 1)
	_, addr := start(t, broker.URL())
	testenv.Eventually(t, long, func() error {
		if status, _, body := get(t, "http://"+addr+"/readyz"); status != 200 {
			return fmt.Errorf("readyz: %d %s", status, body)
		}
		return nil
	})
	quick()
	slow()
	testenv.Eventually(t, long, func() error {
		status, _, body := get(t, "http://"+addr+"/readyz")
		if strings.Contains(body, "slow") {
			t.Fatalf("/readyz names a relation whose interval is an hour: status %d %s", status, body)
		}
		if status != 503 || !strings.Contains(body, "quick: the last heartbeat is") {
			return fmt.Errorf("/readyz: status %d %s, want 503 for quick", status, body)
		}
		return nil
	})
}

// After SIGTERM the edge cuts every stream between two chunks. It exits with status 0 within 5 s, also with clients that
// read nothing.
func TestHTTPEdge_Drain(t *testing.T) {
	needServers(t)
	broker := testenv.NATS(t)
	write(t, broker.URL(), 100)
	p, addr := start(t, broker.URL())
	var conns []net.Conn
	for range 5 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, "GET /t HTTP/1.1\r\nHost: x\r\n\r\n")
		conns = append(conns, c)
	}
	_ = conns[0].SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(conns[0])
	for line := ""; !strings.Contains(line, "heartbeat"); {
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	p.Signal(syscall.SIGTERM)
	status, err := p.Wait(10 * time.Second)
	if d := time.Since(begun); err != nil || status != 0 || d > 5*time.Second {
		t.Errorf("exit status %d, %v, after %s; want 0 within 5 s", status, err, d)
	}
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != "\r\n" && !bytes.HasSuffix(rest, []byte("}\n\r\n")) {
		t.Errorf("the stream ends with %q, %v; want the end of a chunk", rest[max(0, len(rest)-40):], err)
	}
}

// The edge keeps no state of its own. After a kill, another edge serves a client from its since on (I7).
func TestHTTPEdge_KillIsHarmless(t *testing.T) {
	needServers(t)
	broker := testenv.NATS(t)
	write(t, broker.URL(), 100)
	p, addr := start(t, broker.URL())
	if _, _, body := get(t, "http://"+addr+"/t?follow=0"); strings.Count(body, "\n") != 102 {
		t.Errorf("before the kill: want 102 documents, got %s", body)
	}
	p.Kill()
	_, addr = start(t, broker.URL())
	if _, _, body := get(t, "http://"+addr+"/t?follow=0&since=51"); strings.Count(body, "\n") != 52 || !strings.HasPrefix(body, `{"txid":51,`) {
		t.Errorf("after the kill: want 52 documents from txid 51 on, got %s", body)
	}
}

// Wherever a response is cut, a client gets only whole documents, and never takes the response for complete (I11). The
// test cuts one at each of its bytes.
func TestHTTPEdge_CutAnywhere(t *testing.T) {
	needServers(t)
	broker := testenv.NATS(t)
	write(t, broker.URL(), 15)
	_, addr := start(t, broker.URL())
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET /t?follow=0 HTTP/1.1\r\nHost: x\r\n\r\n")
	whole, err := io.ReadAll(c)
	_ = c.Close()
	if err != nil || len(whole) < 1500 {
		t.Fatalf("the response has %d bytes, %v; want at least 1500", len(whole), err)
	}
	all, complete := documents(t, whole)
	if len(all) != 17 || !complete {
		t.Fatalf("the response has %d documents, want 17; it is complete: %v", len(all), complete)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for n := range whole { // the first n bytes come, through a real connection
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, _ = conn.Write(whole[:n])
				_ = conn.Close()
			}
		}()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || len(got) != n {
			t.Fatalf("%d of %d bytes came, %v", len(got), n, err)
		}
		docs, complete := documents(t, got)
		if complete || len(docs) > len(all) {
			t.Fatalf("a response cut after %d of %d bytes has %d documents, and is complete: %v", n, len(whole), len(docs), complete)
		}
		for i := range docs {
			if docs[i] != all[i] {
				t.Fatalf("a response cut after %d bytes: document %d is %q, want %q", n, i, docs[i], all[i])
			}
		}
	}
}

// documents reads a response as a strict client does: each chunk that came whole must be one document. complete says that
// the final chunk came.
func documents(t *testing.T, response []byte) (docs []string, complete bool) {
	t.Helper()
	_, body, ok := bytes.Cut(response, []byte("\r\n\r\n"))
	for ok {
		line, rest, found := bytes.Cut(body, []byte("\r\n"))
		size, err := strconv.ParseUint(string(line), 16, 31)
		if !found || len(rest) < int(size)+2 {
			return docs, false
		}
		if err != nil || string(rest[size:size+2]) != "\r\n" {
			t.Fatalf("not a chunk: %q", body)
		}
		if size == 0 {
			return docs, len(rest) == 2
		}
		doc := rest[:size]
		if _, err := lockstep.Decode(doc); err != nil || bytes.IndexByte(doc, '\n') != len(doc)-1 {
			t.Fatalf("not one document: %q, %v", doc, err)
		}
		docs = append(docs, string(doc))
		body = rest[size+2:]
	}
	return docs, false
}

// Each command of httpedge has a help of its own: --help does not run it (issue 14, number 19).
func TestHTTPEdge_HelpOfCommands(t *testing.T) {
	t.Parallel()
	prog := testenv.Build(t, "./cmd/httpedge")
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"healthcheck", "--help"}, 0, "Usage: httpedge healthcheck [--ready]: "},
		{[]string{"healthcheck", "-h"}, 0, "Usage: httpedge healthcheck [--ready]: "},
		{[]string{"check", "--help"}, 0, "Usage: httpedge check [--json]: "},
		{[]string{"help", "check"}, 0, "Usage: httpedge check [--json]: "},
		{[]string{"help", "verify"}, 2, `no command "verify"`},
		{[]string{"verify", "--help"}, 2, `no command "verify"`},
		{[]string{"check", "--jsn"}, 2, "usage: httpedge check [--json]"},
		{[]string{"--help"}, 0, "httpedge check [--json]"},
	} {
		p := testenv.Start(t, prog, []string{"HTTPEDGE_LISTEN=127.0.0.1:9"}, c.args...)
		status, err := p.Wait(20 * time.Second)
		if out := p.Stdout() + p.Stderr(); err != nil || status != c.status || !strings.Contains(out, c.want) {
			t.Errorf("%v: exit status %d, %v: %q, want %d and %q", c.args, status, err, out, c.status, c.want)
		}
	}
}

// checkEdge runs httpedge check, and wants the status and each text.
func checkEdge(t *testing.T, status int, env []string, texts ...string) {
	t.Helper()
	p := testenv.Start(t, testenv.Build(t, "./cmd/httpedge"), env, "check")
	got, err := p.Wait(long)
	if err != nil || got != status {
		t.Errorf("httpedge check with %q: exit status %d, %v; want %d", env, got, err, status)
	}
	for _, want := range texts {
		if !strings.Contains(p.Stdout(), want) {
			t.Errorf("httpedge check with %q does not say %q:\n%s", env, want, p.Stdout())
		}
	}
	if strings.Contains(p.Stdout()+p.Stderr(), "sesame") {
		t.Errorf("it shows a password: %s%s", p.Stdout(), p.Stderr())
	}
}

// httpedge check finds every problem, says what to do, and ends with 2 if there is an error (issue 14, number 19).
func TestHTTPEdge_Check(t *testing.T) {
	needServers(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	checkEdge(t, 2, []string{"NATS_URL=nats://app:sesame@127.0.0.1:9", "HTTPEDGE_LISTEN=" + taken.Addr().String(), "HTTPEDGE_CACHE_BYTES=12", "HTTPEGDE_WRITE_TIMEOUT=1s"},
		"ERROR HTTPEDGE_CACHE_BYTES: ", "ERROR HTTPEDGE_LISTEN: the edge can't listen, and no edge runs there", "ERROR NATS_URL: connect to NATS at 127.0.0.1:9",
		"to do: start nats-server", "WARNING environment: HTTPEGDE_WRITE_TIMEOUT is not a setting; did you mean HTTPEDGE_WRITE_TIMEOUT?", "bad: 3 errors, 1 warning")
	checkEdge(t, 2, []string{"NATS_URL=http://app:sesame@127.0.0.1", "HTTPEDGE_LISTEN=127.0.0.1:0"}, "ERROR NATS_URL: ", "bad: 1 error, 0 warnings")
	bare := testenv.NATS(t, func(o *server.Options) { o.JetStream = false })
	checkEdge(t, 2, []string{"NATS_URL=" + bare.URL(), "HTTPEDGE_LISTEN=127.0.0.1:0"}, "ERROR the server runs without JetStream", "to do: start it with -js")
	broker := testenv.NATS(t)
	env := []string{"NATS_URL=" + broker.URL(), "HTTPEDGE_LISTEN=127.0.0.1:0"}
	checkEdge(t, 2, env, "has no stream whose name begins with LOCKSTEP-", "to do: start the bridge")
	write(t, broker.URL(), 3)
	stop := writeTable(t, broker.URL(), "old", time.Second, 1)
	stop()
	checkEdge(t, 0, env, "ok    t ← LOCKSTEP-public-t, history latest, last heartbeat ", "old ← LOCKSTEP-public-old", "nats-server ")
	checkEdge(t, 2, append(env, "HTTPEDGE_STREAM_PREFIX=other"), "ERROR HTTPEDGE_STREAM_PREFIX: the broker has no stream whose name begins with OTHER-", "a bridge that has streams there: lockstep")
	_, addr := start(t, broker.URL())
	checkEdge(t, 0, []string{"NATS_URL=" + broker.URL(), "HTTPEDGE_LISTEN=" + addr}, "ok: 0 errors")
	testenv.Eventually(t, long, func() error { // the heartbeats of one relation have ended
		p := testenv.Start(t, testenv.Build(t, "./cmd/httpedge"), env, "check", "--json")
		_, err := p.Wait(long)
		var doc struct {
			OK        bool
			Problems  []struct{ Severity, Subject, What string }
			Relations []struct {
				Name string
				Live bool
			}
		}
		if err := errors.Join(err, json.Unmarshal([]byte(p.Stdout()), &doc)); err != nil {
			return fmt.Errorf("%w: %s", err, p.Stdout())
		}
		if !doc.OK || len(doc.Relations) != 2 || len(doc.Problems) != 1 || doc.Problems[0].Subject != "old" || !strings.Contains(doc.Problems[0].What, "the last heartbeat is") {
			return fmt.Errorf("want a warning of old: %s", p.Stdout())
		}
		return nil
	})
}

// An edge without a broker, or without a stream to serve, says so in its log, with the address and what to do. So it does
// if its login is refused (issue 14, number 19).
func TestHTTPEdge_SaysWhyItServesNothing(t *testing.T) {
	needServers(t)
	logs := func(p *testenv.Process, parts ...string) {
		t.Helper()
		testenv.Eventually(t, long, func() error {
			for line := range strings.Lines(p.Stderr()) {
				if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
					return nil
				}
			}
			return fmt.Errorf("no line with %q", parts)
		})
	}
	away, _ := start(t, "nats://127.0.0.1:9")
	broker := testenv.NATS(t)
	empty, addr := start(t, broker.URL())
	bare := testenv.NATS(t, func(o *server.Options) { o.JetStream = false })
	noJetStream, _ := start(t, bare.URL())
	closed := testenv.NATS(t, func(o *server.Options) { o.Username, o.Password = "app", "right" })
	refused, _ := start(t, strings.Replace(closed.URL(), "nats://", "nats://app:sesame@", 1))
	logs(away, "broker still not connected", `"level":"warn"`, "127.0.0.1:9", "to do: start nats-server")
	logs(refused, "broker still not connected", "Authorization Violation", "to do: correct NATS_CREDS")
	logs(empty, "there is no relation to serve", `"level":"warn"`, "LOCKSTEP-", broker.URL()[len("nats://"):], "to do: start the bridge")
	logs(noJetStream, "there is no relation to serve", "runs without JetStream", "to do: start it with -js")
	if strings.Contains(refused.Stderr(), "sesame") {
		t.Errorf("the log shows a password: %s", refused.Stderr())
	}
	write(t, broker.URL(), 1)
	logs(empty, "serving the relations of the broker", `"relations":1`)
	if _, _, body := get(t, "http://"+addr+"/metrics"); !strings.Contains(body, "lockstep_build_info{goversion=\"go1") {
		t.Errorf("the edge has no lockstep_build_info:\n%s", body)
	}
}
