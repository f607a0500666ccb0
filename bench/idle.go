package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

const (
	idleRelations = 20
	idleSeconds   = 30
	wantIdle      = 10.0 // per cent of a core
)

// benchIdle is item 5.
func benchIdle(t testing.TB, w *world) section {
	length := time.Duration(w.seconds(idleSeconds)) * time.Second
	s := section{
		title:  fmt.Sprintf("Idle: %d quiet relations for %s, with the default settings", idleRelations, length),
		header: []string{"", "CPU, % of one core"},
	}
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	var names []string
	for n := range idleRelations {
		name := fmt.Sprintf("quiet%02d", n)
		names = append(names, name)
		testenv.Exec(t, dsn, fmt.Sprintf("CREATE TABLE %s AS SELECT g AS id, 'row ' || g AS note FROM generate_series(1::bigint, 1000) g", name),
			fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (id)", name))
		prepare(t, dsn, name, true)
	}
	testenv.Exec(t, dsn, "VACUUM ANALYZE")
	w.settle(t)
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	p := w.startBridge(t, dsn, ns.URL(), strings.Join(names, ","))
	defer stop(t, p)
	for _, name := range names {
		heartbeat(t, nc, name, 0, time.Minute)
	}
	<-time.After(5 * time.Second) // by then the pollers have slowed down to their interval
	m := newMeter(t, map[string]int{"bridge": p.PID(), "postgres": w.postmaster, "nats-server": ns.PID()})
	used := make(map[string]series)
	for range w.opt.runs {
		m.reset(t)
		<-time.After(length)
		for name, cpu := range m.seconds(t) {
			used[name] = append(used[name], 100*cpu/time.Since(m.since).Seconds())
		}
		t.Logf("5: so far %v", used)
	}
	for _, name := range []string{"bridge", "postgres", "nats-server", others} {
		s.row(name, used[name].cell("%.1f"))
		if name == "bridge" || name == "postgres" {
			s.verdict(fmt.Sprintf("%d quiet relations, CPU of %s", idleRelations, name), used[name].cell("%.1f %%"),
				fmt.Sprintf("< %.0f %% of one core", wantIdle), used[name].median() < wantIdle)
		}
	}
	return s
}
