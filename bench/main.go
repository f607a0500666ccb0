// The bench measures the bridge and the edge as processes, with its own Postgres
// and nats-server. It prints tables of medians. `make bench` runs all of it. Flags
// choose parts:
//
//	go run ./bench -only=1,3 -runs=5 -rows=1000000
//
// It compares only numbers of the same run on the same machine. A missed target is
// reported, but is not a failure. The exit status is 1 only if something could not
// be measured at all.
//
// With -profile=DIR the bridges run inside a copy of this program, which writes
// their CPU and allocation profiles to DIR.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// options are the flags.
type options struct {
	only    string
	runs    int
	rows    int
	seconds int
	out     string
	date    string
	profile string
	bridge  string
	edge    string
}

// fullRows is the size for which the targets are meant.
const fullRows = 1_000_000

// item is one thing to measure.
type item struct {
	number int
	run    func(t testing.TB, w *world) section
}

func items() []item {
	return []item{
		{1, benchLoad},
		{2, benchLive},
		{3, benchReplay},
		{4, benchMemory},
		{5, benchIdle},
		{6, benchWAL},
		{7, benchWALLive},
		{8, benchWALMemory},
		{9, benchMany},
		{10, benchRestart},
		{11, benchEvents},
		{12, benchEdge},
		{13, benchEdgeIdle},
		{14, benchStorm},
		{15, benchEdgeLive},
		{16, benchStalled},
	}
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case referenceCommand:
			os.Exit(exitCode(runReference(os.Args[2:])))
		case readerCommand:
			os.Exit(exitCode(runReader(os.Args[2:])))
		case bareCommand:
			os.Exit(exitCode(runBare(os.Args[2:])))
		case loopCommand:
			os.Exit(exitCode(runLoop(os.Args[2:])))
		case profiledCommand:
			os.Exit(exitCode(runProfiled(os.Args[2:])))
		}
	}
	var opt options
	flag.StringVar(&opt.only, "only", "", "items to run, such as 1,3 (default all)")
	flag.IntVar(&opt.runs, "runs", 5, "runs of each item; the report shows their median")
	flag.IntVar(&opt.rows, "rows", fullRows, "rows of the large tables")
	flag.IntVar(&opt.seconds, "seconds", 0, "length of each run of items 2, 5, 7, 15 and 16 (default 20, 30, 20, 10 and 10)")
	flag.StringVar(&opt.out, "out", "", "file to write (default bench/RESULTS.md if all items run in full, else none)")
	flag.StringVar(&opt.date, "date", time.Now().UTC().Format(time.DateOnly), "date in the report")
	flag.StringVar(&opt.profile, "profile", "", "folder for profiles of the bridge")
	flag.StringVar(&opt.bridge, "bridge", "", "bridge program to measure (default: built from this module)")
	flag.StringVar(&opt.edge, "edge", "", "httpedge program to measure (default: built from this module)")
	flag.Parse()
	chosen, err := choose(opt)
	if err != nil {
		os.Exit(exitCode(err))
	}
	os.Exit(testenv.Run(context.Background(), "bench", func(t testing.TB) { measure(t, opt, chosen) }))
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 1
}

// choose returns the items that -only names.
func choose(opt options) ([]item, error) {
	if flag.NArg() > 0 || opt.runs < 1 || opt.rows < 1000 {
		return nil, errors.New("bad arguments: -runs must be at least 1, -rows at least 1000; see -help")
	}
	if opt.only == "" {
		return items(), nil
	}
	var chosen []item
	for text := range strings.SplitSeq(opt.only, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		i := slices.IndexFunc(items(), func(it item) bool { return it.number == n })
		if err != nil || i < 0 {
			return nil, fmt.Errorf("-only=%s: there is no item %q", opt.only, text)
		}
		chosen = append(chosen, items()[i])
	}
	return chosen, nil
}

// measure runs the chosen items and reports them.
func measure(t testing.TB, opt options, chosen []item) {
	w := newWorld(t, opt)
	r := &report{machine: w.machine(t), date: opt.date, runs: opt.runs, rows: opt.rows}
	begun := time.Now()
	for _, it := range chosen {
		s := it.run(t, w)
		s.number = it.number
		r.sections = append(r.sections, s)
		fmt.Printf("\n%s\n", s.markdown())
	}
	r.took = time.Since(begun).Round(time.Second)
	fmt.Printf("\n%s\n", r.summary())
	out := opt.out
	if out == "" && opt.profile == "" && opt.rows == fullRows && opt.seconds == 0 && len(chosen) == len(items()) {
		out = "bench/RESULTS.md"
	}
	if out == "" {
		return
	}
	if err := os.WriteFile(out, []byte(r.markdown()), 0o644); err != nil {
		t.Errorf("write the report: %v", err)
		return
	}
	fmt.Println("written to", out)
}
