//go:build nightly

package e2e_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// The two programs, built with the race detector. They load, follow, reconcile, serve several clients, lose the broker, and stop. A program in which the
// detector finds a race says so, and ends with status 66.
func TestPrograms_RaceDetectorFindsNothing(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newTable(t, db, "polled", 500)
	newBare(t, db, "logged", 500)
	conn := connect(t, db)
	b := newBridge(t, db, broker.URL(), "polled,logged(capture=wal)", "BRIDGE_NAME="+slotOf(db), "BRIDGE_RECONCILE_INTERVAL=1s")
	b.program = testenv.BuildRace(t, "./cmd/bridge")
	b.start()
	edge, addr := startEdge(t, testenv.BuildRace(t, "./cmd/httpedge"), broker.URL(), "HTTPEDGE_CACHE_BYTES=1048576")
	nc := testenv.NATSConn(t, broker.URL())
	polled, logged := follow(t, nc, named("polled")), follow(t, nc, bare("logged"))
	polled.converge(conn)
	logged.converge(conn)

	for _, path := range []string{"/polled", "/logged", "/polled?since=1", "/logged?format=flat"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(long)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: edge\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		for line := ""; !strings.Contains(line, `"heartbeat"`); {
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatalf("GET %s: %v", path, err)
			}
		}
	}
	change := func(text string) {
		for _, table := range []string{"polled", "logged"} {
			run(t, conn, fmt.Sprintf("UPDATE %s SET v = '%s' WHERE id <= 300", table, text), fmt.Sprintf("INSERT INTO %s (id) SELECT max(id) + 1 FROM %[1]s", table))
		}
		polled.converge(conn)
		logged.converge(conn)
	}
	change("first")
	broker.Kill()
	broker.Start()
	change("second")

	for name, p := range map[string]*testenv.Process{"bridge": b.Process, "httpedge": edge} {
		p.Signal(syscall.SIGTERM)
		status, err := p.Wait(long)
		if err != nil || status != 0 || strings.Contains(p.Stderr(), "DATA RACE") {
			t.Errorf("%s: exit status %d, %v\n%s", name, status, err, p.Stderr())
		}
	}
}
