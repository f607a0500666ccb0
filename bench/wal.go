package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// wantWALRatio is the rate that the bridge must reach, as a share of the slower of
	// its two references. wantPeerRatio is the same for the closest peer.
	wantWALRatio  = 0.6
	wantPeerRatio = 10
	// walWarmUp: one row in walWarmUp comes before rates are measured, because the
	// bridge reads some rows while it still waits for its turn to write.
	walWarmUp = 20
)

// walSize is the number of rows in one transaction.
type walSize struct {
	rows int
	// peer is the measured rate of the closest peer in rows a second. judged says
	// that there is a target for it.
	peer   float64
	judged bool
}

func walSizes() []walSize {
	return []walSize{{1, 2700, false}, {100, 3300, true}, {10_000, 3600, true}}
}

func (z walSize) String() string {
	if z.rows == 1 {
		return "1 row a transaction"
	}
	return fmt.Sprintf("%d rows a transaction", z.rows)
}

// The ways to connect to Postgres.
const (
	bySocket = "socket"
	byTCP    = "TCP"
)

// walSQL creates the table. A row has about 170 bytes in Postgres' text form.
const walSQL = `CREATE TABLE w (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text NOT NULL, note text NOT NULL) WITH (autovacuum_enabled = off)`

// fillSQL inserts the rows, in transactions of the given size.
const fillSQL = `
DO $$ BEGIN
	FOR n IN 0..%[1]d - 1 BY %[2]d LOOP
		INSERT INTO w SELECT g, 'customer ' || g, 'customer' || g || '@example.com', (ARRAY['Hamburg', 'São Paulo', 'New York', 'Kraków'])[1 + g %% 4],
		       md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text) || left(md5((g + 3)::text), 16)
		  FROM generate_series(n + 1, least(n + %[2]d, %[1]d)) g;
		COMMIT;
	END LOOP;
END $$`

// walRuns are the measurements for one size of transactions.
type walRuns struct {
	bridge, reader map[string][]phase // by connection
	publisher      []phase
}

// benchWAL is item 6.
func benchWAL(t testing.TB, w *world) section {
	s := section{
		title:  fmt.Sprintf("A backlog of %d inserted rows of 170 bytes in the WAL", w.walRows()),
		header: []string{"", "rows/s", "seconds", "CPU s: the process", "nats-server", "Postgres", "others"},
	}
	dump := filepath.Join(t.TempDir(), "messages")
	defer func() { _ = os.Remove(dump) }()
	for _, size := range walSizes() {
		r := walRuns{bridge: make(map[string][]phase), reader: make(map[string][]phase)}
		for range w.opt.runs {
			w.walRun(t, size, dump, &r)
		}
		if w.opt.profile == "" {
			r.report(&s, size)
		}
	}
	s.note("The rows were written before, after the slots were created. The bridge's time is between two messages, by the broker's clock: the row at 1/%d of all rows, and the last one.", walWarmUp)
	s.note("Bare reader: receives and parses the same rows from its own slot, over the same kind of connection. " +
		"Publisher: sends the bridge's messages from memory, as in item 1. The three take turns.")
	s.note("CPU is that of all rows, and of the bridge's start. Peers' rates were measured elsewhere, on machines of this class: compare only their order of magnitude.")
	return s
}

func (w *world) walRows() int { return w.opt.rows / 5 }

// walRun fills a table, and then lets bridges and references read the WAL.
func (w *world) walRun(t testing.TB, size walSize, dump string, r *walRuns) {
	t.Helper()
	dsn := w.pg.Database()
	defer w.drop(t, dsn)
	testenv.Exec(t, dsn, walSQL)
	sites := []*walSite{{via: bySocket, slot: "bench_socket", dsn: w.viaSocket(t, dsn)}, {via: byTCP, slot: "bench_tcp", dsn: dsn}}
	for _, site := range sites {
		site.broker = testenv.NATSProcess(t)
		defer stopNATS(t, site.broker)
		w.walSlots(t, site)
	}
	testenv.Exec(t, dsn, "SET synchronous_commit = off", fmt.Sprintf(fillSQL, w.walRows(), size.rows))
	last := query[int64](t, dsn, "SELECT txid_current()::int8")
	w.settle(t)
	for _, site := range sites {
		b := w.walByBridge(t, site, uint64(last), dump)
		r.bridge[site.via] = append(r.bridge[site.via], b)
		if w.opt.profile != "" {
			t.Logf("6: %s, %s: bridge %.0f rows/s", size, site.via, b.rate())
			continue
		}
		reader := w.walByReader(t, site)
		r.reader[site.via] = append(r.reader[site.via], reader)
		t.Logf("6: %s, %s: bridge %.0f, bare reader %.0f rows/s", size, site.via, b.rate(), reader.rate())
	}
	if w.opt.profile == "" {
		r.publisher = append(r.publisher, w.publishReference(t, "w", dump)[0])
		t.Logf("6: %s: publisher %.0f rows/s", size, r.publisher[len(r.publisher)-1].rate())
	}
}

// walSite is one way to connect to Postgres, with its own slots and broker.
type walSite struct {
	via, slot, dsn string
	// options are more options of the relation, each with a semicolon before it.
	options string
	broker  *testenv.ExternalNATS
}

func (site *walSite) tables() string { return "w(capture=wal" + site.options + ")" }

