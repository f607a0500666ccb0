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

// endToEnd are the packages whose tests only run programs. Their test binaries are compiled once, from the true sources;
// only the programs that they build are broken.
var endToEnd = map[string]bool{"./internal/e2e": true}

// lab is the copy of the project in which mutants run.
type lab struct {
	// Static after construction.
	dir     string // the copy: always at the same place, so that go's cache knows it
	scratch string // overlays and broken files; removed at the end

	mu       sync.Mutex
	binaries map[string]func() (string, error) // compiled tests by package. Guarded by mu.
}

// newLab copies the project's sources.
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
	// Postgres, which may run as another user, must reach its files in there.
	if err := os.Chmod(scratch, 0o711); err != nil {
		return nil, err
	}
	return &lab{dir: dir, scratch: scratch, binaries: map[string]func() (string, error){}}, nil
}

func (l *lab) close() { _ = os.RemoveAll(l.scratch) }

// result is what became of a run of tests.
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
		if out, err := l.command(ctx, "", broken, "go", "build", "./"+filepath.ToSlash(filepath.Dir(m.file))).CombinedOutput(); err != nil {
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

// control runs tests as they are: one that fails without a mutant would call any mutant killed.
func (l *lab) control(ctx context.Context, pkg string, tests []string) (result, error) {
	begun := time.Now()
	binary, err := l.binary(ctx, pkg)
	if err != nil {
		return result{}, err
	}
	failed, out, err := l.test(ctx, pkg, "", binary, strings.Join(tests, "|"))
	return result{failed: failed, out: out, took: time.Since(begun)}, err
}

// test runs tests of a package until the first of them fails. What that has started ends by itself: see testenv.
func (l *lab) test(ctx context.Context, pkg, env, binary, pattern string) (failed bool, out string, err error) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	cmd := l.command(ctx, pkg, env, binary, "-test.timeout=10m", "-test.v", "-test.run=^("+pattern+")$")
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
	if !strings.Contains(b.String(), "=== RUN") {
		return false, "", fmt.Errorf("test %s of %s did not run: %s", pattern, pkg, b.String())
	}
	return failed, b.String(), nil
}

// binary compiles the tests of a package, from the true sources, at its first call for that package.
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

func (l *lab) compile(ctx context.Context, pkg, env, file string) error {
	if out, err := l.command(ctx, "", env, "go", "test", "-vet=off", "-tags=nightly", "-c", "-o", file, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("does not compile: %w\n%s", err, out)
	}
	return nil
}

// command runs a program in a folder of the copy, with one more variable in its environment, and with temporary files
// where close removes them.
func (l *lab) command(ctx context.Context, folder, env, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(l.dir, folder)
	cmd.Env = append(os.Environ(), "TMPDIR="+l.scratch)
	if env != "" {
		cmd.Env = append(cmd.Env, env)
	}
	return cmd
}

// overlay writes the broken file, and what tells the compiler to take it.
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

// apply replaces the only place of old in the file's text.
func (m mutant) apply(src string) (string, error) {
	if n := strings.Count(src, m.old); n != 1 {
		return "", fmt.Errorf("the code to break stands %d times in %s, want once", n, m.file)
	}
	return strings.Replace(src, m.old, m.new, 1), nil
}

// copyFiles makes dir a copy of these files, named relative to the current folder. Files that are the same already keep
// their times, and others that were there before are removed.
func copyFiles(files []string, dir string) error {
	keep := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) { // deleted, and git does not know yet
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
