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
		title:  "Peak resident memory of the bridge (VmHWM), with an external broker",
		header: []string{"one transaction of", "idle before, MB", "peak, MB", "seconds from COMMIT to heartbeat", "epochs"},
	}
	big := fmt.Sprintf("INSERT INTO m SELECT g, 'big ' || g, repeat(md5(g::text), %d) FROM generate_series(1, %d) g", bigBytes/32, bigRows)
	for _, c := range []struct{ name, insert string }{
		{fmt.Sprintf("%d rows of 200 bytes", w.opt.rows), w.smallRows()},
		{fmt.Sprintf("%d rows of %d KB", bigRows, bigBytes/1000), big},
	} {
		var idle, peak, took, epochs series
		for range w.opt.runs {
			r := w.peakOf(t, "m", c.insert)
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
	s.note("One epoch had begun before the transaction. More epochs mean that there were faults.")
	return s
}

// peakRun is one run of items 4 and 8: memory in megabytes, and the time until the
// heartbeat after the rows.
type peakRun struct {
	idle, peak, epochs float64
	took               time.Duration
	err                error
}

const peakSQL = `CREATE TABLE m (id bigint PRIMARY KEY, name text NOT NULL, body text NOT NULL)`

// smallRows inserts rows of 200 bytes.
func (w *world) smallRows() string {
	return fmt.Sprintf("INSERT INTO m SELECT g, 'customer ' || g, md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text) || md5((g + 3)::text) FROM generate_series(1, %d) g", w.opt.rows)
}

// peakOf measures a bridge that captures one transaction. tables is table m with
// its options. The bridge is up to date before the transaction.
func (w *world) peakOf(t testing.TB, tables, insert string, env ...string) peakRun {
	t.Helper()
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, peakSQL)
	if tables == "m" {
		prepare(t, dsn, "m", true)
	}
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	p := w.startBridge(t, dsn, ns.URL(), tables, env...)
	defer stop(t, p)
	heartbeat(t, nc, "m", 0, time.Minute)
	r := peakRun{idle: p.PeakMB(t)}
	txid, committed := commit(t, dsn, nil, insert)
	stored, _, err := awaitHeartbeat(t.Context(), nc, "m", txid, peakPatience)
	if r.err = err; err == nil {
		r.took = stored.Sub(committed)
	}
	r.peak, r.epochs = p.PeakMB(t), float64(strings.Count(p.Stderr(), `"epoch begun"`))
	return r
}

// benchWALMemory is item 8.
func benchWALMemory(t testing.TB, w *world) section {
	s := section{
		title:  "Peak resident memory of the bridge (VmHWM) while it captures from the WAL, with an external broker",
		header: []string{"", "idle before, MB", "peak, MB", "seconds", "rows/s", "epochs"},
	}
	for _, c := range []struct {
		name string
		run  func() peakRun
	}{
		{fmt.Sprintf("one transaction of %d rows of 200 bytes", w.opt.rows), func() peakRun {
			return w.peakOf(t, "m(capture=wal)", w.smallRows(), "BRIDGE_NAME=bench_peak")
		}},
		{fmt.Sprintf("first load of %d rows of 200 bytes", w.opt.rows), func() peakRun { return w.loadPeak(t) }},
	} {
		var idle, peak, took, rates, epochs series
		for range w.opt.runs {
			r := c.run()
			peak, epochs = append(peak, r.peak), append(epochs, r.epochs)
			if r.idle > 0 {
				idle = append(idle, r.idle)
			}
			if r.err != nil {
				s.note("%s: %v", c.name, r.err)
			} else {
				took, rates = append(took, r.took.Seconds()), append(rates, float64(w.opt.rows)/r.took.Seconds())
			}
			t.Logf("8: %s: peak %.0f MB, %.1f s, %.0f epochs", c.name, r.peak, r.took.Seconds(), r.epochs)
		}
		before := "-"
		if len(idle) > 0 {
			before = idle.cell("%.0f")
		}
		s.row(c.name, before, peak.cell("%.0f"), took.cell("%.1f"), rates.cell("%.0f"), epochs.cell("%.0f"))
		s.verdict("peak memory, WAL, "+c.name, peak.cell("%.0f MB"), fmt.Sprintf("< %.0f MB", wantPeakMB), peak.median() < wantPeakMB && len(took) == w.opt.runs)
	}
	s.note("Seconds: from COMMIT, or from the program's start, until the heartbeat after the rows is stored. The bridge is connected to Postgres over TCP.")
	return s
}

// loadPeak measures a first load with capture=wal.
func (w *world) loadPeak(t testing.TB) peakRun {
	t.Helper()
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, peakSQL, w.smallRows(), "VACUUM (FREEZE, ANALYZE) m")
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	begun := time.Now()
	p := w.startBridge(t, dsn, ns.URL(), "m(capture=wal)", "BRIDGE_NAME=bench_peak")
	defer stop(t, p)
	stored, _, err := awaitHeartbeat(t.Context(), nc, "m", 0, peakPatience)
	return peakRun{
		peak: p.PeakMB(t), epochs: float64(strings.Count(p.Stderr(), `"epoch begun"`)), took: stored.Sub(begun), err: err,
	}
}
