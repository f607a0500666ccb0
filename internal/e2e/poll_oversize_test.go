package e2e_test

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"bridge/internal/testenv"
	"bridge/lockstep"
)

// A row of 33 MiB stands among ordinary ones, and max_payload is 64 MB. The file store of nats-server takes no record
// above 32 MiB. In both captures only that row is replaced. All others arrive, and so does that row when it is smaller.
// The edge serves rows of 20 MiB, too.
func TestBridge_RowAboveTheFileStoresLimit_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t, testenv.NATSConfig{MaxPayload: 64 << 20})
	newTable(t, db, "polled", 20)
	newBare(t, db, "t", 20)
	conn := connect(t, db)
	for _, table := range []string{"polled", "t"} {
		run(t, conn, fmt.Sprintf("UPDATE %s SET v = repeat('x', 33 << 20) WHERE id = 10", table),
			fmt.Sprintf("UPDATE %s SET v = repeat('x', 20 << 20) WHERE id IN (4, 5, 6, 7)", table))
	}
	b := startWAL(t, db, broker.URL(), "polled,t(capture=wal)")
	js := testenv.JetStream(t, broker.URL())
	last := func(table string, id int) (lockstep.Message, error) {
		s, err := js.Stream(t.Context(), "LOCKSTEP-public-"+table)
		if err != nil {
			return lockstep.Message{}, err
		}
		msg, err := s.GetLastMsgForSubject(t.Context(), fmt.Sprintf("lockstep.public.%s.row.%d", table, id))
		if err != nil {
			return lockstep.Message{}, err
		}
		return lockstep.Decode(msg.Data)
	}
	want := func(table string, id int, mark bool) {
		t.Helper()
		testenv.Eventually(t, long, func() error {
			m, err := last(table, id)
			if err != nil || mark != (m.Control != nil && m.Control.Type == lockstep.Oversize) {
				return fmt.Errorf("row %d of %s: oversize %v, %v; want %v", id, table, m.Control, err, mark)
			}
			return nil
		})
	}
	b.awaitReady()
	_, addr := startEdge(t, testenv.Build(t, "./cmd/httpedge"), broker.URL())
	for _, table := range []string{"polled", "t"} {
		for id := 1; id <= 20; id++ {
			want(table, id, id == 10)
		}
		if n := countDocuments(t, "http://"+addr+"/"+table+"?follow=0"); n < 22 {
			t.Errorf("the edge sent %d documents of %s, want 20 rows, a heartbeat and the end", n, table)
		}
		run(t, conn, fmt.Sprintf("UPDATE %s SET v = 'small' WHERE id = 10", table))
		want(table, 10, false)
	}
	if n := b.metric(`lockstep_bridge_epochs_total{relation="public.polled"}`); n > 1+b.endedBySlowness() {
		t.Errorf("%d epochs, want 1", n)
	}
}

// countDocuments counts the documents of a finite answer.
func countDocuments(t *testing.T, url string) (n int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 64<<20)
	end := ""
	for lines.Scan() {
		n++
		end = lines.Text()
	}
	if err := lines.Err(); err != nil || !strings.Contains(end[:min(len(end), 100)], "heartbeat") {
		t.Errorf("the answer ends after %d documents: %v", n, err)
	}
	return n
}
