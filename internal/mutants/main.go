// Mutants shows that the tests of the invariants can fail: each mutant breaks
// one mechanism in a copy of the project, and the test named beside it must
// then fail. Run it with `make mutants`; arguments choose mutants by name.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	dir, err := os.MkdirTemp("", "lockstep-mutants-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var survived, ran int
	for _, m := range mutants {
		if len(names) > 0 && !slices.Contains(names, m.name) {
			continue
		}
		ran++
		begun := time.Now()
		killed, out, err := m.try(ctx, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		verdict := "killed"
		if !killed {
			verdict = "SURVIVED"
			survived++
		}
		fmt.Printf("%-8s  %-4s %-28s %s %s  (%s)\n", verdict, m.invariant, m.name, m.pkg, m.test, time.Since(begun).Round(time.Second))
		if !killed {
			fmt.Println(out)
		}
	}
	fmt.Printf("%d mutants, %d survived\n", ran, survived)
	if survived > 0 || ran == 0 {
		return errors.New("a test can't fail, or no mutant was chosen")
	}
	return nil
}

// try copies the project, breaks it and runs the test. A mutant that does not
// compile, or whose test does not exist, proves nothing and is an error.
func (m mutant) try(ctx context.Context, dir string) (killed bool, out string, err error) {
	if err := copyTree(".", dir); err != nil {
		return false, "", err
	}
	if err := m.apply(dir); err != nil {
		return false, "", err
	}
	if out, err := m.command(ctx, dir, "vet", "./"+filepath.ToSlash(filepath.Dir(m.file))).CombinedOutput(); err != nil {
		return false, "", fmt.Errorf("does not compile: %s", out)
	}
	b, err := m.command(ctx, dir, "test", "-count=1", "-timeout=5m", "-v", "-run", "^("+m.test+")$", m.pkg).CombinedOutput()
	if ctx.Err() != nil {
		return false, "", ctx.Err()
	}
	if !strings.Contains(string(b), "=== RUN") {
		return false, "", fmt.Errorf("test %s of %s did not run: %s", m.test, m.pkg, b)
	}
	return err != nil, string(b), nil
}

func (m mutant) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	return cmd
}

// apply replaces the only place of old in the file.
func (m mutant) apply(dir string) error {
	path := filepath.Join(dir, m.file)
	src, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if n := strings.Count(string(src), m.old); n != 1 {
		return fmt.Errorf("the code to break stands %d times in %s, want once", n, m.file)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(src), m.old, m.new, 1)), 0o644)
}

// copyTree copies the project's sources over those in dir.
func copyTree(from, dir string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != from && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "data") {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return copyFile(path, filepath.Join(dir, path))
	})
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}
