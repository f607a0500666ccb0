package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

const (
	wantPeakMB = 100.0
	bigRows    = 2000
	bigBytes   = 500_000
	// peakPatience is how long one transaction may take to be published.
	peakPatience = 2 * time.Minute
)

// benchMemory is item 4.
func benchMemory(t testing.TB, w *world) section {
	s := section{
		title:  "Peak resident memory of the bridge (VmHWM), the broker outside",
		header: []string{"one transaction of", "idle before, MB", "peak, MB", "seconds from COMMIT to heartbeat", "epochs"},
	}
	small := fmt.Sprintf("INSERT INTO m SELECT g, 'customer ' || g, md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text) || md5((g + 3)::text) FROM generate_series(1, %d) g", w.opt.rows)
	big := fmt.Sprintf("INSERT INTO m SELECT g, 'big ' || g, repeat(md5(g::text), %d) FROM generate_series(1, %d) g", bigBytes/32, bigRows)
	for _, c := range []struct{ name, insert string }{
		{fmt.Sprintf("%d rows of 200 bytes", w.opt.rows), small},
		{fmt.Sprintf("%d rows of %d KB", bigRows, bigBytes/1000), big},
	} {
		var idle, peak, took, epochs series
		for range w.opt.runs {
			r := w.peakOf(t, c.insert)
			idle, peak, epochs = append(idle, r.idle), append(peak, r.peak), append(epochs, r.epochs)
			if r.err != nil {
				s.note("%s: %v", c.name, r.err)
			} else {
				took = append(took, r.took.Seconds())
			}
			t.Logf("4: %s: peak %.0f MB, %.1f s, %.0f epochs", c.name, r.peak, r.took.Seconds(), r.epochs)
		}
		s.row(c.name, idle.cell("%.0f"), peak.cell("%.0f"), took.cell("%.1f"), epochs.cell("%.0f"))
		s.verdict("peak memory, "+c.name, peak.cell("%.0f MB"), fmt.Sprintf("< %.0f MB", wantPeakMB), peak.median() < wantPeakMB && len(took) == w.opt.runs)
	}
	s.note("One epoch is the one that was begun before; more are faults on the way.")
	return s
}

// peakRun is one run of item 4: megabytes, and how long the transaction took
// from COMMIT to its heartbeat.
type peakRun struct {
	idle, peak, epochs float64
	took               time.Duration
	err                error
}

// peakOf runs one transaction beside a bridge that is up to date.
func (w *world) peakOf(t testing.TB, insert string) peakRun {
	t.Helper()
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, "CREATE TABLE m (id bigint PRIMARY KEY, name text NOT NULL, body text NOT NULL)")
	prepare(t, dsn, "m", true)
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	p := w.startBridge(t, dsn, ns.URL(), "m")
	defer stop(t, p)
	heartbeat(t, nc, "m", 0, time.Minute)
	r := peakRun{idle: peakMB(t, p.PID())}
	txid, committed := commit(t, dsn, nil, insert)
	stored, _, err := awaitHeartbeat(t.Context(), nc, "m", txid, peakPatience)
	if r.err = err; err == nil {
		r.took = stored.Sub(committed)
	}
	r.peak, r.epochs = peakMB(t, p.PID()), float64(strings.Count(p.Stderr(), `"epoch begun"`))
	return r
}
