package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/testenv"
)

const (
	stormClients = 2000
	// stormRows are rows of transactions of their own.
	stormRows = 100_000
	// nearRows is how far back clients come from that were away for a moment.
	nearRows = 2000
	// wantOfStorm is what the storm shall reach of the rate of a web server, wantNearSeconds until when clients from
	// nearby positions are live, wantStormMB what the edge may take, and wantBroker how much of the broker's CPU for one
	// reader of everything.
	wantOfStorm, wantNearSeconds, wantStormMB, wantBroker = 0.6, 2.0, 256.0, 1.5
)

// stormSQL makes a table with a transaction for each row.
const stormSQL = `DO $$ BEGIN
	FOR i IN 1..%d LOOP
		INSERT INTO events (id, note) VALUES (i, repeat(md5(i::text), 6));
		COMMIT;
	END LOOP;
END $$`

// eventsWorld is a stream with a transaction for each row.
type eventsWorld struct {
	ns     *testenv.ExternalNATS
	broker string
	// last is the transaction of the last row, and first that of the first.
	first, last uint64
	close       func()
}

// events starts a broker with a stream of the rows, and a bridge.
func (w *world) events(t testing.TB, rows int) eventsWorld {
	t.Helper()
	dsn := w.pg.Database()
	testenv.Exec(t, dsn, "CREATE TABLE events (id bigint PRIMARY KEY, note text NOT NULL)")
	prepare(t, dsn, "events", true)
	testenv.Exec(t, dsn, "SET synchronous_commit = off", fmt.Sprintf(stormSQL, rows))
	ns := testenv.NATSProcess(t)
	nc := testenv.NATSConn(t, ns.URL())
	bridge := w.startBridge(t, dsn, ns.URL(), "events")
	e := eventsWorld{broker: ns.URL(), close: func() {
		nc.Close()
		stop(t, bridge)
		stopNATS(t, ns)
		w.drop(t, dsn)
	}}
	conn := testenv.Conn(t, dsn)
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), "SELECT min(txid), max(txid) FROM events").Scan(&e.first, &e.last); err != nil {
		t.Fatal(err)
	}
	heartbeat(t, nc, "events", e.last, patience)
	e.ns = ns
	return e
}

// spread returns positions of so many clients, over the last so many transactions.
func (e eventsWorld) spread(clients int, over uint64) []uint64 {
	rnd := rand.New(rand.NewPCG(uint64(clients), over))
	sinces := make([]uint64, clients)
	for i := range sinces {
		sinces[i] = e.last - rnd.Uint64N(min(over, e.last-e.first))
	}
	return sinces
}

// benchStorm is item 14.
func benchStorm(t testing.TB, w *world) section {
	s := section{title: fmt.Sprintf("A storm: %d clients come to an edge that has just started, each with another since", stormClients)}
	if w.edge == "" {
		s.note("Not measured: %s.", w.noEdge)
		return s
	}
	s.header = []string{"", "s until all are live", "MB/s", "nginx, MB/s", "edge / nginx", "CPU s: nats-server", "peak MB: edge"}
	e := w.events(t, stormRows)
	defer e.close()
	dir := t.TempDir()
	nginx := startNginx(t, dir)
	// One client that reads everything, from an edge of its own.
	var alone series
	for range w.opt.runs {
		edge, url := w.startEdge(t, e.broker)
		m := newMeter(t, map[string]int{"nats": e.ns.PID()})
		saveAnswer(t, strings.TrimPrefix(url, "http://"), "/events?follow=0", filepath.Join(dir, "events"))
		alone = append(alone, m.seconds(t)["nats"])
		stop(t, edge)
	}
	for _, over := range []uint64{stormRows, nearRows} {
		var took, ours, theirs, ratios, broker, peak series
		for range w.opt.runs {
			edge, url := w.startEdge(t, e.broker)
			m := newMeter(t, map[string]int{"nats": e.ns.PID()})
			begun := time.Now()
			got := storm(t, strings.TrimPrefix(url, "http://"), e.spread(stormClients, over))
			took = append(took, time.Since(begun).Seconds())
			broker, peak = append(broker, m.seconds(t)["nats"]), append(peak, edge.PeakMB(t))
			sum := 0.0
			for _, n := range got {
				sum += float64(n)
			}
			ours = append(ours, sum/1e6/took[len(took)-1])
			stop(t, edge)
			if nginx != "" {
				begun = time.Now()
				rangesOf(t, nginx, "/events", got)
				theirs = append(theirs, sum/1e6/time.Since(begun).Seconds())
				ratios = append(ratios, ours[len(ours)-1]/theirs[len(theirs)-1])
			}
			t.Logf("14: over %d transactions: %.1f s, %.0f MB/s, broker %.1f s, %.0f MB of memory", over, took[len(took)-1], ours[len(ours)-1], broker[len(broker)-1], peak[len(peak)-1])
		}
		s.row(fmt.Sprintf("over the last %d transactions", over), took.cell("%.1f"), ours.cell("%.0f"), theirs.cell("%.0f"), ratios.cell("%.2f"), broker.cell("%.2f"), peak.cell("%.0f"))
		if over == nearRows {
			s.verdict("storm from nearby positions, s until all are live", took.cell("%.1f"), "≤ 2", took.median() <= wantNearSeconds)
			continue
		}
		if nginx != "" {
			s.verdict("storm, of nginx' rate for as many bytes to as many clients", ratios.cell("%.2f"), "≥ 0.60", ratios.median() >= wantOfStorm)
		}
		s.verdict("storm, peak memory of the edge, MB", peak.cell("%.0f"), "≤ 256", peak.median() <= wantStormMB)
		s.verdict("storm, CPU of the broker, of that for one client that reads everything", fmt.Sprintf("%.2f", broker.median()/alone.median()), "≤ 1.50", broker.median() <= wantBroker*alone.median())
	}
	s.note("%d rows, each of a transaction of its own. A client is live when it has its first heartbeat; then it leaves. One client that reads everything costs the broker %s s of CPU.", stormRows, alone.cell("%.2f"))
	return s
}