func (site *walSite) env() string { return "BRIDGE_NAME=" + site.slot }

// walSlots lets a bridge begin the stream of the empty table. So the bridge's slot
// exists; walSlots creates the bare reader's slot too.
func (w *world) walSlots(t testing.TB, site *walSite) {
	t.Helper()
	nc := testenv.NATSConn(t, site.broker.URL())
	defer nc.Close()
	p := w.startBridge(t, site.dsn, site.broker.URL(), site.tables(), site.env())
	heartbeat(t, nc, "w", 0, time.Minute)
	stop(t, p)
	testenv.Exec(t, site.dsn, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s_bare', 'pgoutput')", site.slot))
}

// walByBridge starts the bridge again, and waits until the stream has all rows.
func (w *world) walByBridge(t testing.TB, site *walSite, last uint64, dump string) phase {
	t.Helper()
	nc := testenv.NATSConn(t, site.broker.URL())
	defer nc.Close()
	m := newMeter(t, map[string]int{"nats": site.broker.PID(), "postgres": w.postmaster})
	p := w.startBridge(t, site.dsn, site.broker.URL(), site.tables(), site.env())
	defer stop(t, p)
	m.pids["bridge"], m.begun["bridge"] = p.PID(), 0
	heartbeat(t, nc, "w", last, patience)
	first, warm, end := storedRow(t, nc, "w", 1), storedRow(t, nc, "w", w.walRows()/walWarmUp), storedRow(t, nc, "w", w.walRows())
	ph := measured(t, m, w.walRows()-w.walRows()/walWarmUp, end.Time.Sub(warm.Time), end.Sequence-warm.Sequence)
	writeDump(t, nc, dump, "w", first.Sequence, false)
	return ph
}

// storedRow returns the last message of a row.
func storedRow(t testing.TB, nc *nats.Conn, table string, id int) *jetstream.RawStreamMsg {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	l := layoutOf(table)
	s, err := js.Stream(t.Context(), l.Stream)
	if err != nil {
		t.Fatal(err)
	}
	subject, _ := l.AppendRowSubject(nil, [][]byte{strconv.AppendInt(nil, int64(id), 10)})
	msg, err := s.GetLastMsgForSubject(t.Context(), string(subject))
	if err != nil {
		t.Fatalf("look up row %d: %v", id, err)
	}
	return msg
}

// walByReader lets the bare reader read the same rows.
func (w *world) walByReader(t testing.TB, site *walSite) phase {
	t.Helper()
	m := newMeter(t, map[string]int{"postgres": w.postmaster})
	ph := runSelf[phase](t, readerCommand, site.dsn, site.slot, strconv.Itoa(w.walRows()))
	cpu := m.seconds(t)
	ph.Postgres, ph.Others = cpu["postgres"], cpu[others]-ph.Publisher
	return ph
}

// report adds the measurements for one size to the section.
func (r *walRuns) report(s *section, size walSize) {
	row := func(name string, runs []phase) float64 {
		number := func(format string, f func(phase) float64) string {
			var out series
			for _, p := range runs {
				out = append(out, f(p))
			}
			if format == "%.0f" {
				return out.cell(format)
			}
			return fmt.Sprintf(format, out.median())
		}
		s.row(fmt.Sprintf("%s: %s", size, name), number("%.0f", phase.rate), number("%.2f", func(p phase) float64 { return p.Seconds }),
			number("%.2f", func(p phase) float64 { return p.Publisher }), number("%.2f", func(p phase) float64 { return p.Broker }),
			number("%.2f", func(p phase) float64 { return p.Postgres }), number("%.2f", func(p phase) float64 { return p.Others }))
		return median(runs)
	}
	publisher := row("publisher", r.publisher)
	for _, via := range []string{bySocket, byTCP} {
		reader, bridge := row(via+", bare reader", r.reader[via]), row(via+", bridge", r.bridge[via])
		r.notes(s, size, via)
		slower := min(reader, publisher)
		s.verdict(fmt.Sprintf("WAL by %s, %s, rows/s of the bridge / of the slower reference", via, size),
			fmt.Sprintf("%.2f (%.0f / %.0f)", bridge/slower, bridge, slower), fmt.Sprintf("≥ %.2f", wantWALRatio), bridge/slower >= wantWALRatio)
		if size.judged {
			s.verdict(fmt.Sprintf("WAL by %s, %s, rows/s of the bridge / of the closest peer", via, size),
				fmt.Sprintf("%.1f (%.0f / %.0f)", bridge/size.peer, bridge, size.peer), fmt.Sprintf("≥ %d", wantPeerRatio), bridge >= wantPeerRatio*size.peer)
		} else {
			s.note("%s, %s: %.1f times the closest peer's %.0f rows/s.", size, via, bridge/size.peer, size.peer)
		}
	}
}

func (r *walRuns) notes(s *section, size walSize, via string) {
	for _, p := range r.bridge[via] {
		if p.Sent > p.Rows+p.Rows/20+100 {
			s.note("**Rows were sent more than once** (%s, %s): %d messages for %d rows.", size, via, p.Sent, p.Rows)
		}
	}
}

// median returns the median of the phases' rates.
func median(runs []phase) float64 {
	var out series
	for _, p := range runs {
		out = append(out, p.rate())
	}
	return out.median()
}
