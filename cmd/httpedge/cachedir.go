package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rs/zerolog"
)

// cacheDir returns the folder for the cache on disk, empty for none, and what ends its
// use. A folder that was named is made if it does not exist. It must be this edge's alone,
// and what an edge left there is removed. Without a name it is a new one.
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
	unlock, err := lock(cfg.CacheDir)
	if err != nil {
		return "", nil, fmt.Errorf("lock the folder of HTTPEDGE_CACHE_DIR, %s: %w", cfg.CacheDir, err)
	}
	return blocks(cfg.CacheDir), unlock, nil
}

// errLocked says that another edge uses a folder.
var errLocked = errors.New("another edge uses it; give each edge a folder of its own")

// lock makes a folder this process's, until it ends or calls unlock.
func lock(dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, err
	}
	return func() { _ = file.Close() }, nil
}

// privatePrefix begins the names of private folders.
const privatePrefix = "lockstep-httpedge-"

// privateDir makes a folder that nobody else may read, and returns what removes it. It
// also removes those of edges that were killed. If there is no place for it on a disk,
// there is no folder.
func privateDir(log zerolog.Logger) (dir string, done func(), err error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), privatePrefix+"*"))
	for _, dir := range left {
		if unlock, err := lock(dir); err == nil { // those of other users can't be locked
			_ = os.RemoveAll(dir)
			unlock()
		}
	}
	private, err := os.MkdirTemp("", privatePrefix)
	if err != nil {
		log.Info().Err(err).Msg("no cache on disk: there is no place for it; set HTTPEDGE_CACHE_DIR to have one")
		return "", func() {}, nil
	}
	remove := func() { _ = os.RemoveAll(private) }
	unlock, err := lock(private)
	switch {
	case err != nil:
		remove()
		return "", nil, fmt.Errorf("lock the folder for the cache on disk, %s: %w", private, err)
	case inMemory(private):
		log.Info().Str("dir", private).Msg("no cache on disk: the folder for temporary files is in memory; set HTTPEDGE_CACHE_DIR to have one")
		remove()
		unlock()
		return "", func() {}, nil
	}
	return blocks(private), func() { remove(); unlock() }, nil
}

// blocks returns an empty folder in dir.
func blocks(dir string) string {
	dir = filepath.Join(dir, "blocks")
	_ = os.RemoveAll(dir)
	_ = os.Mkdir(dir, 0o700) // if it can't be made, the cache says so when it writes
	return dir
}

// tmpfs is what statfs(2) calls a file system in memory.
const tmpfs = 0x01021994

func inMemory(dir string) bool {
	var fs syscall.Statfs_t
	return syscall.Statfs(dir, &fs) == nil && int64(fs.Type) == tmpfs
}
