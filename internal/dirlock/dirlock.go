// Package dirlock gives a directory to one process at a time.
package dirlock

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked says that another process has the directory.
var ErrLocked = errors.New("another process uses the directory")

// Lock makes a directory this process's, by a lock on a file in it. It does not wait. It
// returns ErrLocked if another has it. The lock ends with the process, or when unlock is
// called.
func Lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
