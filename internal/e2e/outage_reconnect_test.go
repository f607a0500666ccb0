package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// The broker is killed and started again while rows change, three times. Each relation says once that the connection was
// lost, and its next try works. No line of bridge or edge tells of a full buffer, or of a request that took too long:
// that is how the loss looks from inside.
func TestBridge_ReconnectsWithoutASecondTry_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newTable(t, db, "polled", 2000)
	newBare(t, db, "t", 2000)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "polled,t(capture=wal)")
	e, addr := startEdge(t, testenv.Build(t, "./cmd/httpedge"), broker.URL(), "LOG_LEVEL=info")
	b.awaitReady()
	defer ask(t, addr)()
	const kills = 3
	stop := writeOn(t, db, 2000)
	for i := range kills {
		n := strings.Count(b.Stderr(), "epoch begun")
		for j := range 20 {
			run(t, conn, fmt.Sprintf("UPDATE polled SET v = 'kill %d, %d' WHERE id %% 20 = %d", i, j, j))
		}
		broker.Kill()
		broker.Start()
		testenv.Eventually(t, long, func() error {
			if got := strings.Count(b.Stderr(), "epoch begun"); got < n+2 {
				return fmt.Errorf("%d epochs begun, want %d", got, n+2)
			}
			return nil
		})
		b.awaitReady()
	}
	stop()
	for _, rel := range []table{named("polled"), bare("t")} {
		followAll(t, broker.URL(), rel).converge(conn)
	}
	tries := 0
	for _, line := range strings.Split(b.Stderr()+e.Stderr(), "\n") {
		var l struct{ Level, Message, Err string }
		if json.Unmarshal([]byte(line), &l) != nil || l.Level != "warn" && l.Level != "error" {
			continue
		}
		t.Log(line)
		for _, wrong := range []string{"buffer", "deadline", "timeout"} {
			if strings.Contains(l.Err, wrong) {
				t.Errorf("misleading: %s", line)
			}
		}
		if strings.Contains(l.Message, "trying again") {
			tries++
		}
	}
	if want := 2 * kills; tries > want {
		t.Errorf("%d lines say that something is tried again, want at most %d: one for each relation and kill", tries, want)
	}
}

// The broker is killed and started again while no row changes. Each relation begins another epoch long before its next
// heartbeat is due.
func TestBridge_IdleRelationsMeetALostEpoch_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newTable(t, db, "polled", 10)
	newBare(t, db, "t", 10)
	b := startWAL(t, db, broker.URL(), "polled,t(capture=wal)", "BRIDGE_HEARTBEAT_INTERVAL=1m")
	b.awaitReady()
	for _, rel := range []table{bare("t"), named("polled")} { // the first heartbeats come in quick succession
		follow(t, testenv.NATSConn(t, broker.URL()), rel).settled()
	}
	epochs := func(rel string) int {
		return strings.Count(b.Stderr(), `"stream":"LOCKSTEP-public-`+rel+`","epoch":`)
	}
	polled, read := epochs("polled"), epochs("t")
	broker.Kill()
	broker.Start()
	begun := time.Now()
	testenv.Eventually(t, 40*time.Second, func() error {
		if epochs("polled") == polled || epochs("t") == read {
			return fmt.Errorf("epochs: %d and %d, want more than %d and %d", epochs("polled"), epochs("t"), polled, read)
		}
		return nil
	})
	t.Logf("the relations went on after %s", time.Since(begun))
	b.awaitReady()
}

// ask sends requests to an edge, one after the other, until stop is called.
func ask(t *testing.T, addr string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for _, path := range []string{"/", "/polled?follow=0", "/t?follow=0", "/readyz"} {
				step, end := context.WithTimeout(ctx, time.Second)
				req, err := http.NewRequestWithContext(step, http.MethodGet, "http://"+addr+path, nil)
				if err != nil {
					t.Error(err)
				} else if resp, err := http.DefaultClient.Do(req); err == nil {
					_ = resp.Body.Close()
				}
				end()
			}
		}
	}()
	return func() { cancel(); <-done }
}
