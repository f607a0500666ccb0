package testenv

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// password is the superuser's in every cluster. Tests may check that logs never contain it.
const password = "sesame-3f9c"

// settings are those of every cluster. With the last two lines, a client that relies on the server's defaults fails.
var settings = []string{
	"fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200", "max_prepared_transactions=50",
	"wal_level=logical", "max_wal_senders=20", "max_replication_slots=50", "shared_buffers=64MB",
	"hot_standby_feedback=on", "dynamic_shared_memory_type=mmap", "log_line_prefix=%m [%p] %d ", "lc_messages=C",
	"timezone=Asia/Kolkata", "datestyle=German, DMY", "intervalstyle=sql_standard", "bytea_output=escape",
	"extra_float_digits=0",
}

// Cluster is a Postgres cluster. Its methods end the test if they fail, so only the test's goroutine may call them.
type Cluster struct {
	t    testing.TB
	bin  string
	dir  string // data directory
	port int
	set  []string
	cred *syscall.Credential
	proc *Process // nil while it does not run
	next atomic.Int64
}

// NewCluster creates and starts a Postgres cluster for one test. It is removed when the test ends. set are settings
// "name=value". fsync is off unless a test sets it: it is not needed for a crash of the processes, which is what
// [Cluster.Kill] makes.
func NewCluster(t testing.TB, set ...string) *Cluster {
	t.Helper()
	c, err := newCluster(set)
	if err == nil {
		err = c.initdb()
	}
	if err == nil {
		err = c.startFirst()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.forTest(t)
}

// forTest gives a running cluster to a test, which ends it.
func (c *Cluster) forTest(t testing.TB) *Cluster {
	c.t = t
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of Postgres in %s:\n%s", c.dir, tail(c.Log(), 8<<10))
		}
		if c.proc != nil {
			_ = c.quit(syscall.SIGQUIT)
		}
		_ = os.RemoveAll(filepath.Dir(c.dir))
	})
	return c
}

// newCluster chooses the directory of a cluster, and does not start it.
func newCluster(set []string) (*Cluster, error) {
	w, err := theWatchdog()
	if err != nil {
		return nil, err
	}
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	cred, err := postgresUser()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(w.dir, "pg")
	if err != nil {
		return nil, err
	}
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return nil, err
		}
	}
	return &Cluster{bin: bin, dir: filepath.Join(dir, "data"), cred: cred, set: slices.Concat(settings, set)}, nil
}

// initdb fills the data directory with a copy of a template. The template is made by the program initdb, once for each
// version of Postgres. So all clusters of a version have the same system identifier.
func (c *Cluster) initdb() error {
	template, err := c.template()
	if err != nil {
		return err
	}
	return copyAll(template, c.dir)
}

// template returns the place of the template, in the folder .build at the module's root. It creates the template if it
// does not exist. With a lock, only one test process does so at a time. The rename at the end makes sure that a process
// that is killed meanwhile leaves no incomplete template.
func (c *Cluster) template() (string, error) {
	version, err := exec.Command(filepath.Join(c.bin, "postgres"), "-V").Output()
	if err != nil {
		return "", fmt.Errorf("ask Postgres for its version: %w", err)
	}
	cache, unlock, err := lockCache("data")
	if err != nil {
		return "", err
	}
	defer unlock()
	place := filepath.Join(cache, fmt.Sprintf("data-%d-%x", os.Geteuid(), sha256.Sum256(version)))
	if _, err := os.Stat(place); err == nil {
		return place, nil
	}
	pw := filepath.Join(filepath.Dir(c.dir), "password")
	if err := os.WriteFile(pw, []byte(password+"\n"), 0o644); err != nil {
		return "", err
	}
	if err := c.tool("initdb", "-D", c.dir, "-U", "postgres", "--pwfile", pw, "--auth-local=trust",
		"--auth-host=scram-sha-256", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C.UTF-8"); err != nil {
		return "", err
	}
	unfinished := place + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := copyAll(c.dir, unfinished); err != nil {
		return "", err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return "", err
	}
	return place, os.Rename(unfinished, place)
}

// copyAll copies a directory with the owners and modes of its files.
func copyAll(from, to string) error {
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy a data directory: %w\n%s", err, out)
	}
	return nil
}

