package testenv

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
)

// Run gives this package's servers to a program that is not a test: it calls f with a testing.TB whose Log and Error
// methods print to standard error, whose failures end f, and whose cleanups run after f. It returns the exit status,
// 0 or 1. ctx is what the TB's Context returns until the cleanups begin.
func Run(ctx context.Context, name string, f func(t testing.TB)) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &standalone{name: name, ctx: ctx}
	ended := make(chan struct{}) // closed when f has returned or ended itself
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

// standalone is the part of testing.TB that Run promises. Its other methods panic.
type standalone struct {
	testing.TB
	name string
	ctx  context.Context // testing.TB has a method that returns it

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
		ended := make(chan struct{}) // closed when f has returned or ended itself
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
