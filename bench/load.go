package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
)

const (
	// wantLoadRatio is the rate that the bridge must reach, as a share of the rate at
	// which its broker takes messages from memory.
	wantLoadRatio = 0.65
	// patience is how long one run may take.
	patience = 5 * time.Minute
)

// itemsSQL creates the table of the loads. A row has about 200 bytes in Postgres'
// text form, 250 as JSON. All rows have the txid of one transaction, as they have
// after a txid column was added to an existing table.
const itemsSQL = `
CREATE TABLE items (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text NOT NULL, note text, created timestamptz NOT NULL);
INSERT INTO items
SELECT g, 'customer ' || g, 'customer' || g || '@example.com', (ARRAY['Hamburg', 'São Paulo', 'New York', 'Kraków'])[1 + g %% 4],
       md5(g::text) || ' ' || md5((g + 1)::text) || ' "' || left(md5((g + 2)::text), 24) || '"', '2026-01-01'::timestamptz + g * interval '1.000001 s'
  FROM generate_series(1, %d) g`

// itemsDatabase creates a database with the table of the loads.
func (w *world) itemsDatabase(t testing.TB) string {
	t.Helper()
	dsn := w.pg.Database()
	testenv.Exec(t, dsn, fmt.Sprintf(itemsSQL, w.opt.rows))
	prepare(t, dsn, "items", true)
	testenv.Exec(t, dsn, "VACUUM (FREEZE, ANALYZE) items")
	return dsn
}

// phase is one half of a run: the first load, or the updates.
type phase struct {
	Rows    int
	Seconds float64
	// Sent is how many messages were stored.
	Sent int
	// Publisher, Broker and Postgres are the CPU seconds of these processes, Others
	// those of all others.
	Publisher, Broker, Postgres, Others float64
}

// loadRun is one run of the bridge or of the reference.
type loadRun struct{ Load, Updates phase }

// benchLoad is item 1.
func benchLoad(t testing.TB, w *world) section {
	template := w.itemsDatabase(t)
	updates := w.opt.rows / 5
	dump := filepath.Join(t.TempDir(), "messages")
	defer func() { _ = os.Remove(dump) }()
	var bridges, references []loadRun
	var peaks series
	// The first run warms caches, and dumps what the reference sends.
	for n := range w.opt.runs + 1 {
		file := ""
		if n == 0 {
			file = dump
		}
		run, peak := w.loadByBridge(t, template, updates, file)
		if w.opt.profile != "" {
			return section{title: "First load", notes: []string{fmt.Sprintf("profiled: %+v", run)}}
		}
		phases := w.publishReference(t, "items", dump)
		reference := loadRun{phases[0], phases[1]}
		if n > 0 {
			bridges, references, peaks = append(bridges, run), append(references, reference), append(peaks, peak)
		}
		t.Logf("1: bridge %s, reference %s", run, reference)
	}
	return loadSection(bridges, references, peaks)
}

func (r loadRun) String() string {
	return fmt.Sprintf("%.0f and %.0f rows/s", r.Load.rate(), r.Updates.rate())
}

func (p phase) rate() float64 { return float64(p.Rows) / p.Seconds }

// loadByBridge runs a bridge on a fresh copy of the table and a fresh broker.
func (w *world) loadByBridge(t testing.TB, template string, updates int, dump string) (run loadRun, peak float64) {
	t.Helper()
	dsn := w.clone(t, template)
	defer w.drop(t, dsn)
	// Read all pages of the copy once, so that each run finds them in memory.
	query[int64](t, dsn, "SELECT sum(length(note)) FROM items")
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()

	m := newMeter(t, map[string]int{"nats": ns.PID(), "postgres": w.postmaster})
	begun := time.Now()
	p := w.startBridge(t, dsn, ns.URL(), "items")
	defer stop(t, p)
	m.pids["bridge"], m.begun["bridge"] = p.PID(), 0
	stored, seq := heartbeat(t, nc, "items", 0, patience)
	run.Load = measured(t, m, w.opt.rows, stored.Sub(begun), seq)
	peak = p.PeakMB(t)
	if dump != "" {
		writeDump(t, nc, dump, "items", 0, false)
	}

	update := fmt.Sprintf(`UPDATE items SET note = reverse(note) WHERE id IN (SELECT id FROM generate_series(1, %d) id ORDER BY hashint8(id) LIMIT %d)`,
		w.opt.rows, updates)
	txid, committed := commit(t, dsn, func() { m.reset(t) }, update)
	stored, end := heartbeat(t, nc, "items", txid, patience)
	run.Updates = measured(t, m, updates, stored.Sub(committed), end-seq)
	if dump != "" {
		writeDump(t, nc, dump, "items", seq+1, true)
	}
	return run, peak
}

