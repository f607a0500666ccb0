//go:build nightly

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// 10,000 clients follow a relation, and 9,000 of them never read. The others get every change. Those that take nothing are
// cut, and the edge's memory stays bounded (I9, I10). The test does not run in parallel, because others would starve.
func TestEdge_TenThousandClients_I10(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	const (
		clients, stalled = 10_000, 9_000
		most             = 400.0 // MB
		patience         = 5 * time.Minute
	)
	db, broker := testenv.Postgres(t), testenv.NATS(t).URL()
	newTable(t, db, "t", 10)
	conn := connect(t, db)
	startBridge(t, db, broker, "t").awaitReady()
	edge, addr := startEdge(t, testenv.BuildShipped(t, "./cmd/httpedge"), broker, "HTTPEDGE_WRITE_TIMEOUT=20s")

	conns, errs := make([]net.Conn, clients), make([]error, clients)
	var wg sync.WaitGroup
	next := make(chan int)
	for range 64 {
		wg.Go(func() {
			for i := range next {
				conns[i], errs[i] = followFrom(addr, i, i < stalled)
			}
		})
	}
	for i := range clients {
		next <- i
	}
	close(next)
	wg.Wait()
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("not all clients came: %.300v", err)
	}
	shown := func(metric string) error {
		if _, _, body := get(t, "http://"+addr+"/metrics"); !strings.Contains(body, "\n"+metric+"\n") {
			return fmt.Errorf("/metrics does not show %s", metric)
		}
		return nil
	}
	testenv.Eventually(t, patience, func() error { return shown(fmt.Sprint("lockstep_edge_clients ", clients)) })

	const end = "the last of all changes"
	for i := range clients - stalled {
		wg.Go(func() { errs[i] = readTo(conns[stalled+i], end) })
	}
	for range 50 { // a megabyte for each client
		run(t, conn, "UPDATE t SET v = repeat(md5(random()::text), 64)")
	}
	run(t, conn, "UPDATE t SET v = '"+end+"' WHERE id = 1")
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("a client that reads did not get all: %.300v", err)
	}
	testenv.Eventually(t, patience, func() error {
		return errors.Join(shown(fmt.Sprintf(`lockstep_edge_streams_ended_total{reason="slow"} %d`, stalled)), shown(fmt.Sprint("lockstep_edge_clients ", clients-stalled)))
	})
	if peak := edge.PeakMB(t); peak >= most {
		t.Errorf("the edge's memory grew to %.0f MB, want less than %.0f", peak, most)
	}
	if status, _, body := get(t, "http://"+addr+"/t?follow=0"); status != http.StatusOK || !strings.Contains(body, end) {
		t.Errorf("a client that comes then: status %d", status)
	}
}

// followFrom asks for the stream, from an address of the client's own network. A client that will not read has room for
// little.
func followFrom(addr string, n int, small bool) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+n/100), 1)}, Timeout: time.Minute}
	if small {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var set error
			if err := c.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) }); err != nil {
				return err
			}
			return set
		}
	}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c, "GET /t HTTP/1.1\r\nHost: x\r\n\r\n")
	return c, err
}

// readTo reads until the text came.
func readTo(c net.Conn, text string) error {
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Minute))
	buf, had := make([]byte, 32<<10), 0
	for {
		n, err := c.Read(buf[had:])
		if err != nil {
			return err
		}
		if bytes.Contains(buf[:had+n], []byte(text)) {
			return nil
		}
		had = copy(buf, buf[max(0, had+n-len(text)):had+n])
	}
}
