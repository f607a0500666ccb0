package testenv

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATSServer is a nats-server inside the test process.
type NATSServer struct {
	srv *server.Server
}

// NATS starts a nats-server with JetStream inside the test process. The functions change may change its options before.
func NATS(t testing.TB, change ...func(*server.Options)) *NATSServer {
	t.Helper()
	opts := &server.Options{
		ServerName: "test", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(), SyncInterval: time.Second,
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
	}
	for _, f := range change {
		f(opts)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatalf("create a NATS server: %v", err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("the NATS server is not ready after 30 s")
	}
	return &NATSServer{srv: srv}
}

// URL returns the address for clients.
func (s *NATSServer) URL() string { return s.srv.ClientURL() }

// APIRequests returns how many requests to the JetStream API the server has answered.
func (s *NATSServer) APIRequests(t testing.TB) uint64 {
	t.Helper()
	js, err := s.srv.Jsz(&server.JSzOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return js.API.Total
}

// Server returns the server itself, so that a test can cut its connections or ask for its state.
func (s *NATSServer) Server() *server.Server { return s.srv }

// NATSConfig configures an external server. The zero value is good for most tests.
type NATSConfig struct {
	SyncInterval string // "always" or a duration; default 1s
	MaxPayload   int    // default: the server's, 1 MiB
	Extra        string // lines of the server's configuration file
	Login        string // user:password for URL, if Extra has users
}

// ExternalNATS is a nats-server process. Its methods end the test if they fail, so only the test's goroutine may call
// them.
type ExternalNATS struct {
	t    testing.TB
	prog string
	conf string
	dir  string // JetStream's files
	port int
	// login is empty, or user:password@.
	login string
	proc  *Process // nil while it does not run
}

// natsProgram is the environment variable that names another nats-server for NATSProcess and NATSCluster.
const natsProgram = "LOCKSTEP_TEST_NATS_SERVER"

// NATSProcess starts a nats-server with JetStream as a process. The program is built from this module's dependency, unless
// the environment names another.
func NATSProcess(t testing.TB, cfg ...NATSConfig) *ExternalNATS {
	t.Helper()
	s := newExternal(t, config(cfg), "")
	s.Start()
	return s
}

// NATSCluster starts a cluster of n nats-server processes. It returns when the cluster can store n replicas.
func NATSCluster(t testing.TB, n int, cfg ...NATSConfig) []*ExternalNATS {
	t.Helper()
	routes, urls := make([]string, n), make([]string, n)
	for i := range routes {
		port, err := FreePort()
		if err != nil {
			t.Fatal(err)
		}
		routes[i] = fmt.Sprintf("127.0.0.1:%d", port)
		urls[i] = fmt.Sprintf("%q", "nats://"+routes[i])
	}
	servers := make([]*ExternalNATS, n)
	for i := range servers {
		servers[i] = newExternal(t, config(cfg), fmt.Sprintf("cluster { name: test, listen: %q, routes: [ %s ] }\n",
			routes[i], strings.Join(urls, ", ")))
		servers[i].launch()
	}
	for _, s := range servers {
		s.awaitTCP()
	}
	nc := NATSConn(t, servers[0].URL())
	defer nc.Close()
	Eventually(t, time.Minute, func() error { return storesReplicas(nc, n) })
	return servers
}

func config(cfg []NATSConfig) NATSConfig {
	if len(cfg) == 0 {
		return NATSConfig{}
	}
	return cfg[0]
}

func newExternal(t testing.TB, cfg NATSConfig, cluster string) *ExternalNATS {
	t.Helper()
	prog, limits := os.Getenv(natsProgram), ""
	if prog == "" {
		prog = BuildShipped(t, "github.com/nats-io/nats-server/v2")
		limits = ", limits { default_max_consumers: -1 }" // older servers have no such limit
	}
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &ExternalNATS{t: t, prog: prog, conf: filepath.Join(dir, "nats.conf"), dir: filepath.Join(dir, "store"), port: port}
	if cfg.Login != "" {
		s.login = cfg.Login + "@"
	}
	if cfg.SyncInterval == "" {
		cfg.SyncInterval = "1s"
	}
	conf := fmt.Sprintf("server_name: test-%d\nlisten: \"127.0.0.1:%d\"\n", port, port) +
		fmt.Sprintf("jetstream { store_dir: %q, sync_interval: %s%s }\n", s.dir, cfg.SyncInterval, limits)
	if cfg.MaxPayload > 0 {
		conf += fmt.Sprintf("max_payload: %d\n", cfg.MaxPayload)
	}
	if err := os.WriteFile(s.conf, []byte(conf+cluster+cfg.Extra), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.proc == nil {
			return
		}
		s.proc.Kill()
		if t.Failed() {
			t.Logf("end of the log of nats-server on port %d:\n%s", s.port, tail(s.proc.Stderr(), 8<<10))
		}
	})
	return s
}

// URL returns the address for clients. It stays the same when the server is started again.
func (s *ExternalNATS) URL() string { return fmt.Sprintf("nats://%s127.0.0.1:%d", s.login, s.port) }

// StoreDir returns the directory of JetStream's files. A test may remove or replace it while the server does not run.
func (s *ExternalNATS) StoreDir() string { return s.dir }

// CopyStore copies JetStream's files and returns the place of the copy, which lasts as long as the test. If the server
// runs, the caller must know that everything it needs is on disk.
func (s *ExternalNATS) CopyStore() string {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// ReplaceStore removes JetStream's files, and puts a copy in their place unless from is "". The server must not run.
func (s *ExternalNATS) ReplaceStore(from string) {
	s.t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
	if from == "" {
		return
	}
	if err := os.CopyFS(s.dir, os.DirFS(from)); err != nil {
		s.t.Fatal(err)
	}
}

// PID returns the ID of the process.
func (s *ExternalNATS) PID() int { return s.proc.PID() }

// Start starts a killed or stopped server again, with its files and its address. It returns when JetStream answers. A
// member of a cluster answers only once a majority runs, so start it with StartNoWait.
func (s *ExternalNATS) Start() {
	s.t.Helper()
	s.launch()
	s.awaitTCP()
	nc := NATSConn(s.t, s.URL())
	defer nc.Close()
	Eventually(s.t, time.Minute, func() error { return jetStreamAnswers(nc) })
}

// StartNoWait starts the server and does not wait for anything.
func (s *ExternalNATS) StartNoWait() {
	s.t.Helper()
	s.launch()
}

func (s *ExternalNATS) launch() {
	s.t.Helper()
	if s.proc != nil {
		s.t.Fatal("testenv: the nats-server is already running")
	}
	p, err := start(command{path: s.prog, args: []string{"-c", s.conf}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.proc = p
}

func (s *ExternalNATS) awaitTCP() {
	s.t.Helper()
	Eventually(s.t, time.Minute, func() error {
		nc, err := nats.Connect(s.URL())
		if err == nil {
			nc.Close()
			return nil
		}
		select {
		case <-s.proc.Exited():
			s.t.Fatalf("nats-server ended:\n%s", tail(s.proc.Stderr(), 4<<10))
		default:
		}
		return err
	})
}

// Kill kills the server (SIGKILL).
func (s *ExternalNATS) Kill() {
	s.t.Helper()
	s.mustRun()
	s.proc.Kill()
	s.proc = nil
}

// Stop ends the server gracefully.
func (s *ExternalNATS) Stop() {
	s.t.Helper()
	s.mustRun()
	s.proc.Signal(os.Interrupt)
	if _, err := s.proc.Wait(30 * time.Second); err != nil {
		s.t.Fatalf("stop nats-server: %v", err)
	}
	s.proc = nil
}

// Pause stops the process (SIGSTOP) without ending it.
func (s *ExternalNATS) Pause() {
	s.t.Helper()
	s.mustRun()
	s.proc.Pause()
}

// Resume lets a paused server go on (SIGCONT).
func (s *ExternalNATS) Resume() {
	s.t.Helper()
	s.mustRun()
	s.proc.Resume()
}

func (s *ExternalNATS) mustRun() {
	s.t.Helper()
	if s.proc == nil {
		s.t.Fatal("testenv: the nats-server does not run")
	}
}

func jetStreamAnswers(nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = js.AccountInfo(ctx)
	return err
}

// storesReplicas creates a stream with n replicas, and removes it.
func storesReplicas(nc *nats.Conn, n int) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	probe := jetstream.StreamConfig{Name: "PROBE", Subjects: []string{"probe"}, Replicas: n}
	if _, err := js.CreateOrUpdateStream(ctx, probe); err != nil {
		return err
	}
	return js.DeleteStream(ctx, probe.Name)
}
