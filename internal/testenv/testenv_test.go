package testenv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) {
	if os.Getenv("TESTENV_CRASH") != "" {
		crash()
	}
	testenv.Main(m)
}

func needServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
}

func query[T any](t *testing.T, url, sql string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var v T
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPostgres_GivesFreshDatabases(t *testing.T) {
	needServers(t)
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			url := testenv.Postgres(t)
			testenv.Exec(t, url, "CREATE TABLE same_name (i int)", "CREATE EXTENSION hstore")
			if got := query[string](t, url, "SHOW timezone"); got != "Asia/Kolkata" && os.Getenv("LOCKSTEP_TEST_DATABASE_URL") == "" {
				t.Errorf("got time zone %s, want Asia/Kolkata", got)
			}
		})
	}
}

// fatal is a TB that keeps the error which ended the test.
type fatal struct {
	testing.TB
	cause string
}

func (f *fatal) Fatal(args ...any) {
	f.cause = fmt.Sprint(args...)
	runtime.Goexit()
}

// A test gets the servers that the environment asks for, or it fails.
func TestNewCluster_IsTheOneAskedFor(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	for name, value := range map[string]string{
		"LOCKSTEP_TEST_POSTGRES_VERSION": "9",
		"LOCKSTEP_TEST_POSTGRES_BIN":     t.TempDir(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			f := &fatal{TB: t}
			ended := make(chan struct{}) // closed when NewCluster has returned or ended its goroutine
			go func() {
				defer close(ended)
				testenv.NewCluster(f)
			}()
			<-ended
			if !strings.Contains(f.cause, name) {
				t.Errorf("with %s=%s it ended with %q", name, value, f.cause)
			}
		})
	}
}

// A crash loses WAL that was only in memory. So Postgres gives out the ID of a rolled-back transaction again.
func TestCluster_KillLosesWhatWasNotWritten(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t, "wal_writer_delay=10s")
	url := c.Database()
	testenv.Exec(t, url, "CREATE TABLE t (i int)", "INSERT INTO t VALUES (1)", "CHECKPOINT")
	again := func() error {
		before := query[int64](t, url, "SELECT txid_snapshot_xmax(txid_current_snapshot())")
		testenv.Exec(t, url, "BEGIN; INSERT INTO t VALUES (2); ROLLBACK", "BEGIN; INSERT INTO t VALUES (3); ROLLBACK")
		c.Kill()
		if _, err := pgx.Connect(t.Context(), url); err == nil {
			t.Fatal("connected to a killed server")
		}
		c.Start()
		if got := query[int64](t, url, "SELECT txid_current()"); got != before {
			return fmt.Errorf("first transaction after the crash is %d, want %d again", got, before)
		}
		return nil
	}
	err := again()
	for try := 0; try < 4 && err != nil; try++ { // the WAL is written every 10 s, which may be before the kill
		t.Log(err)
		err = again()
	}
	if err != nil {
		t.Error(err)
	}
	c.Restart("work_mem=8MB")
	if got := query[string](t, url, "SHOW work_mem"); got != "8MB" {
		t.Errorf("got work_mem %s, want 8MB", got)
	}
}

func TestCluster_StandbyFollowsAndIsPromoted(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	testenv.Exec(t, c.URL("postgres"), "CREATE TABLE t AS SELECT 7 AS i")
	s := c.Standby(t)
	testenv.Eventually(t, 20*time.Second, func() error {
		if got := query[int](t, s.URL("postgres"), "SELECT count(*) FROM pg_class WHERE relname = 't'"); got != 1 {
			return errors.New("the table has not arrived")
		}
		return nil
	})
	c.Kill()
	s.Promote()
	testenv.Exec(t, s.URL("postgres"), "INSERT INTO t VALUES (8)")
}

func TestNATS_StoresAndListens(t *testing.T) {
	needServers(t)
	store(t, testenv.NATS(t).URL(), 1)
}

