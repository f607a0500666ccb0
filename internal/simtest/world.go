package simtest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// Proc is one of the project's programs. It can be started again after a kill. Only the test's goroutine calls its
// methods.
type Proc struct {
	*testenv.Process
	Name    string
	t       testing.TB
	program string
	env     []string
	killed  bool
}

// newProc builds a command and starts it.
func (w *World) newProc(name, command string, env []string) *Proc {
	w.T.Helper()
	build := testenv.Build
	if w.shipped {
		build = testenv.BuildShipped
	}
	p := &Proc{Name: name, t: w.T, program: build(w.T, command), env: env}
	p.Start()
	return p
}

// Start starts the program, for the first time or again.
func (p *Proc) Start() {
	p.t.Helper()
	p.Process, p.killed = testenv.Start(p.t, p.program, p.env), false
}

// Kill kills the process (SIGKILL).
func (p *Proc) Kill() {
	p.Process.Kill()
	p.killed = true
}

// Terminate asks the process to end (SIGTERM). It returns an error if the process does not end in time and with status
// 0. Any status is allowed if the process has not logged anything: it may not handle signals yet.
func (p *Proc) Terminate() error {
	p.killed = true
	p.Signal(syscall.SIGTERM)
	status, err := p.Wait(recovery)
	if err == nil && status != 0 && p.Stderr() != "" {
		err = fmt.Errorf("status %d: …%s", status, last(p.Stderr(), 2000))
	}
	if err != nil {
		return fmt.Errorf("%s was asked to end: %w", p.Name, err)
	}
	return nil
}

// Died returns an error if the process has ended although nothing killed it.
func (p *Proc) Died() error {
	select {
	case <-p.Exited():
		if !p.killed {
			return fmt.Errorf("%s ended by itself: …%s", p.Name, last(p.Stderr(), 2000))
		}
	default:
	}
	return nil
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }

// World is the processes of a run.
type World struct {
	T       testing.TB
	Begun   time.Time
	Cluster *testenv.Cluster
	URL     string
	NATS    *testenv.ExternalNATS
	Bridges []*Proc
	Edges   []*Proc
	// Addrs are the edges' addresses. An edge that starts again has the same address.
	Addrs []string
	// CacheDir is where the first edge has its cache on disk.
	CacheDir string
	// BridgeEnv is the environment of every bridge.
	BridgeEnv []string
	// Beats knows the heartbeats' snapshots.
	Beats   *Beats
	shipped bool

	mu sync.Mutex
	// Guarded by mu: what the nemesis did, and when.
	starts            []int64
	edgeKills, losses []time.Duration
	brokerKills       []BrokerKill
	events            []string
	eventAt           []time.Duration
}

// WorldOptions configure a World.
type WorldOptions struct {
	Bridges, Edges int
	Tables         string
	Shipped        bool     // programs as users build them, with production's timings
	Postgres       []string // settings
	Env            []string // of the bridges, in addition
}

// NewWorld starts Postgres and nats-server. The caller then creates the schema, and calls StartAll for the rest.
func NewWorld(t testing.TB, opt WorldOptions) *World {
	t.Helper()
	w := &World{T: t, Begun: time.Now(), shipped: opt.Shipped, Cluster: testenv.NewCluster(t, opt.Postgres...)}
	w.URL = w.Cluster.Database()
	w.NATS = testenv.NATSProcess(t)
	w.BridgeEnv = append([]string{
		"DATABASE_URL=" + w.URL, "NATS_URL=" + w.NATS.URL(), "BRIDGE_TABLES=" + opt.Tables, "BRIDGE_LISTEN=127.0.0.1:0",
		"BRIDGE_POLL_INTERVAL=20ms", "BRIDGE_HEARTBEAT_INTERVAL=250ms", "LOG_LEVEL=info",
	}, opt.Env...)
	w.recordBeats()
	w.Bridges, w.Edges = make([]*Proc, opt.Bridges), make([]*Proc, opt.Edges)
	return w
}

