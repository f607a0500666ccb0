package testenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Process is a running program. Its methods may be called from any goroutine.
type Process struct {
	cmd            *exec.Cmd
	stdout, stderr string        // files
	done           chan struct{} // closed by the one goroutine that reaps the process
}

// Start runs a program, usually one from [Build]. Its environment is that of the test process, without the variables
// that configure the project's programs, and with env. When the test ends, the program is killed. If the test failed,
// its stderr is logged.
func Start(t testing.TB, path string, env []string, args ...string) *Process {
	t.Helper()
	p, err := start(command{path: path, args: args, env: env})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("stderr of %s:\n%s", strings.Join(append([]string{path}, args...), " "), tail(p.Stderr(), 32<<10))
		}
	})
	return p
}

// PID returns the ID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill kills the process (SIGKILL) and returns when it has ended. It may be called again.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Pause stops the process (SIGSTOP) without ending it. Resume lets it go on.
func (p *Process) Pause() { p.Signal(syscall.SIGSTOP) }

// Resume lets a paused process go on (SIGCONT).
func (p *Process) Resume() { p.Signal(syscall.SIGCONT) }

// Signal sends a signal. It does nothing if the process has ended.
func (p *Process) Signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) }

// Exited returns a channel that is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.done }

// Wait waits until the process has ended and returns its exit status, or an error after timeout. A process that a
// signal ended has status -1.
func (p *Process) Wait(timeout time.Duration) (int, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-timer.C:
		return -1, fmt.Errorf("process %d is still running after %v", p.PID(), timeout)
	}
}

// PeakMB returns the most resident memory that the running process has had so far, in megabytes (10^6 bytes).
func (p *Process) PeakMB(t testing.TB) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatalf("read peak memory: %v", err)
	}
	_, rest, _ := strings.Cut(string(b), "\nVmHWM:")
	text, _, ok := strings.Cut(rest, " kB\n")
	kb, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if !ok || err != nil {
		t.Fatalf("process %d has no peak memory in /proc", p.PID())
	}
	return kb * 1024 / 1e6
}

// Stdout returns what the process has written to its standard output so far.
func (p *Process) Stdout() string { return read(p.stdout) }

// Stderr returns what the process has written to its standard error so far.
func (p *Process) Stderr() string { return read(p.stderr) }

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

// command is what start runs.
type command struct {
	path string
	args []string
	env  []string            // added to cleanEnv
	cred *syscall.Credential // nil: the user of the test process
	kind string              // "postmaster" for the watchdog to end it gracefully, else empty
}

// gate holds a program back until the watchdog knows its PID. If the test process dies before that, the pipe ends, and
// the shell ends too.
const gate = `read -r go <&3 || exit 1; exec "$@" 3<&-`

var processes atomic.Int64 // numbers the output files of a test process

// start runs a program in its own process group, so that a Ctrl-C ends only the test process. Its output goes to files,
// because a pipe that a child holds open would keep "go test" waiting.
func start(c command) (*Process, error) {
	w, err := theWatchdog()
	if err != nil {
		return nil, err
	}
	base := filepath.Join(w.dir, fmt.Sprintf("%d-%s", processes.Add(1), filepath.Base(c.path)))
	p := &Process{stdout: base + ".stdout", stderr: base + ".stderr", done: make(chan struct{})}
	stdout, err := os.Create(p.stdout)
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	stderr, err := os.Create(p.stderr)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	held, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer held.Close()
	defer open.Close()

	p.cmd = exec.Command("/bin/sh", append([]string{"-c", gate, "sh", c.path}, c.args...)...)
	p.cmd.Env = append(cleanEnv(), c.env...)
	p.cmd.Dir = w.dir
	p.cmd.Stdout, p.cmd.Stderr = stdout, stderr
	p.cmd.ExtraFiles = []*os.File{held}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.cred}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.path, err)
	}
	kind := c.kind
	if kind == "" {
		kind = "process"
	}
	if err = w.tell(kind, strconv.Itoa(p.PID())); err == nil {
		_, err = io.WriteString(open, "go\n")
	}
	go func() {
		_ = p.cmd.Wait()
		_ = w.tell("gone", strconv.Itoa(p.PID()))
		close(p.done)
	}()
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("start %s: %w", c.path, err)
	}
	return p, nil
}

// cleanEnv returns the environment without the variables that configure the project's programs or libpq.
func cleanEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case strings.HasPrefix(name, "BRIDGE_"), strings.HasPrefix(name, "HTTPEDGE_"), strings.HasPrefix(name, "NATS_"),
			strings.HasPrefix(name, "PG"), name == "DATABASE_URL", name == "DATABASE_PASSWORD_FILE", name == "LOG_LEVEL":
		default:
			env = append(env, v)
		}
	}
	return env
}

// watch is the watchdog's script. Its standard input says which processes run, and ends when the test process ends, in
// any way. Then the watchdog kills these processes and removes the temporary files. Postmasters first get SIGQUIT, on
// which they end their backends and free their shared memory. Those that still run 5 s later are killed.
const watch = `
trap '' INT TERM HUP QUIT
dir=$1 postmasters= processes=
without() { for p in $2; do [ "$p" = "$1" ] || printf ' %s' "$p"; done; }
while read -r what pid; do
	case $what in
	postmaster) postmasters="$postmasters $pid" ;;
	process) processes="$processes $pid" ;;
	gone) postmasters=$(without "$pid" "$postmasters") processes=$(without "$pid" "$processes") ;;
	esac
done
for p in $processes; do kill -KILL "$p"; done
for p in $postmasters; do kill -QUIT "$p"; kill -CONT "$p"; done
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do
	left=
	for p in $postmasters; do kill -0 "$p" && left=1; done
	[ -n "$left" ] || break
	sleep 0.2
done
for p in $postmasters; do kill -KILL "$p"; done
rm -rf "$dir"
`

type watchdog struct {
	dir string // temporary files of this test process, which the watchdog removes

	mu    sync.Mutex
	stdin io.Writer // Guarded by mu.
}

// theWatchdog starts the watchdog of this process at the first call.
var theWatchdog = sync.OnceValues(func() (*watchdog, error) {
	dir, err := os.MkdirTemp("", "lockstep-test-")
	if err != nil {
		return nil, err
	}
	// If the tests run as root, Postgres runs as another user, and must be able to enter this directory.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", watch, "sh", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog of the test servers: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	return &watchdog{dir: dir, stdin: stdin}, nil
})

func (w *watchdog) tell(what, pid string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := fmt.Fprintln(w.stdin, what, pid)
	return err
}
