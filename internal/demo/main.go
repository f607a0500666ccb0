// Demo shows the whole system at work on one machine, to somebody who has configured nothing: "make demo". It starts a
// Postgres of its own with the sample of sql/, a writer that keeps changing it, the bridge with its embedded NATS, and
// the edge; it proves that rows arrive over HTTP and over NATS as Postgres holds them, shows some, prints commands to
// try, and runs until Ctrl-C.
//
// With DEMO_SECONDS=N it stops by itself N seconds after everything is ready, and compares once more, row by row, what
// arrived with what Postgres holds. The exit status is 0 only if all comparisons succeeded.
//
// Nothing outlives it, however it ends: internal/testenv keeps a watchdog over its processes and temporary files.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

func main() {
	limit, err := limit(os.Getenv("DEMO_SECONDS"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go withParent(ctx, cancel)
	var why reason
	status := testenv.Run(ctx, "demo", func(t testing.TB) {
		why.TB = t
		run(&why, limit)
	})
	if status != 0 { // the logs of what ran came behind it
		fmt.Fprintln(os.Stderr, "\ndemo: FAILED:", why.text)
	}
	os.Exit(status)
}

// reason is a testing.TB that remembers what ended the demo. It is for the goroutine that run is called on.
type reason struct {
	testing.TB
	text string
}

func (r *reason) Fatal(args ...any) {
	r.text = fmt.Sprint(args...)
	r.TB.Fatal("demo: " + r.text)
}

func (r *reason) Fatalf(format string, args ...any) {
	r.Fatal(fmt.Sprintf(format, args...))
}

// limit reads DEMO_SECONDS; 0 means until Ctrl-C.
func limit(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n <= 0 || n > 1e6 {
		return 0, fmt.Errorf("DEMO_SECONDS is %q, not a number of seconds", text)
	}
	return time.Duration(n * float64(time.Second)), nil
}

// withParent ends the demo when the process that started it has gone: "go run" passes no signal on but an interrupt
// from the terminal.
func withParent(ctx context.Context, cancel context.CancelFunc) {
	parent := os.Getppid()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for os.Getppid() == parent {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	cancel()
}

// patience bounds every wait for something that must come. It is long because a busy machine is no failure.
const patience = 2 * time.Minute

func run(t testing.TB, limit time.Duration) {
	ctx := t.Context()
	s := start(t)
	s.awaitReady(ctx)

	var all []*follower
	for _, relation := range relations() {
		all = append(all, followHTTP(t, s.edge, relation), followNATS(t, s.nats, relation))
	}
	c := newChecker(t, s)
	show(all, c.probe(ctx, all))
	commands(s, all)
	ready := time.Now()

	var timeUp <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		timeUp = timer.C
		say("Stopping by itself in %s.", limit)
	} else {
		say("Ctrl-C stops everything.")
	}
	select {
	case <-ctx.Done():
		if limit > 0 {
			t.Fatal("interrupted before its time was up")
		}
		say("\nStopping.")
	case err := <-s.failed:
		t.Fatal(err)
	case <-timeUp:
		s.stopWriter()
		c.compare(ctx, all)
		rounds := s.rounds.Load()
		say("After %s and %d rounds of the writer, %d relations are over HTTP and over NATS what Postgres holds.",
			time.Since(ready).Round(time.Second), rounds, len(relations()))
	}
}

// say prints for people.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
