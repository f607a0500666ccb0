package main

import (
	"fmt"
	"path/filepath"
	"testing"

	"bridge/internal/testenv"
)

// wantEventCPU is the most CPU that a row with its event may cost the bridge, as a share of
// a row without.
const wantEventCPU = 1.05

// The two kinds of rows that benchEvents compares.
const plain, withEvent = "without", "events=true"

// benchEvents is item 11.
func benchEvents(t testing.TB, w *world) section {
	s := section{
		title:  fmt.Sprintf("Events: a backlog of %d inserted rows, 100 in a transaction, with and without the header", w.walRows()),
		header: []string{"", "µs of the bridge's CPU a row", "of nats-server's", "rows/s"},
	}
	cpu, broker, rate := map[string]series{}, map[string]series{}, map[string]series{}
	for n := range 2 * w.opt.runs {
		of := map[string]phase{}
		w.eventRun(t, n%2 == 1, of)
		for name, ph := range of {
			perRow := 1e6 / float64(w.walRows())
			cpu[name] = append(cpu[name], ph.Publisher*perRow)
			broker[name] = append(broker[name], ph.Broker*perRow)
			rate[name] = append(rate[name], ph.rate())
		}
		t.Logf("11: %.2f µs a row without, %.2f with events", cpu[plain][n], cpu[withEvent][n])
	}
	for _, name := range []string{plain, withEvent} {
		s.row(name, cpu[name].cell("%.2f"), broker[name].cell("%.2f"), rate[name].cell("%.0f"))
	}
	ratio := cpu[withEvent].median() / cpu[plain].median()
	s.verdict("CPU of the bridge a row, with its event / without", fmt.Sprintf("%.3f", ratio), fmt.Sprintf("≤ %.2f", wantEventCPU), ratio <= wantEventCPU)
	s.note("Two runs for each of the other items' one, in turns. CPU is that of the bridge's start, too.")
	return s
}

// eventRun fills a table, and lets two bridges read the WAL, one after the other: without and
// with events, or the other way round.
func (w *world) eventRun(t testing.TB, turned bool, into map[string]phase) {
	t.Helper()
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, walSQL)
	via := w.viaSocket(t, dsn)
	order := []string{plain, withEvent}
	if turned {
		order[0], order[1] = order[1], order[0]
	}
	sites := map[string]*walSite{
		plain:     {slot: "bench_plain", dsn: via},
		withEvent: {slot: "bench_events", dsn: via, options: ";events=true"},
	}
	for _, name := range order {
		sites[name].broker = testenv.NATSProcess(t)
		defer stopNATS(t, sites[name].broker)
		w.walSlots(t, sites[name])
	}
	testenv.Exec(t, dsn, "SET synchronous_commit = off", fmt.Sprintf(fillSQL, w.walRows(), 100))
	last := query[int64](t, dsn, "SELECT txid_current()::int8")
	w.settle(t)
	for _, name := range order {
		into[name] = w.walByBridge(t, sites[name], uint64(last), filepath.Join(t.TempDir(), "messages"))
	}
}
