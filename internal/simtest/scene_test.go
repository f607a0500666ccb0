package simtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"bridge/internal/simtest"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// heals bounds every wait.
const heals = time.Minute

// scene is a small world with one client that follows the accounts, for a schedule written by hand.
type scene struct {
	*simtest.World
	t       *testing.T
	writers *simtest.Writers
	client  *simtest.Client
}

// newScene starts everything. The client does not cut its own connection.
func newScene(t *testing.T, bridges int, postgres ...string) *scene {
	t.Helper()
	return newSceneOf(t, simtest.Poll, bridges, postgres...)
}

func newSceneOf(t *testing.T, capture simtest.Capture, bridges int, postgres ...string) *scene {
	t.Helper()
	tables := simtest.Accounts
	if capture == simtest.WAL {
		tables += "(capture=wal)"
	}
	return newSceneWith(t, capture, tables, bridges, postgres...)
}

// newSceneWith starts a scene whose bridges capture the given tables, including the accounts.
func newSceneWith(t *testing.T, capture simtest.Capture, tables string, bridges int, postgres ...string) *scene {
	t.Helper()
	needServers(t)
	t.Parallel()
	w := simtest.NewWorld(t, simtest.WorldOptions{Bridges: bridges, Edges: 1, Tables: tables, Postgres: append(postgres, "log_min_messages=fatal")})
	s := &scene{World: w, t: t, writers: simtest.NewWriters(w.URL, 2, 20*time.Millisecond, 7, w.Elapsed)}
	s.writers.Capture = capture
	if err := s.writers.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.StartAll()
	s.client = simtest.NewClient("c", simtest.Accounts, func() []string { return w.Addrs }, w.Elapsed, 7)
	s.client.Calm(true)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.client.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	s.beatSince(time.Now().Add(-time.Second))
	return s
}

// beatSince waits for a heartbeat from after a time, and returns it.
func (s *scene) beatSince(at time.Time) simtest.Event {
	s.t.Helper()
	return s.await("a heartbeat", func(e simtest.Event) bool {
		return e.Kind == simtest.HeartbeatSeen && e.Timestamp > at.Unix()
	})
}

// await waits until the client has seen an event, and returns it.
func (s *scene) await(what string, is func(simtest.Event) bool) simtest.Event {
	s.t.Helper()
	var found simtest.Event
	testenv.Eventually(s.t, heals, func() error {
		if err := s.Died(); err != nil {
			return err
		}
		events := s.client.Log.Events()
		for i := len(events) - 1; i >= 0; i-- {
			if is(events[i]) {
				found = events[i]
				return nil
			}
		}
		return fmt.Errorf("the client has not seen %s", what)
	})
	return found
}

// row waits for a version of an account.
func (s *scene) row(op int64) simtest.Event {
	s.t.Helper()
	return s.await(fmt.Sprintf("a row of statement %d", op), func(e simtest.Event) bool { return e.Kind == simtest.RowSeen && e.Op == op })
}

// write runs the random writers until the returned function is called.
func (s *scene) write() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.writers.Run(ctx) })
	stop = func() {
		cancel()
		wg.Wait()
	}
	s.t.Cleanup(stop)
	return stop
}

// transfer moves money between two accounts, in conn's current transaction. It returns the statement's number.
func (s *scene) transfer(conn *pgx.Conn, from, to int) int64 {
	s.t.Helper()
	op := s.writers.Op()
	s.exec(conn, "UPDATE accounts SET balance = balance + CASE id WHEN $1 THEN -7 ELSE 7 END, op = $3 WHERE id IN ($1, $2)", from, to, op)
	return op
}

func (s *scene) exec(conn *pgx.Conn, sql string, args ...any) {
	s.t.Helper()
	if _, err := conn.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *scene) txid(conn *pgx.Conn) uint64 {
	s.t.Helper()
	var txid uint64
	if err := conn.QueryRow(s.t.Context(), "SELECT txid_current()").Scan(&txid); err != nil {
		s.t.Fatal(err)
	}
	return txid
}

// judge waits until the client holds what Postgres holds, resumes from this number of tokens, and checks everything
// that clients saw.
func (s *scene) judge(tokens int) {
	s.t.Helper()
	ctx := s.t.Context()
	truth, err := s.writers.Truth(ctx, simtest.Accounts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Tell(truth)
	testenv.Eventually(s.t, heals, func() error {
		if diff := simtest.Differences(truth.Final, s.client.Log.State()); len(diff) > 0 {
			return fmt.Errorf("I1: %d differences, the first: %s", len(diff), diff[0])
		}
		return nil
	})
	logs := []*simtest.Log{s.client.Log}
	n := len(s.client.Log.Events())
	for i := 0; i < n; i += 1 + n/tokens {
		token, ok := s.client.Log.Token(i)
		if !ok {
			continue
		}
		c := simtest.NewClient(fmt.Sprintf("token %d", i), simtest.Accounts, nil, s.Elapsed, 7)
		c.Adopt(token)
		testenv.Eventually(s.t, heals, func() error {
			err := c.Fetch(ctx, s.Addrs[0])
			var refused *simtest.RefusedError
			if errors.As(err, &refused) || errors.Is(err, simtest.ErrCut) {
				return err // after 409 or 410 the client asks for everything
			}
			return nil
		})
		logs = append(logs, c.Log)
	}
	for _, l := range logs {
		truth.Observe(l)
	}
	shown := 0
	for _, l := range logs {
		_, found := simtest.Check(truth, l)
		for _, v := range append(found, simtest.CheckFinal(truth, l)...) {
			if shown++; shown <= 5 {
				s.t.Error(v)
			}
		}
	}
	s.t.Logf("%d tokens resumed", len(logs)-1)
}
