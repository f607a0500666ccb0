package main

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"bridge/internal/dirlock"

	"github.com/rs/zerolog"
)

// A folder that was named is one edge's at a time. What an earlier edge left there stays.
func TestCacheDir_IsLocked(t *testing.T) {
	t.Parallel()
	cfg := &Config{CacheDir: filepath.Join(t.TempDir(), "cache"), cacheDiskBytes: 1}
	dir, done, err := cacheDir(cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(dir, "1.block"), filepath.Join(cfg.CacheDir, "mine")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := cacheDir(cfg, zerolog.Nop()); !errors.Is(err, dirlock.ErrLocked) {
		t.Errorf("a second edge: %v, want ErrLocked", err)
	}
	done()
	again, done, err := cacheDir(cfg, zerolog.Nop())
	if err != nil || again != dir {
		t.Fatalf("after the first edge: %s, %v, want %s", again, err, dir)
	}
	defer done()
	for _, file := range []string{filepath.Join(dir, "1.block"), filepath.Join(cfg.CacheDir, "mine")} {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("left in the folder: %v", err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
}

// Folders of edges that were killed are removed by the next edge, those of edges that run are not.
func TestCacheDir_PrivateOnesAreSwept(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	left, used := filepath.Join(tmp, privatePrefix+"left"), filepath.Join(tmp, privatePrefix+"used")
	for _, dir := range []string{left, used, filepath.Join(tmp, "other")} {
		if err := os.MkdirAll(filepath.Join(dir, "blocks"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := dirlock.Lock(used)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	_, done, err := privateDir(zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	done()
	got, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil || len(got) != 2 {
		t.Errorf("there are %v, %v; want the folder in use and the other one", got, err)
	}
}

// TestPrivateDir_EdgesThatStartTogether: none removes the folder of another, or keeps it from starting.
func TestPrivateDir_EdgesThatStartTogether(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			dir, unlock, err := newPrivate()
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			for range 10 {
				_, done, err := privateDir(zerolog.Nop())
				if err != nil {
					t.Error(err)
					return
				}
				done()
				if _, err := os.Stat(dir); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
