package main

import (
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/nats-io/nats.go/jetstream"
)

const wantReplayRatio = 0.7

// replayRun is one reading of the whole stream.
type replayRun struct{ rows, seconds, bytes float64 }

func (r replayRun) rate() float64 { return r.rows / r.seconds }
func (r replayRun) mb() float64   { return r.bytes / 1e6 / r.seconds }

// benchReplay is item 3.
func benchReplay(t testing.TB, w *world) section {
	s := section{title: "Replay: one client reads everything from an edge that has just started"}
	if w.edge == "" {
		s.note("Not measured: %s.", w.noEdge)
		return s
	}
	s.header = []string{"", "rows/s", "MB/s", "seconds", "CPU s: nats-server", "edge"}
	dsn := w.itemsDatabase(t)
	defer w.drop(t, dsn)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	bridge := w.startBridge(t, dsn, ns.URL(), "items")
	defer stop(t, bridge)
	heartbeat(t, nc, "items", 0, patience)
	w.settle(t)

	var edges, bares []replayRun
	var brokerEdge, brokerBare, edgeCPU, peaks series
	for n := range w.opt.runs + 1 { // the first warms up
		edge, url := w.startEdge(t, ns.URL())
		m := newMeter(t, map[string]int{"nats": ns.PID(), "edge": edge.PID()})
		e := readEdge(t, url+"/items?since=0", w.opt.rows)
		cpu, peak := m.seconds(t), edge.PeakMB(t)
		stop(t, edge)
		m = newMeter(t, map[string]int{"nats": ns.PID()})
		begun := time.Now()
		b := replayRun{}
		readStream(t, nc, "items", 0, func(msg jetstream.Msg) {
			b.rows++
			b.bytes += float64(len(msg.Data()))
		})
		b.seconds = time.Since(begun).Seconds()
		t.Logf("3: edge %.0f rows/s, bare consumer %.0f rows/s", e.rate(), b.rate())
		if n > 0 {
			edges, bares = append(edges, e), append(bares, b)
			brokerEdge, edgeCPU = append(brokerEdge, cpu["nats"]), append(edgeCPU, cpu["edge"])
			brokerBare, peaks = append(brokerBare, m.seconds(t)["nats"]), append(peaks, peak)
		}
	}
	pick := func(runs []replayRun, f func(replayRun) float64) (out series) {
		for _, r := range runs {
			out = append(out, f(r))
		}
		return out
	}
	row := func(name string, runs []replayRun, broker, edge string) float64 {
		rate := pick(runs, replayRun.rate)
		s.row(name, rate.cell("%.0f"), pick(runs, replayRun.mb).cell("%.0f"),
			pick(runs, func(r replayRun) float64 { return r.seconds }).cell("%.2f"), broker, edge)
		return rate.median()
	}
	er := row("HTTP client of the edge", edges, brokerEdge.cell("%.2f"), edgeCPU.cell("%.2f"))
	br := row("bare consumer", bares, brokerBare.cell("%.2f"), "")
	s.verdict("replay, rows/s of the edge's client / of a bare consumer", series{er / br}.cell("%.2f"), "≥ 0.70", er/br >= wantReplayRatio)
	s.note("Ratio %.2f. Times are until the last of %d rows is there. MB count only the documents. The bare consumer is a pull consumer with AckNone, Consume with PullMaxMessages 5000.", er/br, w.opt.rows)
	s.note("Peak memory of the edge: %s MB.", peaks.cell("%.0f"))
	return s
}

// readEdge reads over HTTP until it has seen this number of rows.
func readEdge(t testing.TB, address string, rows int) replayRun {
	t.Helper()
	begun := time.Now()
	c, err := get(t.Context(), address)
	if err != nil {
		t.Fatalf("read by HTTP: %v", err)
	}
	defer func() { _ = c.conn.Close() }()
	var r replayRun
	for int(r.rows) < rows {
		chunk, err := c.next()
		if err != nil {
			t.Fatalf("read by HTTP, after %.0f rows: %v", r.rows, err)
		}
		if isRow(chunk) {
			r.rows++
			r.bytes += float64(len(chunk))
		}
	}
	r.seconds = time.Since(begun).Seconds()
	return r
}
