package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/relation"
	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// settings make the cluster durable, unlike those of tests, and give it the memory
// of a small server.
var settings = []string{
	"fsync=on", "shared_buffers=512MB", "max_wal_size=2GB", "wal_level=logical", "dynamic_shared_memory_type=posix",
	"unix_socket_directories=.",
}

// viaSocket returns dsn for the cluster's Unix socket, which is in its data
// directory.
func (w *world) viaSocket(t testing.TB, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("host", w.pg.Dir())
	q.Set("port", u.Port())
	u.Host, u.RawQuery = "", q.Encode()
	return u.String()
}

// world is what all items share.
type world struct {
	opt        options
	pg         *testenv.Cluster
	postmaster int
	bridge     string
	edge       string // empty if there is no edge
	noEdge     string // why there is none
	profiles   int
}

func newWorld(t testing.TB, opt options) *world {
	t.Helper()
	w := &world{opt: opt, pg: testenv.NewCluster(t, settings...), bridge: opt.bridge, edge: opt.edge}
	b, err := os.ReadFile(filepath.Join(w.pg.Dir(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	if w.postmaster, err = strconv.Atoi(first); err != nil {
		t.Fatal(err)
	}
	if w.bridge == "" && opt.profile == "" {
		w.bridge = testenv.BuildShipped(t, "./cmd/bridge")
	}
	if w.edge == "" {
		if err := exec.Command("go", "list", "-find", "./cmd/httpedge").Run(); err != nil {
			w.noEdge = "cmd/httpedge does not exist in this tree"
		} else {
			w.edge = testenv.BuildShipped(t, "./cmd/httpedge")
		}
	}
	return w
}

// machine describes the machine and the versions of the servers.
func (w *world) machine(t testing.TB) []string {
	t.Helper()
	cpu, memory := "unknown", "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			kb, _ := strconv.ParseFloat(f[1], 64)
			memory = fmt.Sprintf("%.0f GB", kb*1024/1e9)
		}
	}
	server := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/nats-io/nats-server/v2" {
				server = dep.Version
			}
		}
	}
	conn := testenv.Conn(t, w.pg.URL("postgres"))
	defer conn.Close(t.Context())
	var postgres string
	if err := conn.QueryRow(t.Context(), "SHOW server_version").Scan(&postgres); err != nil {
		t.Fatal(err)
	}
	return []string{
		fmt.Sprintf("%d cores, %s, %s of memory; everything runs on it, also the clients", runtime.NumCPU(), cpu, memory),
		fmt.Sprintf("%s, Postgres %s (fsync and synchronous_commit on, shared_buffers 512MB), nats-server %s (file storage, sync_interval 1s, one replica)",
			runtime.Version(), postgres, server),
	}
}

// query runs a statement that returns one value.
func query[T any](t testing.TB, dsn, sql string) T {
	t.Helper()
	conn := testenv.Conn(t, dsn)
	defer conn.Close(t.Context())
	var v T
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("run %q: %v", sql, err)
	}
	return v
}

// clone copies a database, and returns the URL of the copy. No connection to the
// database may be open.
func (w *world) clone(t testing.TB, from string) string {
	t.Helper()
	u, err := url.Parse(from)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	next := name + "_" + strconv.FormatInt(time.Now().UnixNano(), 36)
	testenv.Exec(t, w.pg.URL("postgres"), "CREATE DATABASE "+next+" TEMPLATE "+name+" STRATEGY file_copy")
	return w.pg.URL(next)
}

// drop removes a database.
func (w *world) drop(t testing.TB, dsn string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Exec(t, w.pg.URL("postgres"), "DROP DATABASE "+strings.TrimPrefix(u.Path, "/")+" WITH (FORCE)")
}

// seconds returns how long a run takes that takes so many unless a flag says otherwise.
func (w *world) seconds(usual int) int {
	if w.opt.seconds > 0 {
		return w.opt.seconds
	}
	return usual
}

// settle writes to disk everything that earlier runs have not yet written.
func (w *world) settle(t testing.TB) {
	t.Helper()
	testenv.Exec(t, w.pg.URL("postgres"), "CHECKPOINT")
	syscall.Sync()
}

// prepare runs what `bridge sql` prints for a table.
func prepare(t testing.TB, dsn, name string, notify bool) {
	t.Helper()
	conn := testenv.Conn(t, dsn)
	defer conn.Close(t.Context())
	specs, err := relation.ParseSpecs(name)
	if err != nil {
		t.Fatal(err)
	}
	script, err := relation.SetupSQL(t.Context(), conn, specs.List, relation.SetupOptions{NoTombstones: true, NoNotify: !notify})
	if err != nil {
		t.Fatal(err)
	}
	// One statement at a time, because CREATE INDEX CONCURRENTLY allows no other.
	var statement strings.Builder
	body := false
	for line := range strings.Lines(script) {
		body = body != (strings.Count(line, "$lockstep$")%2 == 1)
		statement.WriteString(line)
		code, _, _ := strings.Cut(line, " -- ")
		if body || !strings.HasSuffix(strings.TrimSpace(code), ";") {
			continue
		}
		if _, err := conn.Exec(t.Context(), statement.String()); err != nil {
			t.Fatalf("prepare %s: %v in\n%s", name, err, &statement)
		}
		statement.Reset()
	}
}