func measured(t testing.TB, m *meter, rows int, took time.Duration, sent uint64) phase {
	t.Helper()
	cpu := m.seconds(t)
	return phase{Rows: rows, Sent: int(sent), Seconds: took.Seconds(), Publisher: cpu["bridge"], Broker: cpu["nats"], Postgres: cpu["postgres"], Others: cpu[others]}
}

// publishReference publishes the same messages from memory to a fresh broker.
func (w *world) publishReference(t testing.TB, table, dump string) []phase {
	t.Helper()
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	return runSelf[[]phase](t, referenceCommand, ns.URL(), strconv.Itoa(ns.PID()), table, dump)
}

// runSelf runs this program with the given arguments and returns what it prints.
func runSelf[T any](t testing.TB, args ...string) T {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := testenv.Start(t, self, nil, args...)
	code, err := p.Wait(patience)
	if err == nil && code != 0 {
		err = errors.New(p.Stderr())
	}
	var result T
	if err == nil {
		err = json.Unmarshal([]byte(p.Stdout()), &result)
	}
	if err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	return result
}

// loadSection reports item 1.
func loadSection(bridges, references []loadRun, peaks series) section {
	s := section{
		title:  "First load, and many updates in one transaction",
		header: []string{"", "rows", "rows/s", "seconds", "CPU s: publisher", "nats-server", "Postgres", "others"},
	}
	pick := func(runs []loadRun, f func(loadRun) float64) series {
		var out series
		for _, r := range runs {
			out = append(out, f(r))
		}
		return out
	}
	row := func(name string, runs []loadRun, half func(loadRun) phase) series {
		rates := pick(runs, func(r loadRun) float64 { return half(r).rate() })
		number := func(f func(phase) float64) string {
			return fmt.Sprintf("%.2f", pick(runs, func(r loadRun) float64 { return f(half(r)) }).median())
		}
		s.row(name, strconv.Itoa(half(runs[0]).Rows), rates.cell("%.0f"), number(func(p phase) float64 { return p.Seconds }),
			number(func(p phase) float64 { return p.Publisher }), number(func(p phase) float64 { return p.Broker }),
			number(func(p phase) float64 { return p.Postgres }), number(func(p phase) float64 { return p.Others }))
		return rates
	}
	load := func(r loadRun) phase { return r.Load }
	updates := func(r loadRun) phase { return r.Updates }
	b := row("first load, bridge", bridges, load)
	r := row("first load, reference", references, load)
	bu := row("updates, bridge", bridges, updates)
	ru := row("updates, reference", references, updates)
	ratio := b.median() / r.median()
	s.verdict("first load, rows/s of the bridge / of the reference", fmt.Sprintf("%.2f (%.0f / %.0f)", ratio, b.median(), r.median()),
		fmt.Sprintf("≥ %.2f", wantLoadRatio), ratio >= wantLoadRatio)
	for _, run := range bridges {
		for _, p := range []phase{run.Load, run.Updates} {
			if p.Sent > p.Rows+p.Rows/100+20 {
				s.note("**Rows were sent more than once**: %d messages for %d rows.", p.Sent, p.Rows)
			}
		}
	}
	s.note("Others: the kernel's own work, the bench, and everything else that ran on the machine. If this is much, the numbers are worth little.")
	s.note("Ratio of the medians: first load %.2f, updates %.2f.", ratio, bu.median()/ru.median())
	s.note("Bridge: from the program's start, or from COMMIT, until the heartbeat after the rows is stored. Its peak memory after the load: %s MB.", peaks.cell("%.0f"))
	s.note("Reference: sends the bridge's messages of an earlier run from memory, in fast-ingest batches with chained expected sequences and Lockstep-High, " +
		"without garbage collection, until the broker has acknowledged the last. Bridge and reference take turns, each with a fresh broker.")
	return s
}

// connect connects as the bridge does.
func connect(broker string) (*nats.Conn, error) {
	return nats.Connect(broker, nats.ReconnectBufSize(-1))
}