// tool runs one of Postgres' programs, and waits until it has ended.
func (c *Cluster) tool(name string, args ...string) error {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Env = append(cleanEnv(), "PGPASSWORD="+password)
	cmd.Dir = filepath.Dir(filepath.Dir(c.dir))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// startFirst chooses a port and starts the cluster. If another process has taken the port meanwhile, it tries another.
func (c *Cluster) startFirst() error {
	var err error
	for range 3 {
		if c.port, err = FreePort(); err != nil {
			return err
		}
		if err = c.launch(); err == nil {
			return checkVersion(c.URL("postgres"))
		}
	}
	return err
}

// launch starts the postmaster and waits until it accepts connections.
func (c *Cluster) launch() error {
	args := []string{"-D", c.dir, "-p", strconv.Itoa(c.port)}
	for _, s := range c.set {
		args = append(args, "-c", s)
	}
	p, err := start(command{path: filepath.Join(c.bin, "postgres"), args: args, cred: c.cred, kind: "postmaster"})
	if err != nil {
		return err
	}
	c.proc = p
	if err := c.awaitReady(); err != nil {
		p.Signal(syscall.SIGQUIT)
		_, _ = p.Wait(10 * time.Second)
		p.Kill()
		c.proc = nil
		return fmt.Errorf("start Postgres in %s: %w\n%s", c.dir, err, tail(p.Stderr(), 4<<10))
	}
	return nil
}

// awaitReady waits until the postmaster writes to its lock file that it accepts connections. It fails if the postmaster
// ends.
func (c *Cluster) awaitReady() error {
	pid := strconv.Itoa(c.proc.PID())
	return poll(time.Minute, func() error {
		select {
		case <-c.proc.Exited():
			return errEnded
		default:
		}
		b, err := os.ReadFile(filepath.Join(c.dir, "postmaster.pid"))
		if err != nil {
			return err
		}
		lines := strings.Split(string(b), "\n")
		if len(lines) < 8 || lines[0] != pid || strings.TrimSpace(lines[7]) != "ready" {
			return errors.New("the server is not ready")
		}
		return nil
	})
}

// URL returns the DATABASE_URL of a database, for the superuser, over TCP.
func (c *Cluster) URL(db string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", password),
		Host: fmt.Sprintf("127.0.0.1:%d", c.port), Path: "/" + db, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Database creates a fresh database and returns its URL.
func (c *Cluster) Database() string {
	c.t.Helper()
	name := fmt.Sprintf("db%d", c.next.Add(1))
	Exec(c.t, c.URL("postgres"), "CREATE DATABASE "+name)
	return c.URL(name)
}

// Dir returns the data directory.
func (c *Cluster) Dir() string { return c.dir }

// Log returns what the server has logged since its last start.
func (c *Cluster) Log() string {
	if c.proc == nil {
		return ""
	}
	return c.proc.Stderr()
}

// Kill kills the postmaster and all its backends (SIGKILL), as a crash of all processes would: everything is lost that
// they have not yet written. It first stops the postmaster (SIGSTOP), so that this can neither fork nor clean up.
func (c *Cluster) Kill() {
	c.t.Helper()
	c.mustRun(true)
	pid := c.proc.PID()
	c.proc.Pause()
	children, err := childrenOf(pid)
	if err != nil {
		c.t.Fatalf("list the processes of Postgres: %v", err)
	}
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	c.proc.Kill()
	for _, child := range children {
		if err := poll(10*time.Second, func() error { return gone(child) }); err != nil {
			c.t.Fatalf("kill Postgres: %v", err)
		}
	}
	c.proc = nil
	c.forget()
}

// forget removes what a killed postmaster leaves: its lock file, and the System V shared memory that the lock file
// names. Another cluster may get the process ID in the lock file. The shared memory would stay if the cluster is never
// started again.
func (c *Cluster) forget() {
	lock := filepath.Join(c.dir, "postmaster.pid")
	b, err := os.ReadFile(lock)
	if err != nil {
		return
	}
	if lines := strings.Split(string(b), "\n"); len(lines) > 6 {
		if f := strings.Fields(lines[6]); len(f) == 2 {
			_ = exec.Command("ipcrm", "-m", f[1]).Run() // no harm if this fails: a restart would reuse the memory
		}
	}
	_ = os.Remove(lock)
}

// Start starts the cluster again, on the same port. It adds settings to those that the cluster has.
func (c *Cluster) Start(set ...string) {
	c.t.Helper()
	c.mustRun(false)
	c.set = append(c.set, set...)
	if err := c.launch(); err != nil {
		c.t.Fatal(err)
	}
}

// Stop ends the cluster gracefully, by a fast shutdown: open transactions are rolled back.
func (c *Cluster) Stop() {
	c.t.Helper()
	c.mustRun(true)
	if err := c.quit(syscall.SIGINT); err != nil {
		c.t.Fatalf("stop Postgres: %v", err)
	}
}

// Restart stops and starts the cluster.
func (c *Cluster) Restart(set ...string) {
	c.t.Helper()
	c.Stop()
	c.Start(set...)
}

// Pause stops all processes of the cluster (SIGSTOP). Resume lets them go on.
func (c *Cluster) Pause() { c.signalAll(syscall.SIGSTOP) }

// Resume lets a paused cluster go on (SIGCONT).
func (c *Cluster) Resume() { c.signalAll(syscall.SIGCONT) }

func (c *Cluster) signalAll(sig syscall.Signal) {
	c.t.Helper()
	c.mustRun(true)
	c.proc.Signal(sig)
	children, err := childrenOf(c.proc.PID())
	if err != nil {
		c.t.Fatalf("list the processes of Postgres: %v", err)
	}
	for _, child := range children {
		_ = syscall.Kill(child, sig)
	}
}

func (c *Cluster) mustRun(running bool) {
	c.t.Helper()
	if running != (c.proc != nil) {
		c.t.Fatalf("testenv: the cluster runs: %v, want %v", c.proc != nil, running)
	}
}

// quitWithin is longer than wal_sender_timeout, 60 s: for so long Postgres waits for a bridge that reads the slot, and that
// confirms nothing while the broker is away.
const quitWithin = 90 * time.Second

// quit sends the postmaster a signal on which it ends its backends and itself. If it does not end in time, quit kills
// it.
func (c *Cluster) quit(sig syscall.Signal) error {
	p := c.proc
	c.proc = nil
	p.Signal(sig)
	p.Resume()
	if _, err := p.Wait(quitWithin); err != nil {
		p.Kill()
		return err
	}
	return nil
}

// childrenOf lists the child processes of a process.
func childrenOf(pid int) ([]int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var children []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		for _, s := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(s)
			if err != nil {
				return nil, err
			}
			children = append(children, child)
		}
	}
	return children, nil
}

// gone returns nil if a process that is not our child has ended: it is gone, or it is a zombie.
func gone(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	if _, rest, ok := strings.Cut(string(b), ") "); ok && strings.HasPrefix(rest, "Z") {
		return nil
	}
	return fmt.Errorf("process %d is still running", pid)
}
