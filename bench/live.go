package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

const (
	liveWriters = 4
	liveSeconds = 20
	liveWarmUp  = 2 * time.Second
	// liveRate and walRate are transactions a second, of all writers together.
	liveRate, walRate = 500, 200
)

const (
	liveSQL   = `CREATE TABLE live (id bigint PRIMARY KEY, writer integer NOT NULL, note text NOT NULL)`
	insertSQL = `INSERT INTO live (id, writer, note) VALUES ($1, $2, $3)`
	updateSQL = `UPDATE live SET writer = $2, note = $3 WHERE id = $1`
)

// traffic is what the bridge captures, and what the writers do meanwhile: one
// transaction with one row for each ID.
type traffic struct {
	name, tables, write string
	rate                int
	// prepare prepares the table for its capture.
	prepare func(dsn string)
	env     []string
	// alone says that no edge and no HTTP client run.
	alone bool
	// bare says that the bare publisher runs, and not the bridge.
	bare    bool
	targets []liveTarget
}

// liveTarget is the longest allowed time until a reader has a row, in
// milliseconds.
type liveTarget struct {
	reader   string
	p50, p99 float64 // 0 for no target
}

const (
	toNATS = "commit → NATS subscriber"
	toCore = "commit → core NATS subscriber"
	toHTTP = "commit → HTTP client"
)

// moments are the times of the rows by ID. One goroutine writes each element; the
// lists are read after all goroutines have ended.
type moments struct {
	begun, committed         []time.Time
	stored, nats, core, http []time.Time
}

// liveRun is one run's latencies in milliseconds, and CPU seconds per second.
type liveRun struct {
	commit, stored, nats, core, http []float64
	missing                          int
	cpu                              map[string]float64
}

// benchLive is item 2.
func benchLive(t testing.TB, w *world) section {
	s := section{
		title:  fmt.Sprintf("Live: %d transactions a second from %d writers, one row each, synchronous commit on", liveRate, liveWriters),
		header: []string{"", "p50 ms", "p99 ms", "greatest ms"},
	}
	for _, tr := range []traffic{
		{
			name: "NOTIFY", tables: "live", write: insertSQL, rate: liveRate,
			prepare: func(dsn string) { prepare(t, dsn, "live", true) },
			targets: []liveTarget{{toHTTP, 2, 10}},
		},
		{
			name: "timer of 20 ms", tables: "live", write: insertSQL, rate: liveRate,
			prepare: func(dsn string) { prepare(t, dsn, "live", false) },
			env:     []string{"BRIDGE_POLL_INTERVAL=20ms"},
		},
	} {
		liveRows(&s, w, tr, w.liveRuns(t, 2, tr))
	}
	w.liveNotes(&s)
	return s
}

// benchWALLive is item 7.
func benchWALLive(t testing.TB, w *world) section {
	s := section{
		title:  fmt.Sprintf("Live from the WAL: %d transactions a second from %d writers, one row updated by each, synchronous commit on", walRate, liveWriters),
		header: []string{"", "p50 ms", "p99 ms", "greatest ms"},
	}
	tr := traffic{
		name: "WAL", tables: "live(capture=wal)", write: updateSQL, rate: walRate, env: []string{"BRIDGE_NAME=bench_live"},
		prepare: func(dsn string) {
			testenv.Exec(t, dsn, fmt.Sprintf("INSERT INTO live SELECT g, 0, 'before' FROM generate_series(0, %d) g", w.liveCount(walRate)-1), "VACUUM ANALYZE live")
		},
		alone: true, targets: []liveTarget{{toNATS, 0.5, 1.5}},
	}
	bare := tr
	bare.name, bare.bare, bare.targets = "bare publisher", true, nil
	beside := tr
	beside.name, beside.alone, beside.targets = "WAL, beside an edge", false, []liveTarget{{reader: toHTTP, p50: 1}}
	var runs, bareRuns []liveRun
	for range w.opt.runs { // the two take turns
		runs, bareRuns = append(runs, w.live(t, tr)), append(bareRuns, w.live(t, bare))
	}
	liveRows(&s, w, tr, runs)
	liveRows(&s, w, bare, bareRuns)
	added := p50Of(runs, toCore) - p50Of(bareRuns, toCore)
	s.verdict("live from the WAL, what the bridge adds to "+toCore+", p50", fmt.Sprintf("%.2f ms", added), "≤ 0.25 ms", added <= 0.25)
	liveRows(&s, w, beside, w.liveRuns(t, 7, beside))
	s.note("The core subscriber gets the copies that the broker sends of stored rows. The bare publisher takes turns with the bridge: it reads the WAL and publishes the text of each row to core NATS, without a store, and does nothing else.")
	s.note("The subscriber is measured alone, as the closest peer's was. It is measured again beside an edge and its client, which take their part of the two cores.")
	w.liveNotes(&s)
	return s
}

