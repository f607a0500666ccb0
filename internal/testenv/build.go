package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Build compiles a command of this module, such as "./cmd/bridge", once per test process, with the race detector if the
// test itself has it, and returns the program's path. Later changes of the source do not change that program.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	return mustBuild(t, pkg, raceEnabled)
}

// BuildPlain is Build without the race detector, for what it would distort: a process's memory or speed.
func BuildPlain(t testing.TB, pkg string) string {
	t.Helper()
	return mustBuild(t, pkg, false)
}

func mustBuild(t testing.TB, pkg string, race bool) string {
	t.Helper()
	prog, err := build(pkg, race)
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

type program struct {
	pkg  string
	race bool
}

var builds struct {
	sync.Mutex
	once map[program]func() (string, error)
}

func build(pkg string, race bool) (string, error) {
	what := program{pkg, race}
	builds.Lock()
	if builds.once == nil {
		builds.once = map[program]func() (string, error){}
	}
	once := builds.once[what]
	if once == nil {
		once = sync.OnceValues(func() (string, error) { return buildOnce(pkg, race) })
		builds.once[what] = once
	}
	builds.Unlock()
	return once()
}

// buildOnce links into .build at the module's root, where go build sees that an unchanged program need not be linked
// again, and gives this process a link of its own to the result. A lock keeps test processes from doing the same work
// at the same time.
func buildOnce(pkg string, race bool) (string, error) {
	w, err := theWatchdog()
	if err != nil {
		return "", err
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, ".build")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}

	name := strings.NewReplacer("/", "_").Replace(strings.TrimPrefix(path.Clean(pkg), "/"))
	args := []string{"build", "-o", filepath.Join(cache, name)}
	if race {
		name += "-race"
		args = []string{"build", "-race", "-o", filepath.Join(cache, name)}
	}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOTMPDIR="+cache) // the same file system: the new program replaces the old one by rename
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	own := filepath.Join(w.dir, path.Base(name))
	if err := os.Link(filepath.Join(cache, name), own); err != nil {
		if err := copyFile(filepath.Join(cache, name), own); err != nil {
			return "", err
		}
	}
	return own, nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("find the module: run the tests inside it")
	}
	return filepath.Dir(mod), nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
