package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// tables is BRIDGE_TABLES: a table, a feed with tombstones, and a view that joins tables.
const tables = "products,orders_feed(key=id),order_lines(key=id)"

func relations() []string { return []string{"products", "orders_feed", "order_lines"} }

// writeEvery is the pause between two rounds of the writer.
const writeEvery = 500 * time.Millisecond

// servers is everything that runs.
type servers struct {
	t testing.TB
	// shop is the sample database's URL for the superuser; nats, edge and ops are host:port.
	shop, nats, edge, ops string
	bridge, httpedge      *testenv.Process
	// failed gets the reason why the demo can't go on. The writer sends to it, and the two goroutines that watch the
	// programs. It has room for all three, and is never closed.
	failed     chan error
	rounds     atomic.Int64 // of the writer
	stopWriter func()       // returns when the writer has stopped; may be called again
}

// start starts everything and waits for nothing but Postgres.
func start(t testing.TB) *servers {
	if _, err := os.Stat(filepath.Join("sql", "01-schema.sql")); err != nil {
		t.Fatal("run it in the directory of the project: make demo")
	}
	s := &servers{t: t, failed: make(chan error, 3)}
	say("Building ./bin/bridge and ./bin/httpedge ...")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", "bin"+string(filepath.Separator), "./cmd/bridge", "./cmd/httpedge")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	say("Starting Postgres with the sample tables of sql/ ...")
	s.startPostgres()
	s.startWriter()

	s.nats, s.ops, s.edge = address(t, 4222), address(t, 8081), address(t, 8080)
	say("Starting the bridge, with NATS embedded, and the edge ...")
	s.bridge = s.program("bridge",
		"DATABASE_URL="+asBridge(s.shop), "BRIDGE_TABLES="+tables, "BRIDGE_LISTEN="+s.ops,
		"BRIDGE_NATS_LISTEN="+s.nats, "BRIDGE_NATS_DIR="+filepath.Join(t.TempDir(), "nats"))
	s.httpedge = s.program("httpedge", "NATS_URL=nats://"+s.nats, "HTTPEDGE_LISTEN="+s.edge)
	return s
}

// startPostgres makes a cluster with the sample. Where testenv has unusual settings, it sets Postgres' defaults.
func (s *servers) startPostgres() {
	c := testenv.NewCluster(s.t, "timezone=UTC", "datestyle=ISO, MDY", "intervalstyle=postgres",
		"bytea_output=hex", "extra_float_digits=1")
	testenv.Exec(s.t, c.URL("postgres"), "CREATE DATABASE shop")
	s.shop = c.URL("shop")
	testenv.Exec(s.t, s.shop, s.sql("01-schema.sql"), s.sql("02-data.sql"))
}

func (s *servers) sql(file string) string {
	b, err := os.ReadFile(filepath.Join("sql", file))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// asBridge turns the URL of the superuser into that of the bridge's role.
func asBridge(url string) string {
	_, rest, _ := strings.Cut(url, "@")
	return "postgres://lockstep:lockstep@" + rest
}

// startWriter runs sql/writer.sql again and again.
func (s *servers) startWriter() {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{}) // closed by the writer when it ends
	s.stopWriter = func() { cancel(); <-done }
	s.t.Cleanup(s.stopWriter)
	sql := s.sql("writer.sql")
	go func() {
		defer close(done)
		if err := s.write(ctx, sql); err != nil && ctx.Err() == nil {
			s.failed <- fmt.Errorf("the writer: %w", err)
		}
	}()
}

func (s *servers) write(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.shop)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
		s.rounds.Add(1)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// program starts one of the programs. At the end it gets SIGTERM, and is killed only if it does not stop.
func (s *servers) program(name string, env ...string) *testenv.Process {
	path, err := filepath.Abs(filepath.Join("bin", name))
	if err != nil {
		s.t.Fatal(err)
	}
	p := testenv.Start(s.t, path, env)
	stopping := make(chan struct{}) // closed by the cleanup
	s.t.Cleanup(func() {
		close(stopping)
		p.Signal(syscall.SIGTERM)
		if status, err := p.Wait(10 * time.Second); err != nil {
			s.t.Logf("demo: %s did not stop, killing it: %v", name, err)
		} else if status != 0 {
			s.t.Logf("demo: %s ended with status %d", name, status)
		}
	})
	go func() {
		select {
		case <-stopping:
		case <-p.Exited():
			s.failed <- fmt.Errorf("%s ended", name)
		}
	}()
	return p
}

// alive returns an error if the demo can't go on.
func (s *servers) alive() error {
	select {
	case err := <-s.failed:
		return err
	default:
		return nil
	}
}

// awaitReady waits until both programs say that they are ready.
func (s *servers) awaitReady(ctx context.Context) {
	for _, address := range []string{s.ops, s.edge} {
		await(ctx, s.t, s.alive, func() error { return ready(ctx, "http://"+address+"/readyz") })
	}
}

func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body := make([]byte, 4096)
		n, _ := resp.Body.Read(body)
		return fmt.Errorf("%s: status %d: %s", url, resp.StatusCode, body[:n])
	}
	return nil
}

// await calls cond every 50 ms until it returns nil. It ends the demo when that takes too long, when the demo is
// interrupted, and when alive returns an error.
func await(ctx context.Context, t testing.TB, alive, cond func() error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; {
		err := cond()
		switch {
		case err == nil:
			return
		case ctx.Err() != nil:
			t.Fatal("interrupted while waiting: ", err)
		case time.Now().After(deadline):
			t.Fatalf("not within %s: %v", patience, err)
		}
		if err := alive(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// address finds a port to listen on: the usual one or, if that is taken, one some hundreds above it. Demos that start
// at the same time take different ports: each holds an abstract unix socket for its port until it ends.
func address(t testing.TB, usual int) string {
	var errs []error
	for port := usual; port < usual+5000; port += 100 {
		claim, err := net.Listen("unix", "@lockstep-demo-port-"+strconv.Itoa(port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			errs = append(errs, errors.Join(err, claim.Close()))
			continue
		}
		t.Cleanup(func() { _ = claim.Close() })
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return l.Addr().String()
	}
	t.Fatal("find a port to listen on: ", errors.Join(errs...))
	return ""
}
