package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// listedNames returns the names that GET / shows.
func listedNames(t *testing.T, addr string) []string {
	t.Helper()
	status, _, body := get(t, "http://"+addr+"/")
	var doc struct {
		Relations []struct{ Relation string }
	}
	if err := json.Unmarshal([]byte(body), &doc); status != 200 || err != nil {
		t.Fatalf("GET /: status %d, %v: %s", status, err, body)
	}
	names := make([]string, len(doc.Relations))
	for i, r := range doc.Relations {
		names[i] = r.Relation
	}
	return names
}

// onlyRow asks the edge for the relation with the name, as a segment of a path, and returns the data of its only row.
func onlyRow(t *testing.T, addr, name string) (data string, err error) {
	t.Helper()
	status, _, body := get(t, "http://"+addr+"/"+url.PathEscape(name)+"?follow=0")
	if status != 200 {
		return "", fmt.Errorf("status %d %s", status, body)
	}
	rows := 0
	for line := range strings.Lines(body) {
		m, err := lockstep.Decode([]byte(line))
		if err != nil {
			return "", err
		}
		if m.Row != nil {
			rows, data = rows+1, string(m.Row.Data)
		}
	}
	if rows != 1 {
		return "", fmt.Errorf("%d rows, want 1: %s", rows, body)
	}
	return data, nil
}

