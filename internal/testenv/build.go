package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Build compiles a command of this module, such as "./cmd/bridge", once per test process, and returns the program's
// path. It uses the build tag quick, with which the program has shorter timings than in production. It uses the race
// detector if the test does. Later changes of the source do not change the program.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	return build(t, program{pkg: pkg, quick: true, race: raceEnabled})
}

// BuildShipped is Build, but builds the program as users do: with production's timings, and without the race detector.
func BuildShipped(t testing.TB, pkg string) string {
	t.Helper()
	return build(t, program{pkg: pkg})
}

// BuildRace is Build, but always with the race detector.
func BuildRace(t testing.TB, pkg string) string {
	t.Helper()
	return build(t, program{pkg: pkg, quick: true, race: true})
}

// program is a command and how it is built.
type program struct {
	pkg         string
	quick, race bool
}

var builds struct {
	sync.Mutex
	once map[program]func() (string, error)
}

func build(t testing.TB, what program) string {
	t.Helper()
	builds.Lock()
	if builds.once == nil {
		builds.once = map[program]func() (string, error){}
	}
	once := builds.once[what]
	if once == nil {
		once = sync.OnceValues(func() (string, error) { return buildOnce(what) })
		builds.once[what] = once
	}
	builds.Unlock()
	path, err := once()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buildOnce builds into the folder .build at the module's root. There go build sees that it need not link an unchanged
// program again. Then buildOnce makes a hard link to the result for this process. With a lock, several test processes
// don't do the same work at the same time.
func buildOnce(what program) (string, error) {
	w, err := theWatchdog()
	if err != nil {
		return "", err
	}
	cache, unlock, err := lockCache("programs")
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := readSources(filepath.Dir(cache)); err != nil {
		return "", err
	}
	name := strings.NewReplacer("/", "_").Replace(strings.TrimPrefix(path.Clean(what.pkg), "/"))
	var flags []string
	if what.quick {
		name, flags = name+"-quick", append(flags, "-tags=quick")
	}
	if what.race {
		name, flags = name+"-race", append(flags, "-race")
	}
	cmd := exec.Command("go", slices.Concat([]string{"build", "-o", filepath.Join(cache, name)}, flags, []string{what.pkg})...)
	cmd.Dir = filepath.Dir(cache)
	cmd.Env = append(os.Environ(), "GOTMPDIR="+cache) // on the same file system, go build replaces the old program by rename
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", what.pkg, err, out)
	}
	own := filepath.Join(w.dir, path.Base(name))
	if err := os.Link(filepath.Join(cache, name), own); err != nil {
		if err := copyFile(filepath.Join(cache, name), own); err != nil {
			return "", err
		}
	}
	return own, nil
}

// readSources reads the folders that programs are built from. A child process builds them, which go test does not see. It
// does see what the test process reads, and so it does not take a result from its cache after a source has changed.
func readSources(root string) error {
	for _, dir := range []string{"cmd", "docs/examples", "internal", "lockstep"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(_ string, _ fs.DirEntry, err error) error { return err })
		if err != nil {
			return fmt.Errorf("read the sources: %w", err)
		}
	}
	for _, file := range []string{"go.mod", "go.sum"} {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			return fmt.Errorf("read the sources: %w", err)
		}
	}
	return nil
}

// lockCache returns the folder .build at the module's root, which test processes share. It waits for the lock of the
// given name, and holds it until unlock is called.
func lockCache(name string) (cache string, unlock func(), err error) {
	root, err := moduleRoot()
	if err != nil {
		return "", nil, err
	}
	cache = filepath.Join(root, ".build")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", nil, errors.Join(fmt.Errorf("lock %s: %w", lock.Name(), err), lock.Close())
	}
	return cache, func() { _ = lock.Close() }, nil
}

var moduleRoot = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("find the module: the current folder is outside of it; run the tests inside")
	}
	return filepath.Dir(mod), nil
})

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
