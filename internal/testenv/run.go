package testenv

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
)

// Run makes this package available to a program that is not a test. It calls f with a testing.TB. The TB's Log and
// Error methods print to standard error, its failures end f, and its cleanups run after f. Run returns the exit
// status, 0 or 1. The TB's Context ends with ctx, and before the cleanups begin.
func Run(ctx context.Context, name string, f func(t testing.TB)) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &standalone{name: name, ctx: ctx}
	ended := make(chan struct{}) // closed when f has returned or ended its goroutine
	go func() {
		defer close(ended)
		f(s)
	}()
	<-ended
	cancel()
	s.cleanup()
	if s.Failed() {
		return 1
	}
	return 0
}

// standalone implements the part of testing.TB that Run promises. Its other methods panic.
type standalone struct {
	testing.TB
	name string
	ctx  context.Context // what the method Context returns

	mu       sync.Mutex
	failed   bool     // Guarded by mu.
	cleanups []func() // Guarded by mu.
}

func (s *standalone) cleanup() {
	for {
		s.mu.Lock()
		n := len(s.cleanups)
		if n == 0 {
			s.mu.Unlock()
			return
		}
		f := s.cleanups[n-1]
		s.cleanups = s.cleanups[:n-1]
		s.mu.Unlock()
		ended := make(chan struct{}) // closed when f has returned or ended its goroutine
		go func() {
			defer close(ended)
			f()
		}()
		<-ended
	}
}

func (s *standalone) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *standalone) Fail() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = true
}

func (s *standalone) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *standalone) FailNow() {
	s.Fail()
	runtime.Goexit()
}

func (s *standalone) TempDir() string {
	w, err := theWatchdog()
	if err != nil {
		s.Fatal(err)
	}
	dir, err := os.MkdirTemp(w.dir, "dir")
	if err != nil {
		s.Fatal(err)
	}
	return dir
}

func (s *standalone) Helper()                  {}
func (s *standalone) Name() string             { return s.name }
func (s *standalone) Context() context.Context { return s.ctx }
func (s *standalone) Log(args ...any)          { fmt.Fprintln(os.Stderr, args...) }
func (s *standalone) Logf(f string, args ...any) {
	fmt.Fprintf(os.Stderr, f+"\n", args...)
}

func (s *standalone) Error(args ...any) {
	s.Log(args...)
	s.Fail()
}

func (s *standalone) Errorf(f string, args ...any) {
	s.Logf(f, args...)
	s.Fail()
}

func (s *standalone) Fatal(args ...any) {
	s.Log(args...)
	s.FailNow()
}

func (s *standalone) Fatalf(f string, args ...any) {
	s.Logf(f, args...)
	s.FailNow()
}
