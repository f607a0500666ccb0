package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
)

const (
	manyRelations = 500
	manyStart     = 8.0 // seconds until each relation has its first heartbeat
	wantManyIdle  = 15.0
	wantManyBusy  = 30.0
	manyCommits   = 100
	// While others write, they write to this many tables, this many transactions a
	// second in all.
	busyTables, busyRate = 10, 500
)

// benchMany is item 9.
func benchMany(t testing.TB, w *world) section {
	length := time.Duration(w.seconds(idleSeconds)) * time.Second
	s := section{
		title: fmt.Sprintf("Many: %d quiet relations for %s, with the default settings", manyRelations, length),
		header: []string{
			"", "start, s", "epochs lost", "bridge, % of a core", "Postgres, % of a core", "nats-server, % of a core",
			"commit → stream p50, ms", "p99, ms",
		},
	}
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	var names []string
	for n := range manyRelations {
		names = append(names, fmt.Sprintf("quiet%03d", n))
	}
	var statements []string
	for _, name := range names {
		statements = append(statements, fmt.Sprintf("CREATE TABLE %s (id bigint PRIMARY KEY, note text)", name),
			fmt.Sprintf("INSERT INTO %s SELECT g, 'row ' || g FROM generate_series(1, 100) g", name))
	}
	for n := range busyTables {
		statements = append(statements, fmt.Sprintf("CREATE TABLE busy%d (id bigint PRIMARY KEY, note text)", n))
	}
	testenv.Exec(t, dsn, statements...)
	for _, name := range names {
		prepare(t, dsn, name, true)
	}
	testenv.Exec(t, dsn, "VACUUM ANALYZE")
	w.settle(t)
	idle, busy := new(manyRun), new(manyRun)
	for range w.opt.runs {
		w.many(t, dsn, names, length, idle, busy)
		t.Logf("9: idle %+v, busy %+v", *idle, *busy)
	}
	row := func(name string, r *manyRun, want float64) {
		start, lost := r.start.cell("%.1f"), r.lost.cell("%.0f")
		if len(r.start) == 0 {
			start, lost = "", ""
		}
		s.row(name, start, lost, r.bridge.cell("%.1f"), r.postgres.cell("%.1f"), r.nats.cell("%.1f"), r.p50.cell("%.1f"), r.p99.cell("%.1f"))
		target := fmt.Sprintf("≤ %.0f %% of one core", want)
		for what, used := range map[string]series{"bridge": r.bridge, "Postgres": r.postgres} {
			s.verdict(fmt.Sprintf("%d quiet relations, %s: CPU of %s", manyRelations, name, what), used.cell("%.1f %%"), target, used.median() <= want)
		}
	}
	s.verdict(fmt.Sprintf("%d quiet relations: start", manyRelations), idle.start.cell("%.1f s"), fmt.Sprintf("≤ %.0f s", manyStart), idle.start.median() <= manyStart)
	s.verdict(fmt.Sprintf("%d quiet relations: epochs lost at start", manyRelations), idle.lost.cell("%.0f"), "0", idle.lost.median() == 0)
	row("idle server", idle, wantManyIdle)
	row(fmt.Sprintf("%d other tables get %d transactions/s", busyTables, busyRate), busy, wantManyBusy)
	s.note("Postgres: on the idle server all of it; while others write, the connections of the bridge.")
	s.note("commit → stream: %d transactions, each with a row of one of the quiet relations, from the moment COMMIT returned until a NATS subscriber has the row.", manyCommits)
	return s
}

// manyRun has one number from each run.
type manyRun struct{ start, lost, bridge, postgres, nats, p50, p99 series }