// startBridge starts a bridge. With -profile it starts a copy of this program that
// works as a bridge.
func (w *world) startBridge(t testing.TB, dsn, broker, tables string, more ...string) *testenv.Process {
	t.Helper()
	env := append([]string{"DATABASE_URL=" + dsn, "NATS_URL=" + broker, "BRIDGE_TABLES=" + tables, "BRIDGE_LISTEN=127.0.0.1:0"}, more...)
	if w.opt.profile == "" {
		return testenv.Start(t, w.bridge, env)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(w.opt.profile)
	if err != nil {
		t.Fatal(err)
	}
	w.profiles++
	file := filepath.Join(dir, fmt.Sprintf("bridge-%02d", w.profiles))
	t.Logf("%s: %s %v", filepath.Base(file), tables, more)
	return testenv.Start(t, self, env, profiledCommand, file)
}

// stop ends a process gracefully, and kills it if that takes too long.
func stop(t testing.TB, p *testenv.Process) {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	if _, err := p.Wait(15 * time.Second); err != nil {
		t.Logf("%v; killing it", err)
		p.Kill()
	}
}

// stopNATS ends a broker and removes its files.
func stopNATS(t testing.TB, s *testenv.ExternalNATS) {
	t.Helper()
	s.Kill()
	s.ReplaceStore("")
}

// startEdge starts an edge and returns it with its URL.
func (w *world) startEdge(t testing.TB, broker string, more ...string) (*testenv.Process, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	p := testenv.Start(t, w.edge, append([]string{"NATS_URL=" + broker, "HTTPEDGE_LISTEN=" + address}, more...))
	testenv.Eventually(t, 20*time.Second, func() error {
		resp, err := http.Get("http://" + address + "/healthz")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/healthz says %s", resp.Status)
		}
		return nil
	})
	return p, "http://" + address
}

// layoutOf returns the layout of a table in schema public.
func layoutOf(table string) stream.Layout {
	return stream.NewLayout(stream.DefaultPrefix, "public", table, false)
}

// heartbeat waits until a relation's stream has a heartbeat after the transaction.
// It returns when the broker stored it, and at which sequence.
func heartbeat(t testing.TB, nc *nats.Conn, table string, txid uint64, timeout time.Duration) (stored time.Time, seq uint64) {
	t.Helper()
	stored, seq, err := awaitHeartbeat(t.Context(), nc, table, txid, timeout)
	if err != nil {
		t.Fatal(err)
	}
	return stored, seq
}

func awaitHeartbeat(ctx context.Context, nc *nats.Conn, table string, txid uint64, timeout time.Duration) (time.Time, uint64, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return time.Time{}, 0, err
	}
	for deadline := time.Now().Add(timeout); ; {
		stored, seq, since, err := lastHeartbeat(ctx, js, layoutOf(table))
		if err == nil && since > txid {
			return stored, seq, nil
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = fmt.Errorf("the last one's since is %d", since)
			}
			return time.Time{}, 0, fmt.Errorf("no heartbeat of %s after transaction %d within %s: %w", table, txid, timeout, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// lastHeartbeat reads the last heartbeat of a stream.
func lastHeartbeat(ctx context.Context, js jetstream.JetStream, l stream.Layout) (stored time.Time, seq, since uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, l.Stream)
	if err != nil {
		return time.Time{}, 0, 0, err
	}
	msg, err := s.GetLastMsgForSubject(ctx, l.Heartbeat())
	if err != nil {
		return time.Time{}, 0, 0, err
	}
	hb, err := stream.ParseHeartbeat(msg.Header, msg.Data)
	return msg.Time, msg.Sequence, hb.Since, err
}

// commit runs statements in one transaction and returns its ID. It calls before,
// unless that is nil, directly before COMMIT.
func commit(t testing.TB, dsn string, before func(), statements ...string) (txid uint64, committed time.Time) {
	t.Helper()
	conn := testenv.Conn(t, dsn)
	defer conn.Close(t.Context())
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(t.Context(), s); err != nil {
				return fmt.Errorf("run %q: %w", s, err)
			}
		}
		if err := tx.QueryRow(t.Context(), "SELECT txid_current()").Scan(&txid); err != nil {
			return err
		}
		if before != nil {
			before()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return txid, time.Now()
}