// storm has all clients ask at the same time. It returns how many bytes each got until it was live.
func storm(t testing.TB, address string, sinces []uint64) []int64 {
	t.Helper()
	got := make([]int64, len(sinces))
	errs := make([]error, len(sinces))
	var wg sync.WaitGroup
	for i, since := range sinces {
		wg.Go(func() {
			c, err := follow(address, fmt.Sprintf("/events?since=%d", since), i)
			if err == nil {
				got[i], err = c.untilLive()
				_ = c.Close()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		t.Fatalf("client %d: %v", i, errs[i])
	}
	return got
}

// rangesOf has as many clients read the first bytes of a file at the same time.
func rangesOf(t testing.TB, address, target string, sizes []int64) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(sizes))
	for i, size := range sizes {
		wg.Go(func() {
			c, err := dialFrom(address, i)
			if err != nil {
				errs[i] = err
				return
			}
			defer func() { _ = c.Close() }()
			_, errs[i] = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes=0-%d\r\n\r\n", target, size-1)
			if errs[i] == nil {
				_, errs[i] = io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, 64<<10))
			}
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		t.Fatalf("client %d of nginx: %v", i, errs[i])
	}
}

// onlyReader and onlyWriter have no other methods: what is copied goes through a buffer, as that of the edge's clients does.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// dialFrom connects from one of many addresses of this machine, so that ports don't run out.
func dialFrom(address string, n int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%100))}, Timeout: 30 * time.Second}
	return d.Dial("tcp", address)
}

// followed is a client's stream.
type followed struct {
	net.Conn
	buf []byte
	had int
}

// follow asks for a stream.
func follow(address, target string, n int) (*followed, error) {
	c, err := dialFrom(address, n)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
		_ = c.Close()
		return nil, err
	}
	return &followed{Conn: c, buf: make([]byte, 64<<10)}, nil
}

// untilLive reads up to the first heartbeat, and returns how many bytes came. The first bytes must be those of an answer
// that is no refusal.
func (f *followed) untilLive() (n int64, err error) {
	return f.until([]byte(`"type":"heartbeat"`))
}

// until reads up to the text.
func (f *followed) until(text []byte) (n int64, err error) {
	for {
		k, err := f.Read(f.buf[f.had:])
		if err != nil {
			return n, err
		}
		if n == 0 && !bytes.HasPrefix(f.buf[:k], []byte("HTTP/1.1 200")) {
			return n, fmt.Errorf("the answer begins with %.60q", f.buf[:k])
		}
		n += int64(k)
		end := f.had + k
		if bytes.Contains(f.buf[:end], text) {
			return n, nil
		}
		f.had = copy(f.buf, f.buf[max(0, end-len(text)):end])
	}
}
