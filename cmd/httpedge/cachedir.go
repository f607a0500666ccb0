package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"bridge/internal/dirlock"

	"github.com/rs/zerolog"
)

// cacheDir returns the folder for the cache on disk, empty for none, and what ends its
// use. A folder that was named is made if it does not exist. It must be this edge's alone,
// and what an earlier edge left there stays. Without a name it is a new one.
func cacheDir(cfg *Config, log zerolog.Logger) (dir string, done func(), err error) {
	if cfg.cacheDiskBytes == 0 {
		return "", func() {}, nil
	}
	if cfg.CacheDir == "" {
		return privateDir(log)
	}
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return "", nil, fmt.Errorf("make the folder of HTTPEDGE_CACHE_DIR: %w", err)
	}
	unlock, err := dirlock.Lock(cfg.CacheDir)
	if errors.Is(err, dirlock.ErrLocked) {
		err = fmt.Errorf("%w; give each edge a folder of its own", err)
	}
	if err != nil {
		return "", nil, fmt.Errorf("lock the folder of HTTPEDGE_CACHE_DIR, %s: %w", cfg.CacheDir, err)
	}
	return blocks(cfg.CacheDir), unlock, nil
}

// privatePrefix begins the names of private folders.
const privatePrefix = "lockstep-httpedge-"

// privateDir makes a folder that nobody else may read, and returns what removes it. It
// also removes those of edges that were killed. If there is no place for it on a disk,
// there is no folder.
func privateDir(log zerolog.Logger) (dir string, done func(), err error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), privatePrefix+"*"))
	for _, dir := range left {
		if unlock, err := dirlock.Lock(dir); err == nil { // those of other users can't be locked
			_ = os.RemoveAll(dir)
			unlock()
		}
	}
	private, unlock, err := newPrivate()
	if err != nil {
		log.Info().Err(err).Msg("no cache on disk: there is no place for it; set HTTPEDGE_CACHE_DIR to have one")
		return "", func() {}, nil
	}
	remove := func() { _ = os.RemoveAll(private); unlock() }
	if inMemory(private) {
		log.Info().Str("dir", private).Msg("no cache on disk: the folder for temporary files is in memory; set HTTPEDGE_CACHE_DIR to have one")
		remove()
		return "", func() {}, nil
	}
	return blocks(private), remove, nil
}

// newPrivate makes a folder and locks it. An edge that starts at the same moment may take
// it for one that was left, and remove it before it is locked: then another is made.
func newPrivate() (dir string, unlock func(), err error) {
	for range 10 {
		if dir, err = os.MkdirTemp("", privatePrefix); err != nil {
			return "", nil, err
		}
		if unlock, err = dirlock.Lock(dir); err != nil {
			_ = os.RemoveAll(dir)
			continue
		}
		if _, err = os.Stat(dir); err == nil {
			return dir, unlock, nil
		}
		unlock()
	}
	return "", nil, err
}

// blocks returns the folder in dir that has nothing but the cache.
func blocks(dir string) string {
	dir = filepath.Join(dir, "blocks")
	_ = os.Mkdir(dir, 0o700) // if it can't be made, the cache says so when it writes
	return dir
}

// tmpfs is what statfs(2) calls a file system in memory.
const tmpfs = 0x01021994

func inMemory(dir string) bool {
	var fs syscall.Statfs_t
	return syscall.Statfs(dir, &fs) == nil && int64(fs.Type) == tmpfs
}