func TestNATSProcess_KeepsItsStreamsWhenKilled(t *testing.T) {
	needServers(t)
	s := testenv.NATSProcess(t, testenv.NATSConfig{MaxPayload: 64 << 10})
	store(t, s.URL(), 1)
	s.Kill()
	s.Start()
	js := testenv.JetStream(t, s.URL())
	if _, err := js.Stream(t.Context(), "S"); err != nil {
		t.Errorf("stream after the restart: %v", err)
	}
	s.Pause()
	s.Resume()
	s.Stop()
	if _, err := os.Stat(s.StoreDir()); err != nil {
		t.Error(err)
	}
}

func TestNATSCluster_StoresReplicas(t *testing.T) {
	needServers(t)
	servers := testenv.NATSCluster(t, 3)
	store(t, servers[1].URL(), 3)
	servers[0].Kill()
	servers[0].Start()
}

func store(t *testing.T, url string, replicas int) {
	t.Helper()
	nc := testenv.NATSConn(t, url)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg := jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: replicas}
	if _, err := js.CreateStream(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "s", []byte("x")); err != nil {
		t.Fatal(err)
	}
}

func TestStart_SignalsAndWaits(t *testing.T) {
	needServers(t)
	p := testenv.Start(t, "/bin/sh", []string{"GREETING=hello"}, "-c", `trap 'exit 7' TERM; echo "$GREETING $1" >&2; while :; do sleep 0.05; done`, "sh", "you")
	testenv.Eventually(t, 10*time.Second, func() error {
		if got := p.Stderr(); got != "hello you\n" {
			return fmt.Errorf("got stderr %q", got)
		}
		return nil
	})
	p.Pause()
	p.Signal(syscall.SIGTERM)
	if _, err := p.Wait(100 * time.Millisecond); err == nil {
		t.Error("a paused process has ended")
	}
	p.Resume()
	if code, err := p.Wait(10 * time.Second); code != 7 || err != nil {
		t.Errorf("got exit status %d, %v, want 7", code, err)
	}
}

func TestRun_CleansUpAndReportsFailure(t *testing.T) {
	var order []string
	code := testenv.Run(t.Context(), "demo", func(t testing.TB) {
		t.Cleanup(func() { order = append(order, "second") })
		t.Cleanup(func() { order = append(order, "first") })
		t.Fatal("on purpose")
	})
	if got := strings.Join(order, " "); code != 1 || got != "first second" {
		t.Errorf("got status %d and cleanups %q, want 1 and %q", code, got, "first second")
	}
}

// crash is the test process of TestWatchdog_EndsServersOfAKilledTest.
func crash() {
	testenv.Run(context.Background(), "crash", func(t testing.TB) {
		url := testenv.Postgres(t)
		testenv.Exec(t, url, "SELECT 1")
		s := testenv.NATSProcess(t)
		p := testenv.Start(t, "/bin/sh", nil, "-c", "sleep 1000 & wait")
		fmt.Printf("%s %d %d\n", url, s.PID(), p.PID())
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	})
	os.Exit(2) // the servers did not start; going on to the tests would start this process again
}

func TestWatchdog_EndsServersOfAKilledTest(t *testing.T) {
	needServers(t)
	tmp := t.TempDir()
	// The user under which Postgres runs must be able to enter the directories.
	for dir := tmp; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // it may have to build the broker
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "TESTENV_CRASH=1", "TMPDIR="+tmp, "LOCKSTEP_TEST_DATABASE_URL=")
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("the process has not been killed: %v\n%s", err, out)
	}
	var url string
	var nats, sh int
	if _, err := fmt.Sscan(string(out), &url, &nats, &sh); err != nil {
		t.Fatalf("output %q: %v", out, err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		if conn, err := pgx.Connect(t.Context(), url); err == nil {
			conn.Close(t.Context())
			return errors.New("postgres is still running")
		}
		for _, pid := range []int{nats, sh} {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
				return fmt.Errorf("process %d is still running: %s", pid, b)
			}
		}
		left, err := filepath.Glob(filepath.Join(tmp, "lockstep-test-*"))
		if err != nil || len(left) > 0 {
			return fmt.Errorf("temporary files are left: %v %w", left, err)
		}
		return nil
	})
}