// p50Of returns the median over the runs of the p50 of a reader.
func p50Of(runs []liveRun, reader string) float64 {
	var p50 series
	for i := range runs {
		list := runs[i].nats
		if reader == toCore {
			list = runs[i].core
		}
		p50 = append(p50, percentile(list, 0.5))
	}
	return p50.median()
}

// liveRuns runs the traffic -runs times.
func (w *world) liveRuns(t testing.TB, number int, tr traffic) []liveRun {
	t.Helper()
	var runs []liveRun
	for range w.opt.runs {
		run := w.live(t, tr)
		runs = append(runs, run)
		http := ""
		if w.hasEdge(tr) {
			http = fmt.Sprintf(", to HTTP %.2f / %.2f ms", percentile(run.http, 0.5), percentile(run.http, 0.99))
		}
		t.Logf("%d: %s: commit to NATS %.2f / %.2f ms%s (p50 / p99)", number, tr.name, percentile(run.nats, 0.5), percentile(run.nats, 0.99), http)
	}
	return runs
}

// hasEdge says whether an edge and its client run too.
func (w *world) hasEdge(tr traffic) bool { return w.edge != "" && !tr.alone }

func (w *world) liveNotes(s *section) {
	s.note("Times are from the moment COMMIT returned to the writer until the reader has the row. The NATS subscriber is an ordered consumer, the HTTP client is connected to the edge.")
	s.note("COMMIT, for comparison: from the moment the writer sent it until it returned.")
	if w.edge == "" {
		s.note("HTTP: not measured, because %s.", w.noEdge)
	}
}

func liveRows(s *section, w *world, tr traffic, runs []liveRun) {
	at := func(pick func(liveRun) []float64, p float64) series {
		var out series
		for _, r := range runs {
			out = append(out, percentile(pick(r), p))
		}
		return out
	}
	row := func(what string, pick func(liveRun) []float64) {
		p50, p99 := at(pick, 0.5), at(pick, 0.99)
		s.row(tr.name+": "+what, p50.cell("%.2f"), p99.cell("%.2f"), at(pick, 1).cell("%.1f"))
		for _, target := range tr.targets {
			if target.reader == what {
				target.judge(s, tr.name, p50, p99)
			}
		}
	}
	row("COMMIT", func(r liveRun) []float64 { return r.commit })
	if !tr.bare {
		row("commit → stored by the broker", func(r liveRun) []float64 { return r.stored })
		row(toNATS, func(r liveRun) []float64 { return r.nats })
	}
	row(toCore, func(r liveRun) []float64 { return r.core })
	if w.hasEdge(tr) {
		row(toHTTP, func(r liveRun) []float64 { return r.http })
	}
	var parts []string
	for _, process := range []string{"bridge", "nats", "edge", "postgres", others} {
		var used series
		for _, r := range runs {
			if cpu, ok := r.cpu[process]; ok {
				used = append(used, 100*cpu)
			}
		}
		if len(used) > 0 {
			parts = append(parts, process+" "+used.cell("%.0f"))
		}
	}
	s.note("%s: CPU in %% of a core: %s.", tr.name, strings.Join(parts, ", "))
	missing := 0
	for _, r := range runs {
		missing += r.missing
	}
	if missing > 0 {
		s.note("%s: %d rows did not arrive within 5 s.", tr.name, missing)
	}
}

// judge compares the measured times with the target.
func (target liveTarget) judge(s *section, name string, p50, p99 series) {
	for _, q := range []struct {
		name     string
		measured series
		want     float64
	}{{"p50", p50, target.p50}, {"p99", p99, target.p99}} {
		if q.want > 0 {
			s.verdict(fmt.Sprintf("live with %s, %s, %s", name, target.reader, q.name), q.measured.cell("%.2f ms"),
				fmt.Sprintf("≤ %g ms", q.want), q.measured.median() <= q.want)
		}
	}
}

// liveCount returns how many transactions a run has, including its warm-up.
func (w *world) liveCount(rate int) int {
	length := time.Duration(w.seconds(liveSeconds)) * time.Second
	return int((length+liveWarmUp).Seconds()*float64(rate)) / liveWriters * liveWriters
}

