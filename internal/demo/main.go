// Demo shows the whole system at work on one machine, without any configuration: "make demo". It starts its own
// Postgres with the sample of sql/, a writer that keeps changing the sample, the bridge with its embedded NATS, and the
// edge. It checks that rows arrive over HTTP and over NATS as Postgres holds them, shows some of them, prints commands
// to try, and runs until Ctrl-C.
//
// With DEMO_SECONDS=N it stops by itself N seconds after everything is ready. Then it compares, row by row, what
// arrived with what Postgres holds. The exit status is 0 only if all comparisons succeeded.
//
// Nothing outlives the demo, however it ends: a watchdog of internal/testenv ends its processes and removes its files.
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
	if status != 0 { // again, because logs were printed after the reason
		fmt.Fprintln(os.Stderr, "\ndemo: FAILED:", why.text)
	}
	os.Exit(status)
}

// reason is a testing.TB that remembers why the demo failed. Only the goroutine of run may use it.
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

// limit parses DEMO_SECONDS; 0 means until Ctrl-C.
func limit(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n <= 0 || n > 1e6 {
		return 0, fmt.Errorf("DEMO_SECONDS is %q; set it to a number of seconds, or to nothing", text)
	}
	return time.Duration(n * float64(time.Second)), nil
}

// withParent ends the demo when the process that started it has ended: "go run" passes on no signal, except an
// interrupt from the terminal.
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

// patience is how long the demo waits for anything that must happen. It is long because a busy machine is no failure.
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
		say("The demo stops by itself in %s.", limit)
	} else {
		say("Ctrl-C stops everything.")
	}
	select {
	case <-ctx.Done():
		if limit > 0 {
			t.Fatal("interrupted before the time of DEMO_SECONDS was over")
		}
		say("\nStopping.")
	case err := <-s.failed:
		t.Fatal(err)
	case <-timeUp:
		s.stopWriter()
		c.compare(ctx, all)
		rounds := s.rounds.Load()
		say("After %s and %d rounds of the writer, HTTP and NATS clients have exactly what Postgres holds, in all %d relations.",
			time.Since(ready).Round(time.Second), rounds, len(relations()))
	}
}

// say prints for people.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
