package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// wantOfFile is what a warm edge shall reach of the rate of a web server that sends the same bytes as a file.
const wantOfFile = 0.7

// benchEdge is item 12.
func benchEdge(t testing.TB, w *world) section {
	s := section{title: "Replay to many: clients read everything from an edge that has read it before"}
	if w.edge == "" {
		s.note("Not measured: %s.", w.noEdge)
		return s
	}
	s.header = []string{"clients", "edge, MB/s", "nginx, MB/s", "edge / nginx", "CPU s: nats-server", "edge", "peak MB: edge"}
	dsn := w.itemsDatabase(t)
	defer w.drop(t, dsn)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	bridge := w.startBridge(t, dsn, ns.URL(), "items")
	heartbeat(t, nc, "items", 0, patience)
	stop(t, bridge)
	w.settle(t)
	dir := t.TempDir()
	edge, url := w.startEdge(t, ns.URL(), "HTTPEDGE_CACHE_DIR="+filepath.Join(dir, "cache"))
	defer stop(t, edge)
	address := strings.TrimPrefix(url, "http://")
	const target = "/items?follow=0"
	file := filepath.Join(dir, "items")
	size := saveAnswer(t, address, target, file)
	nginx := startNginx(t, dir)
	if nginx == "" {
		s.note("Without nginx there is nothing to compare with: it is not installed.")
	}
	for _, clients := range []int{1, 20, 100} {
		var ours, theirs, ratios, broker, cpu series
		for n := range w.opt.runs + 1 { // the first warms up
			m := newMeter(t, map[string]int{"nats": ns.PID(), "edge": edge.PID()})
			our := downloads(t, address, target, clients, size)
			used := m.seconds(t)
			their := 0.0
			if nginx != "" {
				their = downloads(t, nginx, "/items", clients, size)
			}
			t.Logf("12: %d clients: edge %.0f MB/s, nginx %.0f MB/s", clients, our, their)
			if n > 0 {
				ours, broker, cpu = append(ours, our), append(broker, used["nats"]), append(cpu, used["edge"])
				if nginx != "" {
					theirs, ratios = append(theirs, their), append(ratios, our/their)
				}
			}
		}
		s.row(fmt.Sprint(clients), ours.cell("%.0f"), theirs.cell("%.0f"), ratios.cell("%.2f"), broker.cell("%.2f"), cpu.cell("%.2f"), fmt.Sprintf("%.0f", edge.PeakMB(t)))
		if nginx != "" {
			s.verdict(fmt.Sprintf("warm replay to %d clients, of nginx' rate for the same bytes", clients), ratios.cell("%.2f"), "≥ 0.70", ratios.median() >= wantOfFile)
		}
	}
	s.note("MB are 10^6 bytes on the wire, %d for each client: %d rows. All is on one machine, the readers too. The memory for the cache is that of the default, 64 MiB; the rest is on disk.", size, w.opt.rows)
	return s
}

// saveAnswer saves the body of an answer as it is on the wire, and returns how many bytes came in all.
func saveAnswer(t testing.TB, address, target, file string) int64 {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n, err := download(address, target, f)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// downloads has clients read an answer at the same time, and returns the rate of all together in MB/s.
func downloads(t testing.TB, address, target string, clients int, size int64) float64 {
	t.Helper()
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	begun := time.Now()
	for range clients {
		wg.Go(func() {
			n, err := download(address, target, io.Discard)
			if err == nil && n < size*9/10 {
				err = fmt.Errorf("only %d bytes of about %d came", n, size)
			}
			errs <- err
		})
	}
	wg.Wait()
	took := time.Since(begun)
	for range clients {
		if err := <-errs; err != nil {
			t.Fatalf("GET %s from %s: %v", target, address, err)
		}
	}
	return float64(size) * float64(clients) / 1e6 / took.Seconds()
}

// download reads an answer to the end of the connection, and writes it to w. It returns how many bytes came.
func download(address, target string, w io.Writer) (n int64, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", target); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	for {
		k, err := c.Read(buf)
		if n == 0 && !bytes.HasPrefix(buf[:k], []byte("HTTP/1.1 200")) {
			return 0, fmt.Errorf("the answer begins with %.40q", buf[:k])
		}
		n += int64(k)
		if _, werr := w.Write(buf[:k]); werr != nil {
			return n, werr
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// startNginx serves the files in dir with nginx, and returns its address, or "" if it is not installed.
func startNginx(t testing.TB, dir string) string {
	t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		return ""
	}
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`daemon off; master_process on; worker_processes auto; user root; pid %[1]s/nginx.pid; error_log %[1]s/nginx.log;
events { worker_connections 4096; }
http { access_log off; sendfile on; default_type application/json; server { listen 127.0.0.1:%[2]d; root %[1]s; } }
`, dir, port)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	testenv.Start(t, program, nil, "-c", file)
	testenv.Eventually(t, 20*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return address
}