// StartAll starts bridges and edges.
func (w *World) StartAll() {
	w.T.Helper()
	for i := range w.Bridges {
		w.Bridges[i] = w.newProc(fmt.Sprintf("bridge %d", i), "./cmd/bridge", w.BridgeEnv)
	}
	// The clients of one edge fall out of its small cache, to disk; those of the other don't.
	w.CacheDir = filepath.Join(w.T.TempDir(), "cache")
	cache := [][]string{{"HTTPEDGE_CACHE_BYTES=1048576", "HTTPEDGE_CACHE_DIR=" + w.CacheDir}, {"HTTPEDGE_CACHE_BYTES=67108864"}}
	for i := range w.Edges {
		port, err := testenv.FreePort()
		if err != nil {
			w.T.Fatal(err)
		}
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		w.Addrs = append(w.Addrs, addr)
		w.Edges[i] = w.newProc(fmt.Sprintf("edge %d", i), "./cmd/httpedge",
			append([]string{"NATS_URL=" + w.NATS.URL(), "HTTPEDGE_LISTEN=" + addr, "HTTPEDGE_KEEPALIVE_INTERVAL=1s", "LOG_LEVEL=warn"}, cache[min(i, 1)]...))
	}
}

// Elapsed returns the time since the world began.
func (w *World) Elapsed() time.Duration { return time.Since(w.Begun) }

// Note records what the nemesis did.
func (w *World) Note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf(format, args...))
	w.eventAt = append(w.eventAt, w.Elapsed())
}

// KillPostgres kills the whole cluster.
func (w *World) KillPostgres() {
	w.T.Helper()
	w.Cluster.Kill()
	w.Note("kill postgres")
	w.lose()
}

// lose records that something may be lost from now on.
func (w *World) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.losses = append(w.losses, w.Elapsed())
}

// brokerKilled records that the broker was killed at that time, and is back.
func (w *World) brokerKilled(at time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.brokerKills = append(w.brokerKills, BrokerKill{at, time.Now().Unix()})
}

// StartPostgres starts the cluster again. It waits for the next second, so that timestamps in seconds distinguish the
// eras.
func (w *World) StartPostgres(ctx context.Context) {
	w.T.Helper()
	next := time.Now().Truncate(time.Second).Add(time.Second + 10*time.Millisecond)
	sleep(ctx, time.Until(next))
	w.mu.Lock()
	w.starts = append(w.starts, time.Now().Unix())
	w.mu.Unlock()
	w.Cluster.Start()
	w.Note("postgres is back")
}

// KillEdge kills one edge.
func (w *World) KillEdge(i int) {
	w.Edges[i].Kill()
	w.Note("kill edge %d", i)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.edgeKills = append(w.edgeKills, w.Elapsed())
}

// CopyStore copies the broker's files, and returns the place of the copy. The broker must not run.
func (w *World) CopyStore() string {
	w.T.Helper()
	return w.NATS.CopyStore()
}

// ReplaceStore removes the broker's files, and puts a copy in their place unless from is "". The broker must not run.
func (w *World) ReplaceStore(from string) {
	w.T.Helper()
	w.NATS.ReplaceStore(from)
	w.Note("replace the broker's files by %q", from)
	w.lose()
}

// Died returns an error that names the processes that ended by themselves (I7), or nil.
func (w *World) Died() error {
	var err error
	for _, p := range w.Bridges {
		err = errors.Join(err, p.Died())
	}
	for _, p := range w.Edges {
		err = errors.Join(err, p.Died())
	}
	return err
}

// Tell adds what the world knows to t.
func (w *World) Tell(t *Truth) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Starts, t.EdgeKills, t.Losses, t.BrokerKills, t.Beats = w.starts, w.edgeKills, w.losses, w.brokerKills, w.Beats
}
