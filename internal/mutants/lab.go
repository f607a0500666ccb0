package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// endToEnd lists the packages whose tests only run programs. Their tests are compiled once, from the true sources. Only
// the programs that they build are broken.
var endToEnd = map[string]bool{"./internal/e2e": true}

// patience is how long tests wait for what a mutant keeps from coming. The control run shows that it is enough.
const patience = "25s"

// lab is the copy of the project in which mutants run.
type lab struct {
	// Static after construction.
	dir     string // the copy, always at the same place, so that Go's build cache knows it
	scratch string // overlays, broken files and compiled tests; removed at the end

	mu       sync.Mutex
	binaries map[string]func() (string, error) // compiled tests by package. Guarded by mu.
}

// newLab makes the copy.
func newLab(ctx context.Context) (*lab, error) {
	dir, err := filepath.Abs(filepath.Join(".cache", "mutants"))
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "git", "ls-files", "-co", "--exclude-standard").Output()
	if err != nil {
		return nil, fmt.Errorf("list the project's files: %w", err)
	}
	if err := copyFiles(strings.Fields(string(out)), dir); err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp("", "lockstep-mutants-")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	// Postgres may run as another user, and must reach its files in there.
	if err := os.Chmod(scratch, 0o711); err != nil {
		return nil, err
	}
	return &lab{dir: dir, scratch: scratch, binaries: map[string]func() (string, error){}}, nil
}

func (l *lab) close() { _ = os.RemoveAll(l.scratch) }

// result is the outcome of a run of tests.
type result struct {
	failed bool
	out    string // what the tests printed
	took   time.Duration
}

// try breaks the project and runs the mutant's test. A mutant that does not compile, or whose test does not exist, proves
// nothing and is an error.
func (l *lab) try(ctx context.Context, m mutant) (result, error) {
	begun := time.Now()
	overlay, err := l.overlay(m)
	if err != nil {
		return result{}, err
	}
	broken := "GOFLAGS=-overlay=" + overlay
	var binary string
	if endToEnd[m.pkg] {
		if out, err := l.command(ctx, "", broken, "go", "build", "-o", os.DevNull, "./"+filepath.ToSlash(filepath.Dir(m.file))).CombinedOutput(); err != nil {
			return result{}, fmt.Errorf("does not compile: %s", out)
		}
		binary, err = l.binary(ctx, m.pkg)
	} else {
		binary = filepath.Join(l.scratch, m.name+".test")
		defer func() { _ = os.Remove(binary) }()
		err = l.compile(ctx, m.pkg, broken, binary)
	}
	if err != nil {
		return result{}, err
	}
	failed, out, err := l.test(ctx, m.pkg, broken, binary, m.test)
	if strings.Contains(out, "build ./cmd/") {
		return result{}, fmt.Errorf("does not compile: %s", out)
	}
	return result{failed: failed, out: out, took: time.Since(begun)}, err
}

// control runs tests without a mutant. A test that fails without one would call every mutant killed.
func (l *lab) control(ctx context.Context, pkg string, tests []string) (result, error) {
	begun := time.Now()
	binary, err := l.binary(ctx, pkg)
	if err != nil {
		return result{}, err
	}
	failed, out, err := l.test(ctx, pkg, "", binary, strings.Join(tests, "|"))
	return result{failed: failed, out: out, took: time.Since(begun)}, err
}

// test runs tests of a package, and kills them when the first fails. What they started ends by itself: see testenv.
func (l *lab) test(ctx context.Context, pkg, env, binary, pattern string) (failed bool, out string, err error) {
	running, enough := context.WithCancel(ctx)
	defer enough()
	cmd := l.command(running, pkg, env, binary, "-test.timeout=10m", "-test.v", "-test.run=^("+pattern+")$")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return false, "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return false, "", err
	}
	var b strings.Builder
	for lines := bufio.NewReader(stdout); ; {
		line, err := lines.ReadString('\n')
		b.WriteString(line)
		if strings.HasPrefix(strings.TrimSpace(line), "--- FAIL: ") {
			failed = true
			enough()
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		failed = true
	}
	if ctx.Err() != nil { // it was interrupted, and has not failed
		return false, "", ctx.Err()
	}
	if !strings.Contains(b.String(), "=== RUN") {
		return false, "", fmt.Errorf("test %s of %s did not run: %s", pattern, pkg, b.String())
	}
	return failed, b.String(), nil
}

// binary returns the compiled tests of a package. The first call for the package compiles them, from the true sources.
func (l *lab) binary(ctx context.Context, pkg string) (string, error) {
	l.mu.Lock()
	once := l.binaries[pkg]
	if once == nil {
		once = sync.OnceValues(func() (string, error) {
			file := filepath.Join(l.scratch, filepath.Base(pkg)+".test")
			return file, l.compile(ctx, pkg, "", file)
		})
		l.binaries[pkg] = once
	}
	l.mu.Unlock()
	return once()
}

// compile compiles the tests of a package, those of make nightly too.
func (l *lab) compile(ctx context.Context, pkg, env, file string) error {
	if out, err := l.command(ctx, "", env, "go", "test", "-vet=off", "-tags=nightly", "-c", "-o", file, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("does not compile: %w\n%s", err, out)
	}
	return nil
}

// command returns a command that runs in a folder of the copy. Its environment has one more variable, and its temporary
// files are in scratch.
func (l *lab) command(ctx context.Context, folder, env, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(l.dir, folder)
	cmd.Env = append(os.Environ(), "TMPDIR="+l.scratch, "LOCKSTEP_TEST_PATIENCE="+patience)
	if env != "" {
		cmd.Env = append(cmd.Env, env)
	}
	return cmd
}

// overlay writes the broken file, and a JSON file that tells the compiler to take it. It returns the path of the latter.
func (l *lab) overlay(m mutant) (string, error) {
	path := filepath.Join(l.dir, m.file)
	src, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	broken, err := m.apply(string(src))
	if err != nil {
		return "", err
	}
	file := filepath.Join(l.scratch, m.name+".go")
	if err := os.WriteFile(file, []byte(broken), 0o644); err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{path: file}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(l.scratch, m.name+".json")
	return overlay, os.WriteFile(overlay, text, 0o644)
}

// apply replaces old by new in the text of the file. It is an error if old does not stand there exactly once.
func (m mutant) apply(src string) (string, error) {
	if n := strings.Count(src, m.old); n != 1 {
		return "", fmt.Errorf("%s has the code to break %d times, want once", m.file, n)
	}
	return strings.Replace(src, m.old, m.new, 1), nil
}

// copyFiles makes dir a copy of these files, which are named relative to the current folder. Files that are the same
// already keep their times. Other files in dir are removed.
func copyFiles(files []string, dir string) error {
	keep := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) { // deleted, but still in git's index
			continue
		}
		if err != nil {
			return fmt.Errorf("copy the project: %w", err)
		}
		to := filepath.Join(dir, f)
		keep[to] = true
		if old, err := os.ReadFile(to); err == nil && string(old) == string(b) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("copy the project: %w", err)
		}
		mode := fs.FileMode(0o644)
		if info, err := os.Stat(f); err == nil {
			mode = info.Mode().Perm()
		}
		if err := os.WriteFile(to, b, mode); err != nil {
			return fmt.Errorf("copy the project: %w", err)
		}
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".build": // the tests' programs
			return filepath.SkipDir
		case !d.IsDir() && !keep[path]:
			return os.Remove(path)
		}
		return nil
	})
}