// Every name that GET / lists serves exactly one relation, and every relation has one (issue 14, number 6). The streams of
// all pairs of hostile schemas and tables exist at the same time.
func TestHTTPEdge_EveryListedNameServesItsRelation(t *testing.T) {
	needServers(t)
	schemas := []string{"a", "a.b", `"a`, `"a.b"`, ".", "A", "public"}
	tables := []string{"a", "b.t", `b".t`, "a.b", ".", "a/b", "healthz", "_flat"} // in each schema
	inPublic := append([]string{
		"A", "..", "%2E", "%", `"a"`, `."a.b".t`, "public", "public.a", "public.a.b", "a/1", "a/", "readyz", "metrics", "_clients", "_ticket",
		" ", "\n", `\`, "a?since=1", "*", "ü 💡", strings.Repeat("ß", 31),
	}, tables...)
	broker := testenv.NATS(t)
	nc := testenv.NATSConn(t, broker.URL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	metrics := publish.NewMetrics(nil)
	rowOf := func(schema, table string) string {
		text, err := json.Marshal(map[string]string{"schema": schema, "table": table})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	leases, err := publish.NewLeases(js, publish.LeaseOptions{Prefix: "lockstep", Holder: "test"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	old := map[string]string{} // what a name stood for in the versions before
	for _, schema := range schemas {
		if schema == "public" {
			tables = inPublic
		}
		for _, table := range tables {
			p := publish.New(nc, js, publish.Options{Prefix: "lockstep", Schema: schema, Table: table, Leases: leases}, metrics, zerolog.Nop())
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); _ = p.Run(ctx) }()
			if _, err := p.Begin(ctx, capture.Source{System: 7, Timeline: 1, Database: "app", OID: 42}, func() {}); err != nil {
				t.Fatalf("%q.%q: %v", schema, table, err)
			}
			row := rowOf(schema, table)
			line := lockstep.AppendRowTail(append(lockstep.AppendRowHead(nil, 1, 1, false), row...))
			if err := p.Row(ctx, capture.Change{Key: [][]byte{[]byte("k")}, Txid: 1, Xmin: 1, High: 1, Line: line}); err != nil {
				t.Fatal(err)
			}
			if err := p.Heartbeat(ctx, capture.Heartbeat{Snapshot: "2:2:", Since: 2, High: 2}); err != nil {
				t.Fatal(err)
			}
			cancel()
			<-done
			want[row]++
			if name := schema + "." + table; !strings.Contains(schema, ".") {
				old[name] = row
			}
			if schema == "public" && !strings.Contains(table, ".") && !slices.Contains(lockstep.ReservedNames(), table) {
				old[table] = row
			}
		}
	}
	// A copy that somebody made of a stream is no relation: no name would serve it.
	layout := stream.NewLayout("lockstep", "public", "a", false)
	s, err := js.Stream(t.Context(), layout.Stream)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.Name, cfg.Subjects = layout.Stream+"-copy", []string{"lockstep.copy.a.>"}
	cfg.SubjectTransform, cfg.RePublish = nil, nil
	if _, err := js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}

	_, addr := start(t, broker.URL())
	var names []string
	testenv.Eventually(t, long, func() error {
		if names = listedNames(t, addr); len(names) != len(want) {
			return fmt.Errorf("%d names are listed, want %d", len(names), len(want))
		}
		return nil
	})
	for _, name := range names {
		data, err := onlyRow(t, addr, name)
		if err != nil {
			t.Errorf("%q is listed, and asked for: %v", name, err)
			continue
		}
		want[data]--
	}
	for row, n := range want {
		if n != 0 {
			t.Errorf("%s was served %d times, want once", row, 1-n)
		}
	}
	for name, row := range old {
		if data, err := onlyRow(t, addr, name); err != nil || data != row {
			t.Errorf("%q served %s before, and now %s, %v", name, row, data, err)
		}
	}
	t.Logf("%d relations, %d old names", len(want), len(old))
}

// Tables that must not be taken for each other: from Postgres to clients, in /readyz, in metrics, and for bridge tail
// (issue 14, number 6).
func TestBridge_TablesWithConfusingNames(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	tables := []struct{ sql, name, qualified string }{
		{`users`, `users`, `public.users`},
		{`"public.users"`, `public.public.users`, `public.public.users`},
		{`a."b.t"`, `a.b.t`, `a.b.t`},
		{`"a.b".t`, `."a.b".t`, `."a.b".t`},
		{`healthz`, `public.healthz`, `public.healthz`},
		{`readyz`, `public.readyz`, `public.readyz`},
		{`metrics`, `public.metrics`, `public.metrics`},
		{`_flat`, `public._flat`, `public._flat`},
		{`_clients`, `public._clients`, `public._clients`},
		{`_ticket`, `public._ticket`, `public._ticket`},
	}
	run(t, conn, `CREATE SCHEMA a`, `CREATE SCHEMA "a.b"`)
	var list []string
	for i, tab := range tables {
		run(t, conn, fmt.Sprintf("CREATE TABLE %s (id int PRIMARY KEY, txid bigint NOT NULL DEFAULT txid_current())", tab.sql),
			fmt.Sprintf("INSERT INTO %s SELECT %d", tab.sql, i))
		list = append(list, tab.sql)
	}
	b := startBridge(t, db, broker.URL(), strings.Join(list, ","))
	b.awaitReady()
	r, err := b.readyz()
	if err != nil || len(r.Relations) != len(tables) {
		t.Errorf("/readyz of the bridge shows %+v, %v; want %d relations", r.Relations, err, len(tables))
	}
	metrics := b.metrics()
	_, addr := start(t, broker.URL())
	var names []string
	testenv.Eventually(t, long, func() error {
		if names = listedNames(t, addr); len(names) != len(tables) {
			return fmt.Errorf("the edge lists %q", names)
		}
		return nil
	})
	for i, tab := range tables {
		want := fmt.Sprintf(`{"id":%d}`, i)
		if !slices.Contains(names, tab.name) {
			t.Errorf("%s is not listed as %s: %q", tab.sql, tab.name, names)
		}
		if data, err := onlyRow(t, addr, tab.name); err != nil || data != want {
			t.Errorf("GET /%s: %s, %v; want the row of %s, %s", tab.name, data, err, tab.sql, want)
		}
		if _, ok := r.Relations[tab.name]; !ok {
			t.Errorf("/readyz of the bridge does not show %s as %s", tab.sql, tab.name)
		}
		line := fmt.Sprintf("lockstep_bridge_published_rows_total{relation=%q} 1\n", tab.qualified)
		if !strings.Contains(metrics, line) {
			t.Errorf("no %s in\n%s", line, metrics)
		}
		tail := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), []string{"NATS_URL=" + broker.URL()}, "tail", tab.sql)
		testenv.Eventually(t, long, func() error {
			if line, _, _ := strings.Cut(tail.Stdout(), "\n"); !strings.Contains(line, `"data":`+want) {
				return fmt.Errorf("bridge tail %s prints %q%s", tab.sql, line, tail.Stderr())
			}
			return nil
		})
		tail.Kill()
	}
}