// many starts a bridge, and measures first on the idle server, then while others
// write.
func (w *world) many(t testing.TB, dsn string, names []string, length time.Duration, idle, busy *manyRun) {
	t.Helper()
	ns := testenv.NATSProcess(t)
	defer stopNATS(t, ns)
	nc := testenv.NATSConn(t, ns.URL())
	defer nc.Close()
	heartbeats, err := nc.SubscribeSync("lockstep.*.*.heartbeat")
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	p := w.startBridge(t, dsn, ns.URL(), strings.Join(names, ","))
	defer stop(t, p)
	for seen := map[string]bool{}; len(seen) < len(names); {
		msg, err := heartbeats.NextMsg(2 * time.Minute)
		if err != nil {
			t.Fatalf("%d of %d relations have a heartbeat: %v", len(seen), len(names), err)
		}
		seen[msg.Subject] = true
	}
	idle.start = append(idle.start, time.Since(begun).Seconds())
	_ = heartbeats.Unsubscribe()
	<-time.After(5 * time.Second) // by then the pollers have slowed down to their interval
	epochs := func() int { return strings.Count(p.Stderr(), "epoch begun") }
	idle.lost = append(idle.lost, float64(epochs()-len(names)))

	m := newMeter(t, map[string]int{"bridge": p.PID(), "postgres": w.postmaster, "nats-server": ns.PID()})
	<-time.After(length)
	used, percent := m.seconds(t), 100/time.Since(m.since).Seconds()
	idle.bridge, idle.nats = append(idle.bridge, percent*used["bridge"]), append(idle.nats, percent*used["nats-server"])
	idle.postgres = append(idle.postgres, percent*used["postgres"])
	latencies(t, nc, dsn, names, idle)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { w.writeOthers(ctx, t, dsn) })
	<-time.After(2 * time.Second)
	before := w.bridgeBackends(t, dsn)
	m.reset(t)
	<-time.After(length)
	used, percent = m.seconds(t), 100/time.Since(m.since).Seconds()
	busy.bridge, busy.nats = append(busy.bridge, percent*used["bridge"]), append(busy.nats, percent*used["nats-server"])
	busy.postgres = append(busy.postgres, percent*(w.bridgeBackends(t, dsn)-before).Seconds())
	latencies(t, nc, dsn, names, busy)
	if n := epochs() - len(names); n > int(idle.lost[len(idle.lost)-1]) {
		t.Logf("9: %d epochs were lost in all", n)
	}
}

// bridgeBackends returns the CPU time of the bridge's connections.
func (w *world) bridgeBackends(t testing.TB, dsn string) time.Duration {
	t.Helper()
	pids := query[[]int32](t, dsn, "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = 'lockstep bridge'")
	var total time.Duration
	for _, pid := range pids {
		st, err := readStat(int(pid))
		if err != nil {
			t.Fatal(err)
		}
		total += st.own
	}
	return total
}

// writeOthers writes to the busy tables, which no bridge captures, until ctx ends.
func (w *world) writeOthers(ctx context.Context, t testing.TB, dsn string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for writer := range liveWriters {
		wg.Go(func() {
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("connect: %v", err)
				}
				return
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			tick := time.NewTicker(time.Second * liveWriters / busyRate)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				id := time.Now().UnixNano()*liveWriters + int64(writer)
				if _, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO busy%d VALUES ($1, 'note')", n%busyTables), id); err != nil && ctx.Err() == nil {
					t.Errorf("write to others: %v", err)
					return
				}
			}
		})
	}
}

// latencies updates rows of quiet relations, one after the other.
func latencies(t testing.TB, nc *nats.Conn, dsn string, names []string, r *manyRun) {
	t.Helper()
	conn := testenv.Conn(t, dsn)
	defer conn.Close(t.Context())
	var all []float64
	for n := range manyCommits {
		name := names[n*37%len(names)]
		sub, err := nc.SubscribeSync(fmt.Sprintf("lockstep.public.%s.row.>", name))
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("UPDATE %s SET note = note || '+' WHERE id = 1", name)); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		if _, err := sub.NextMsg(10 * time.Second); err != nil {
			t.Fatalf("row of %s: %v", name, err)
		}
		all = append(all, time.Since(committed).Seconds()*1000)
		_ = sub.Unsubscribe()
	}
	r.p50, r.p99 = append(r.p50, percentile(all, 0.5)), append(r.p99, percentile(all, 0.99))
}
