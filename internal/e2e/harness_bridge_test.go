package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// bridge is a bridge process that can be killed and started again.
type bridge struct {
	*testenv.Process
	t       *testing.T
	program string
	env     []string
	past    []*testenv.Process // the processes before the current one
}

// startBridge starts a bridge with fast polls and heartbeats. The settings in env override the others.
func startBridge(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	b := newBridge(t, db, nats, tables, env...)
	b.start()
	return b
}

// newBridge is like startBridge, but leaves the start to the test.
func newBridge(t *testing.T, db, nats, tables string, env ...string) *bridge {
	t.Helper()
	return &bridge{t: t, program: testenv.Build(t, "./cmd/bridge"), env: append([]string{
		"DATABASE_URL=" + db, "NATS_URL=" + nats, "BRIDGE_TABLES=" + tables, "BRIDGE_LISTEN=127.0.0.1:0",
		"BRIDGE_POLL_INTERVAL=20ms", "BRIDGE_HEARTBEAT_INTERVAL=300ms",
	}, env...)}
}

func (b *bridge) start() {
	b.t.Helper()
	if b.Process != nil {
		b.past = append(b.past, b.Process)
	}
	b.Process = testenv.Start(b.t, b.program, b.env)
}

// restart kills the process and starts another.
func (b *bridge) restart() {
	b.t.Helper()
	b.Kill()
	b.start()
}

// stop sends SIGTERM and wants exit status 0 within 5 s. The bridge gives up its leases, so the next one need not wait.
func (b *bridge) stop() {
	b.t.Helper()
	b.Signal(syscall.SIGTERM)
	if code, err := b.Wait(5 * time.Second); code != 0 || err != nil {
		b.t.Errorf("after SIGTERM: exit status %d, %v; want 0 within 5 s", code, err)
	}
}

// setTables changes BRIDGE_TABLES for the next start.
func (b *bridge) setTables(tables string) {
	for i, e := range b.env {
		if strings.HasPrefix(e, "BRIDGE_TABLES=") {
			b.env[i] = "BRIDGE_TABLES=" + tables
		}
	}
}

// command runs the bridge with arguments, and with env as its settings, until it ends.
func command(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), env, args...)
	code, err := p.Wait(long)
	if err != nil {
		t.Fatal(err)
	}
	return code, p.Stdout(), p.Stderr()
}

// readiness is the answer of /readyz.
type readiness struct {
	Status    int `json:"-"`
	Ready     bool
	Reason    string
	Relations map[string]struct {
		Ready         bool
		State, Reason string
	}
}

// get sends a request to the bridge's own listener. The log says where that listens.
func (b *bridge) get(path string) (*http.Response, error) {
	_, rest, ok := strings.Cut(b.Stderr(), `"component":"ops","remote":"`)
	addr, _, ok2 := strings.Cut(rest, `"`)
	if !ok || !ok2 {
		return nil, errors.New("the bridge does not listen yet")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	b.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	return (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
}

func (b *bridge) readyz() (readiness, error) {
	resp, err := b.get("/readyz")
	if err != nil {
		return readiness{}, err
	}
	defer resp.Body.Close()
	r := readiness{Status: resp.StatusCode}
	err = json.NewDecoder(resp.Body).Decode(&r)
	return r, err
}

func (b *bridge) awaitReadyzAnswers() {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		_, err := b.readyz()
		return err
	})
}

// awaitReady waits until every relation is live.
func (b *bridge) awaitReady() {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		r, err := b.readyz()
		if err == nil && (r.Status != http.StatusOK || !r.Ready) {
			err = fmt.Errorf("not ready: %+v", r)
		}
		return err
	})
}

// awaitReason waits until /readyz says why a relation is not live, and the reason contains each of parts. The relation ""
// stands for the whole bridge.
func (b *bridge) awaitReason(rel string, parts ...string) {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		r, err := b.readyz()
		if err != nil {
			return err
		}
		reason := r.Reason
		if rel != "" {
			reason = r.Relations[rel].Reason
		}
		for _, p := range parts {
			if !strings.Contains(reason, p) || r.Status != http.StatusServiceUnavailable {
				return fmt.Errorf("got %+v, want a reason with %q", r, p)
			}
		}
		return nil
	})
}

// logged waits until the bridge has logged a line that contains each of parts.
func (b *bridge) logged(parts ...string) {
	b.t.Helper()
	testenv.Eventually(b.t, long, func() error {
		for line := range strings.Lines(b.Stderr()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return nil
			}
		}
		return fmt.Errorf("no line of the log contains %q", parts)
	})
}

// running fails the test if the process has ended.
func (b *bridge) running() {
	b.t.Helper()
	select {
	case <-b.Exited():
		b.t.Fatal("the bridge has ended")
	default:
	}
}

func (b *bridge) metrics() string {
	b.t.Helper()
	resp, err := b.get("/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// metric returns the value of a metric, or 0 if there is no such metric.
func (b *bridge) metric(name string) (n int) {
	b.t.Helper()
	_, rest, ok := strings.Cut(b.metrics(), name+" ")
	if !ok {
		return 0
	}
	text, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(text)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// embeddedURL returns the URL of the NATS server in the bridge, which the log tells.
func (b *bridge) embeddedURL() string {
	b.t.Helper()
	var url string
	testenv.Eventually(b.t, long, func() error {
		_, rest, ok := strings.Cut(b.Stderr(), `"component":"nats-server","remote":"`)
		addr, _, ok2 := strings.Cut(rest, `"`)
		if !ok || !ok2 {
			return fmt.Errorf("the embedded server is not up")
		}
		url = "nats://" + addr
		return nil
	})
	return url
}

// slowness lists the reasons, as the log words them, for which a slow machine alone can end an epoch.
var slowness = []string{"the lease was lost", "and is not stored", "the connection to the broker was lost"}

// endedBySlowness counts the epochs that ended for such a reason, in all processes of the bridge.
func (b *bridge) endedBySlowness() int {
	n := 0
	for _, p := range append(b.past, b.Process) {
		for line := range strings.Lines(p.Stderr()) {
			if slices.ContainsFunc(slowness, func(s string) bool { return strings.Contains(line, s) }) {
				n++
			}
		}
	}
	return n
}
