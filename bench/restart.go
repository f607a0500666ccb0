package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// restartRows is how many rows the relation has for each of the large tables.
	restartRows = 5
	// rowsPerWriter is how many rows each of its transactions wrote.
	rowsPerWriter = 100
	// writersPerCall is how many of them one call of testenv.Exec may run, which has a
	// minute.
	writersPerCall = 5_000
	wantRestart    = 1.0 // seconds
	// A client with a since in the middle gets this share of the rows.
	wantHalfFrom, wantHalfTo = 0.49, 0.51
)

// benchRestart is item 10.
func benchRestart(t testing.TB, w *world) section {
	rows := restartRows * w.opt.rows
	s := section{
		title:  fmt.Sprintf("Restart: a relation of %d rows, written by %d transactions", rows, rows/rowsPerWriter),
		header: []string{"", "seconds"},
	}
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, "CREATE TABLE items (id bigint PRIMARY KEY, note text)")
	prepare(t, dsn, "items", true)
	writers := rows / rowsPerWriter
	for from := 0; from < writers; from += writersPerCall {
		testenv.Exec(t, dsn, fmt.Sprintf(`DO $$ BEGIN FOR i IN %[1]d..%[2]d LOOP
		INSERT INTO items SELECT g, md5(g::text) FROM generate_series(%[3]d * i + 1, %[3]d * (i + 1)) g; COMMIT; END LOOP; END $$`,
			from, min(from+writersPerCall, writers)-1, rowsPerWriter))
	}
	testenv.Exec(t, dsn, "VACUUM (FREEZE, ANALYZE) items")
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	p := w.startBridge(t, dsn, ns.URL(), "items")
	defer func() { stop(t, p) }()
	begun := time.Now()
	_, seq := heartbeat(t, nc, "items", 0, restartRows*patience)
	s.row("first load", fmt.Sprintf("%.1f", time.Since(begun).Seconds()))

	// after returns how long it takes until the next heartbeat.
	after := func(begun time.Time) float64 {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			stored, at, _, err := awaitLast(t.Context(), nc)
			if err == nil && at > seq {
				seq = at
				return max(0, stored.Sub(begun).Seconds())
			}
			if time.Now().After(deadline) {
				t.Fatalf("no heartbeat after a restart: %v", err)
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	var bridges, brokers, ready series
	for range w.opt.runs {
		stop(t, p)
		_, seq, _, _ = awaitLast(t.Context(), nc)
		begun := time.Now()
		p = w.startBridge(t, dsn, ns.URL(), "items")
		bridges = append(bridges, after(begun))

		// The broker is killed. The bridge runs on, and begins another epoch.
		w.settle(t) // the store, too: the broker then need not read all of it
		_, seq, _, _ = awaitLast(t.Context(), nc)
		ns.Kill()
		begun = time.Now()
		ns.Start()
		testenv.Eventually(t, patience, func() error {
			_, _, _, err := awaitLast(t.Context(), nc)
			return err
		})
		ready = append(ready, time.Since(begun).Seconds())
		brokers = append(brokers, after(time.Now()))
		t.Logf("10: so far bridge %v, broker %v", bridges, brokers)
	}
	s.row("bridge restarted: until its first heartbeat", bridges.cell("%.2f"))
	s.row("broker restarted after a kill: until it answers for the stream", ready.cell("%.2f"))
	s.row("from then until the bridge's next heartbeat", brokers.cell("%.2f"))
	s.verdict(fmt.Sprintf("bridge restarted, %d rows, until its first heartbeat", rows), bridges.cell("%.2f s"), "≤ 1 s", bridges.median() <= wantRestart)
	s.verdict(fmt.Sprintf("broker restarted after a kill, %d rows, from its readiness to a heartbeat", rows), brokers.cell("%.2f s"), "≤ 1 s", brokers.median() <= wantRestart)

	if w.edge == "" {
		s.note("What a client gets that resumes in the middle was not measured: %s.", w.noEdge)
		return s
	}
	middle := query[int64](t, dsn, fmt.Sprintf("SELECT txid FROM items WHERE id = %d", rows/2))
	edge, url := w.startEdge(t, ns.URL())
	defer stop(t, edge)
	got, err := countRows(t.Context(), fmt.Sprintf("%s/items?follow=0&since=%d", url, middle))
	if err != nil {
		t.Fatalf("read from the middle on: %v", err)
	}
	share := float64(got) / float64(rows)
	s.verdict("client with a since in the middle of the loaded range, share of the rows that it gets", fmt.Sprintf("%.2f", share), "0.50", share >= wantHalfFrom && share <= wantHalfTo)
	return s
}

// awaitLast returns the last heartbeat of the items.
func awaitLast(ctx context.Context, nc *nats.Conn) (stored time.Time, seq, since uint64, err error) {
	if !nc.IsConnected() {
		return time.Time{}, 0, 0, nats.ErrDisconnected
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return time.Time{}, 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return lastHeartbeat(ctx, js, layoutOf("items"))
}

// countRows reads a finite stream to its end.
func countRows(ctx context.Context, address string) (rows int, err error) {
	c, err := get(ctx, address)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.conn.Close() }()
	for {
		chunk, err := c.next()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		if isRow(chunk) {
			rows++
		}
	}
}
