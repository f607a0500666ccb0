package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/testenv"
)

const (
	idleClients = 10_000
	// wantIdleKB is what an idle client may cost the edge.
	wantIdleKB = 12.0
)

// benchEdgeIdle is item 13.
func benchEdgeIdle(t testing.TB, w *world) section {
	s := section{
		title:  fmt.Sprintf("Idle clients: %d connections to an edge, with heartbeats and nothing else", idleClients),
		header: []string{"", "KB of memory a client", "s until each has a heartbeat", "CPU, % of one core, then"},
	}
	if w.edge == "" {
		s.note("Not measured: %s.", w.noEdge)
		return s
	}
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, "CREATE TABLE quiet AS SELECT g AS id, 'row ' || g AS note FROM generate_series(1::bigint, 10) g", "ALTER TABLE quiet ADD PRIMARY KEY (id)")
	prepare(t, dsn, "quiet", true)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	bridge := w.startBridge(t, dsn, ns.URL(), "quiet")
	defer stop(t, bridge)
	heartbeat(t, nc, "quiet", 0, patience)
	var memory, took, cpu series
	for range w.opt.runs {
		edge, url := w.startEdge(t, ns.URL())
		address := strings.TrimPrefix(url, "http://")
		first := idleClient(t, address, 0)
		before := residentKB(t, edge.PID())
		conns := make([]net.Conn, idleClients)
		begun := time.Now()
		var wg sync.WaitGroup
		next := make(chan int)
		for range 64 {
			wg.Go(func() {
				for i := range next {
					conns[i] = idleClient(t, address, i)
				}
			})
		}
		for i := range conns {
			next <- i
		}
		close(next)
		wg.Wait()
		took = append(took, time.Since(begun).Seconds())
		<-time.After(5 * time.Second) // what connecting left behind is collected by then
		m := newMeter(t, map[string]int{"edge": edge.PID()})
		<-time.After(10 * time.Second)
		cpu = append(cpu, 100*m.seconds(t)["edge"]/time.Since(m.since).Seconds())
		memory = append(memory, (residentKB(t, edge.PID())-before)/idleClients)
		t.Logf("13: %.1f KB a client, %.1f s, %.0f %%", memory[len(memory)-1], took[len(took)-1], cpu[len(cpu)-1])
		for _, c := range append(conns, first) {
			if c != nil {
				_ = c.Close()
			}
		}
		stop(t, edge)
	}
	s.row("edge", memory.cell("%.1f"), took.cell("%.1f"), cpu.cell("%.0f"))
	s.verdict("memory of an idle client, KB", memory.cell("%.1f"), "≤ 12", memory.median() <= wantIdleKB)
	s.note("Memory is resident memory of the edge's process, less that with one client. The sockets' own memory is the kernel's, and not in it.")
	return s
}

// idleClient connects, and returns when a heartbeat has come. It goes on reading.
func idleClient(t testing.TB, address string, n int) net.Conn {
	c, err := dialFrom(address, n)
	if err != nil {
		t.Errorf("client %d: %v", n, err)
		return nil
	}
	if _, err := fmt.Fprint(c, "GET /quiet HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Errorf("client %d: %v", n, err)
		return c
	}
	buf := make([]byte, 4<<10)
	for had := 0; ; {
		k, err := c.Read(buf[had:])
		if err != nil {
			t.Errorf("client %d: %v after %q", n, err, buf[:had])
			return c
		}
		if had += k; bytes.Contains(buf[:had], []byte(`"type":"heartbeat"`)) {
			break
		}
		if had == len(buf) {
			had = copy(buf, buf[had-64:]) // the end, which may hold a part of it
		}
	}
	go func() {
		rest := make([]byte, 512)
		for {
			if _, err := c.Read(rest); err != nil {
				return
			}
		}
	}()
	return c
}

// residentKB returns the resident memory of a process.
func residentKB(t testing.TB, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nVmRSS:")
	text, _, ok := strings.Cut(rest, " kB\n")
	kb, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if !ok || err != nil {
		t.Fatalf("process %d has no resident memory in /proc", pid)
	}
	return kb
}
