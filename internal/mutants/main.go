// Mutants shows that the tests of the invariants can fail. Each mutant breaks one mechanism, and the test named with it
// must then fail. Run it with `make mutants`. Arguments choose mutants by name. The flag -changed REV chooses those that
// changed since a git revision: the mutant, the file that it breaks, or the file of its test.
//
// The compiler takes the broken file in place of the true one (go build -overlay). So a mutant needs no copy of the
// project, and only what depends on that file is compiled. All mutants work on one copy of the sources, made at the
// start, so edits of the sources meanwhile disturb nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	changed := flag.String("changed", "", "run only mutants that changed since this git `revision`: the mutant, the file that it breaks, or the file of its test")
	workers := flag.Int("workers", 6, "how many mutants run at the same time; they wait most of the time")
	flag.Parse()
	if err := run(ctx, *changed, *workers, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// run tries the chosen mutants, and prints a line for each as it ends. It also runs their tests without a mutant.
func run(ctx context.Context, since string, workers int, names []string) error {
	chosen, err := choose(since, names)
	if err != nil {
		return err
	}
	if len(chosen) == 0 {
		fmt.Println("no mutant has changed, nor its file or test")
		return nil
	}
	l, err := newLab(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	begun := time.Now()
	var mu sync.Mutex
	// Guarded by mu: how many survived, what went wrong with those that prove nothing, and the packages whose tests fail
	// without a mutant.
	var survived int
	var void []error
	var sick []string
	g, running := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	tests := testsOf(chosen)
	for pkg := range tests {
		g.Go(func() error {
			r, err := l.control(running, pkg, tests[pkg])
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if r.failed {
				sick = append(sick, pkg)
			}
			return nil
		})
	}
	for _, m := range chosen {
		g.Go(func() error {
			r, err := l.try(running, m)
			if running.Err() != nil {
				return running.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil { // the others say more
				void = append(void, fmt.Errorf("%s: %w", m.name, err))
				fmt.Printf("VOID      %-4s %s\n", m.invariant, m.name)
				return nil
			}
			if !r.failed {
				survived++
			}
			fmt.Println(m.line(r))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	total := time.Since(begun)
	fmt.Printf("%d mutants in %s, %.1f s each; %d survived\n",
		len(chosen), total.Round(time.Second), total.Seconds()/float64(len(chosen)), survived)
	if len(void) > 0 {
		return errors.Join(void...)
	}
	if survived > 0 {
		return errors.New("a mutant survived: its test must fail, and passed")
	}
	for _, pkg := range sick { // what fails beside many others may only be slow
		r, err := l.control(ctx, pkg, tests[pkg])
		if err != nil {
			return err
		}
		if r.failed {
			fmt.Printf("FAILED without a mutant: %s\n%s\n", pkg, r.out)
			return errors.New("a test fails without a mutant, so its failure with one proves nothing")
		}
	}
	return nil
}

// testsOf returns the tests of the mutants, by package.
func testsOf(chosen []mutant) map[string][]string {
	tests := map[string][]string{}
	for _, m := range chosen {
		if !slices.Contains(tests[m.pkg], m.test) {
			tests[m.pkg] = append(tests[m.pkg], m.test)
		}
	}
	return tests
}

// choose returns the mutants with these names, or all if there are no names. If a revision is given, it leaves out those
// that have not changed since.
func choose(since string, names []string) ([]mutant, error) {
	for _, n := range names {
		if !slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == n }) {
			return nil, fmt.Errorf("no mutant is named %q", n)
		}
	}
	var changes *changes
	if since != "" {
		var err error
		if changes, err = changesSince(since); err != nil {
			return nil, err
		}
	}
	var chosen []mutant
	for _, m := range mutants {
		if len(names) > 0 && !slices.Contains(names, m.name) {
			continue
		}
		if changes != nil {
			touched, err := changes.touch(m)
			if err != nil {
				return nil, err
			}
			if !touched {
				continue
			}
		}
		chosen = append(chosen, m)
	}
	return chosen, nil
}

// line returns what run prints of a mutant.
func (m mutant) line(r result) string {
	verdict, out := "killed", ""
	if !r.failed {
		verdict, out = "SURVIVED", "\n"+r.out
	}
	return fmt.Sprintf("%-8s  %-4s %-28s %s %s  (%s)%s", verdict, m.invariant, m.name, m.pkg, m.test, r.took.Round(100*time.Millisecond), out)
}