// live runs the writers and the readers once.
func (w *world) live(t testing.TB, tr traffic) liveRun {
	t.Helper()
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, liveSQL)
	tr.prepare(dsn)
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	pids := map[string]int{"nats": ns.PID(), "postgres": w.postmaster}
	if tr.bare {
		p := w.startBare(t, dsn, ns.URL())
		defer func() { p.Kill() }()
		pids["bridge"] = p.PID()
	} else {
		p := w.startBridge(t, dsn, ns.URL(), tr.tables, tr.env...)
		defer stop(t, p)
		heartbeat(t, nc, "live", 0, time.Minute)
		pids["bridge"] = p.PID()
	}

	m := &moments{}
	for _, list := range []*[]time.Time{&m.begun, &m.committed, &m.stored, &m.nats, &m.core, &m.http} {
		*list = make([]time.Time, w.liveCount(tr.rate))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var readers sync.WaitGroup
	if !tr.bare {
		readers.Go(func() { readNATS(ctx, t, nc, m.stored, m.nats) })
	}
	subscribed := testenv.NATSConn(t, ns.URL())
	defer subscribed.Close()
	subscribe(t, subscribed, m.core)
	if w.hasEdge(tr) {
		edge, url := w.startEdge(t, ns.URL())
		defer stop(t, edge)
		pids["edge"] = edge.PID()
		ready := make(chan struct{}) // closed by the reader
		readers.Go(func() { readHTTP(ctx, t, url+"/live", m.http, ready) })
		<-ready
	}
	usage := newMeter(t, pids)
	w.write(t, dsn, tr, m)
	run := liveRun{cpu: usage.seconds(t)}
	took := time.Since(usage.since).Seconds()
	for name := range run.cpu {
		run.cpu[name] /= took
	}
	<-time.After(2 * time.Second) // rows that are on their way may arrive; then the readers stop
	cancel()
	readers.Wait()
	subscribed.Close()
	run.collect(m, int(liveWarmUp.Seconds())*tr.rate, w.hasEdge(tr), tr.bare)
	return run
}

// startBare starts the bare publisher, and returns when it reads.
func (w *world) startBare(t testing.TB, dsn, broker string) *testenv.Process {
	t.Helper()
	testenv.Exec(t, dsn, "CREATE PUBLICATION bench_bare FOR TABLE live")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := testenv.Start(t, self, nil, bareCommand, dsn, "bench_bare", broker)
	testenv.Eventually(t, time.Minute, func() error {
		if !strings.Contains(p.Stderr(), bareReady) {
			return errors.New("the bare publisher does not read yet")
		}
		return nil
	})
	return p
}

// collect computes the latencies of the rows from first on.
func (r *liveRun) collect(m *moments, first int, edge, bare bool) {
	for id := first; id < len(m.committed); id++ {
		ms := func(from, to time.Time) float64 { return float64(to.Sub(from)) / float64(time.Millisecond) }
		r.commit = append(r.commit, ms(m.begun[id], m.committed[id]))
		if m.core[id].IsZero() || !bare && m.nats[id].IsZero() || edge && m.http[id].IsZero() {
			r.missing++
			continue
		}
		r.core = append(r.core, ms(m.committed[id], m.core[id]))
		if bare {
			continue
		}
		r.stored = append(r.stored, ms(m.committed[id], m.stored[id]))
		r.nats = append(r.nats, ms(m.committed[id], m.nats[id]))
		if edge {
			r.http = append(r.http, ms(m.committed[id], m.http[id]))
		}
	}
}

// write runs the writers to their end. Each has a connection and a schedule. If a
// commit takes long, the writer catches up with the schedule.
func (w *world) write(t testing.TB, dsn string, tr traffic, m *moments) {
	t.Helper()
	var writers sync.WaitGroup
	failed := make([]error, liveWriters)
	begun := time.Now()
	for n := range liveWriters {
		writers.Go(func() { failed[n] = writeRows(t.Context(), dsn, tr, n, begun, m) })
	}
	writers.Wait()
	for _, err := range failed {
		if err != nil {
			t.Fatalf("writer: %v", err)
		}
	}
}

func writeRows(ctx context.Context, dsn string, tr traffic, n int, begun time.Time, m *moments) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Prepare(ctx, tr.write, tr.write); err != nil {
		return err
	}
	note := strings.Repeat("x", 100)
	for id := n; id < len(m.committed); id += liveWriters {
		due := begun.Add(time.Duration(id) * time.Second / time.Duration(tr.rate))
		<-time.After(time.Until(due))
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, tr.write, id, n, note); err != nil {
			return err
		}
		m.begun[id] = time.Now()
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		m.committed[id] = time.Now()
	}
	return nil
}

// percentile returns the value below which the share p of all values lies.
func percentile(all []float64, p float64) float64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}
