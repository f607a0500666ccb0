package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
)

const (
	edgeLiveSeconds = 10
	// burstClients get burstRows that come at once.
	burstClients, burstRows = 1000, 2000
	// wantOfLoop is how much longer than with the bare loop a row may take, wantOfBurst what part of its deliveries a
	// second the edge shall reach, and wantConnect how much longer it may take to connect.
	wantOfLoop, wantOfBurst, wantConnect = 1.2, 0.9, 2.0
)

// edgeLiveLoads are how many clients there are, and how many rows a second come.
var edgeLiveLoads = []struct{ clients, rate int }{{1000, 100}, {10_000, 5}}

// loopCommand makes this program the bare loop of item 15: it reads the copies of one relation from core NATS, and writes
// each as one chunk to every connection, one after the other. It does nothing else: no position, no block, no deadline. Its
// arguments are the NATS_URL and the subject.
const loopCommand = "live-loop"

func runLoop(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: live-loop NATS_URL SUBJECT")
	}
	nc, err := connect(args[0])
	if err != nil {
		return err
	}
	defer nc.Close()
	var mu sync.Mutex
	var conns []net.Conn
	if _, err := nc.Subscribe(args[1], func(m *nats.Msg) {
		chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(m.Data), m.Data)
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_, _ = c.Write(chunk)
		}
	}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, listening+l.Addr().String())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			// The request is in one segment. The answer begins as if with a heartbeat.
			if _, err := c.Read(make([]byte, 4096)); err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n\"type\":\"heartbeat\"\n"))
			conns = append(conns, c)
		}()
	}
}

// listening begins the line in which the loop says where it listens.
const listening = "listening on "

func (w *world) startLoop(t testing.TB, broker, subject string) (p *testenv.Process, address string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p = testenv.Start(t, self, nil, loopCommand, broker, subject)
	testenv.Eventually(t, 20*time.Second, func() error {
		_, rest, ok := strings.Cut(p.Stderr(), listening)
		address, _, _ = strings.Cut(rest, "\n")
		if !ok || address == "" {
			return errors.New("the loop does not listen")
		}
		return nil
	})
	return p, address
}

// ticks is a relation whose rows have the time at which they were sent.
type ticks struct {
	dsn, broker string
	next        int
	close       func()
}

func (w *world) ticks(t testing.TB) *ticks {
	t.Helper()
	k := &ticks{dsn: w.pg.Database()}
	testenv.Exec(t, k.dsn, "CREATE TABLE ticks (id bigint PRIMARY KEY, sent bigint NOT NULL, note text NOT NULL)")
	prepare(t, k.dsn, "ticks", true)
	ns := testenv.NATSProcess(t)
	k.broker = ns.URL()
	nc := testenv.NATSConn(t, ns.URL())
	bridge := w.startBridge(t, k.dsn, ns.URL(), "ticks")
	heartbeat(t, nc, "ticks", 0, patience)
	k.close = func() {
		nc.Close()
		stop(t, bridge)
		stopNATS(t, ns)
		w.drop(t, k.dsn)
	}
	return k
}

// write writes rows at the rate for so many seconds.
func (k *ticks) write(t testing.TB, rate, seconds int) {
	t.Helper()
	conn := testenv.Conn(t, k.dsn)
	defer conn.Close(context.Background())
	pace := time.NewTicker(time.Second / time.Duration(rate))
	defer pace.Stop()
	for range rate * seconds {
		<-pace.C
		k.next++
		if _, err := conn.Exec(t.Context(), "INSERT INTO ticks VALUES ($1, $2, repeat('x', 100))", k.next, time.Now().UnixNano()); err != nil {
			t.Fatal(err)
		}
	}
}

// burst writes rows in one transaction.
func (k *ticks) burst(t testing.TB, rows int) {
	t.Helper()
	testenv.Exec(t, k.dsn, fmt.Sprintf("INSERT INTO ticks SELECT g, 0, repeat('x', 100) FROM generate_series(%d, %d) g", k.next+1, k.next+rows))
	k.next += rows
}

// audience are live clients that read.
type audience struct {
	clients []*followed
	// connected is how long it took until each was live.
	connected time.Duration
	rows      atomic.Int64
	reading   sync.WaitGroup
	// latencies has those of each client, in milliseconds. It is read after leave.
	latencies [][]float64
}

// gather connects clients. They read, but for the first stalled ones.
func gather(t testing.TB, address, target string, clients, stalled int) *audience {
	t.Helper()
	a := &audience{clients: make([]*followed, clients), latencies: make([][]float64, clients)}
	errs := make([]error, clients)
	begun := time.Now()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 64 {
		wg.Go(func() {
			for i := range next {
				c, err := follow(address, target, i)
				if err == nil {
					_, err = c.untilLive()
				}
				a.clients[i], errs[i] = c, err
			}
		})
	}
	for i := range clients {
		next <- i
	}
	close(next)
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		t.Fatalf("client %d: %v", i, errs[i])
	}
	a.connected = time.Since(begun)
	for i, c := range a.clients[stalled:] {
		a.reading.Go(func() { a.latencies[stalled+i] = a.read(c) })
	}
	return a
}

var sentField = []byte(`"sent":`)

// read reads rows until the connection is closed, and returns how many milliseconds each was under way.
func (a *audience) read(c *followed) (latencies []float64) {
	had := 0
	for {
		n, err := c.Read(c.buf[had:])
		if err != nil {
			return latencies
		}
		now := time.Now().UnixNano()
		rest := c.buf[:had+n]
		for {
			i := bytes.Index(rest, sentField)
			if i < 0 {
				break
			}
			end := bytes.IndexByte(rest[i:], ',')
			if end < 0 {
				rest = rest[i:]
				break
			}
			sent, err := strconv.ParseInt(string(rest[i+len(sentField):i+end]), 10, 64)
			if err == nil && sent > 0 {
				latencies = append(latencies, float64(now-sent)/1e6)
			}
			a.rows.Add(1)
			rest = rest[i+end:]
		}
		if !bytes.HasPrefix(rest, sentField) { // else the number's end is missing
			rest = rest[max(0, len(rest)-len(sentField)+1):]
		}
		had = copy(c.buf, rest)
	}
}

// await waits until so many rows came in all.
func (a *audience) await(t testing.TB, rows int64) {
	t.Helper()
	testenv.Eventually(t, patience, func() error {
		if got := a.rows.Load(); got < rows {
			return fmt.Errorf("%d of %d rows came", got, rows)
		}
		return nil
	})
}

// leave closes all connections, and returns all latencies.
func (a *audience) leave() (all []float64) {
	for _, c := range a.clients {
		_ = c.Close()
	}
	a.reading.Wait()
	for _, l := range a.latencies {
		all = append(all, l...)
	}
	return all
}

// benchEdgeLive is item 15.
func benchEdgeLive(t testing.TB, w *world) section {
	s := section{title: "Live clients of an edge, beside a bare loop that writes the same bytes to as many connections"}
	if w.edge == "" {
		s.note("Not measured: %s.", w.noEdge)
		return s
	}
	s.header = []string{"", "p50 ms", "p99 ms", "s to connect", "deliveries/s of a burst"}
	k := w.ticks(t)
	defer k.close()
	type side struct{ p50, p99, connect, burst series }
	for _, load := range edgeLiveLoads {
		var sides [2]side // the edge's, the loop's
		for range w.opt.runs {
			for i := range sides {
				p, address, target := w.startSide(t, k, i == 1)
				a := gather(t, address, target, load.clients, 0)
				seconds := w.seconds(edgeLiveSeconds)
				before := a.rows.Load()
				k.write(t, load.rate, seconds)
				a.await(t, before+int64(load.clients*load.rate*seconds))
				sides[i].connect = append(sides[i].connect, a.connected.Seconds())
				if load.clients == burstClients {
					before, begun := a.rows.Load(), time.Now()
					k.burst(t, burstRows)
					a.await(t, before+burstClients*burstRows)
					sides[i].burst = append(sides[i].burst, burstClients*burstRows/time.Since(begun).Seconds())
				}
				latencies := a.leave()
				sides[i].p50, sides[i].p99 = append(sides[i].p50, percentile(latencies, 0.5)), append(sides[i].p99, percentile(latencies, 0.99))
				t.Logf("15: %d clients, %s: p50 %.1f ms, p99 %.1f ms, %s to connect", load.clients, sideNames[i], percentile(latencies, 0.5), percentile(latencies, 0.99), a.connected)
				stop(t, p)
			}
		}
		name := fmt.Sprintf("%d clients, %d rows/s", load.clients, load.rate)
		for i, sd := range sides {
			s.row(name+", "+sideNames[i], sd.p50.cell("%.1f"), sd.p99.cell("%.1f"), sd.connect.cell("%.2f"), sd.burst.cell("%.0f"))
		}
		edge, loop := sides[0], sides[1]
		for what, r := range map[string]float64{"p50": edge.p50.median() / loop.p50.median(), "p99": edge.p99.median() / loop.p99.median()} {
			s.verdict(name+", "+what+", of that of the bare loop", fmt.Sprintf("%.2f", r), "≤ 1.20", r <= wantOfLoop)
		}
		r := edge.connect.median() / loop.connect.median()
		s.verdict(fmt.Sprintf("%d clients, time to connect, of that of the bare loop", load.clients), fmt.Sprintf("%.2f", r), "≤ 2.00", r <= wantConnect)
		if len(edge.burst) > 0 {
			r := edge.burst.median() / loop.burst.median()
			s.verdict(fmt.Sprintf("%d rows at once to %d clients, deliveries a second, of those of the bare loop", burstRows, burstClients), fmt.Sprintf("%.2f", r), "≥ 0.90", r >= wantOfBurst)
		}
	}
	s.note("From before the INSERT until a client has the row: through Postgres, the bridge (woken by NOTIFY), the broker, and the edge or the loop. The two take turns. The clients run beside them on the same cores.")
	return s
}

var sideNames = [2]string{"edge", "bare loop"}

// startSide starts an edge, or the bare loop.
func (w *world) startSide(t testing.TB, k *ticks, loop bool) (p *testenv.Process, address, target string) {
	t.Helper()
	if loop {
		p, address = w.startLoop(t, k.broker, layoutOf("ticks").Rows())
		return p, address, "/"
	}
	p, url := w.startEdge(t, k.broker)
	return p, strings.TrimPrefix(url, "http://"), fmt.Sprintf("/ticks?since=%d", k.now(t))
}

// now returns a position that only new rows are behind.
func (k *ticks) now(t testing.TB) (txid uint64) {
	t.Helper()
	conn := testenv.Conn(t, k.dsn)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "SELECT coalesce(max(txid), 0) FROM ticks").Scan(&txid); err != nil {
		t.Fatal(err)
	}
	return txid
}

const (
	stalledReaders = 20
	// stalledAmong of audienceOfStalled live clients have stopped reading.
	stalledAmong, audienceOfStalled = 900, 1000
	// wantWarmMS and wantColdMS are until when a client has its first row.
	wantWarmMS, wantColdMS = 5.0, 250.0
)

// benchStalled is item 16.
func benchStalled(t testing.TB, w *world) section {
	s := section{title: "Clients that stopped reading, and what others notice"}
	if w.edge == "" {
		s.note("Not measured: %s.", w.noEdge)
		return s
	}
	s.header = []string{"", "without them", "with them"}
	e := w.events(t, stormRows)
	middle := e.first + (e.last-e.first)/2
	var cold, warm, beside series
	for range w.opt.runs {
		edge, url := w.startEdge(t, e.broker)
		address := strings.TrimPrefix(url, "http://")
		cold = append(cold, firstRow(t, address, middle))
		warm = append(warm, firstRow(t, address, middle))
		stop(t, edge)
		edge, url = w.startEdge(t, e.broker)
		address = strings.TrimPrefix(url, "http://")
		for i := range stalledReaders {
			c, err := follow(address, "/events", i)
			if err == nil {
				_, err = c.until([]byte(`"id":`))
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
		}
		beside = append(beside, firstRow(t, address, middle))
		stop(t, edge)
	}
	e.close()
	s.row("cold edge: ms until the first row, since in the middle", cold.cell("%.1f"), beside.cell("%.1f"))
	s.row("warm edge: ms until the first row", warm.cell("%.1f"), "")
	s.verdict("first row with a since in the middle, warm, ms", warm.cell("%.1f"), "≤ 5", warm.median() <= wantWarmMS)
	s.verdict("the same, cold, ms", cold.cell("%.1f"), "≤ 250", cold.median() <= wantColdMS)
	s.verdict(fmt.Sprintf("the same, cold, beside %d clients that stopped amid a replay, ms", stalledReaders), beside.cell("%.1f"), "≤ the greatest without", beside.median() <= slices.Max(cold))

	k := w.ticks(t)
	defer k.close()
	var without, with series
	for range w.opt.runs {
		for _, stalled := range []int{0, stalledAmong} {
			p, address, target := w.startSide(t, k, false)
			a := gather(t, address, target, audienceOfStalled, stalled)
			seconds := w.seconds(edgeLiveSeconds)
			k.write(t, 100, seconds)
			a.await(t, int64((audienceOfStalled-stalled)*100*seconds))
			p99 := percentile(a.leave(), 0.99)
			if stalled == 0 {
				without = append(without, p99)
			} else {
				with = append(with, p99)
			}
			t.Logf("16: %d stalled: p99 %.1f ms", stalled, p99)
			stop(t, p)
		}
	}
	s.row(fmt.Sprintf("%d live clients, 100 rows/s, of which all read, or %d stopped: p99 ms", audienceOfStalled, stalledAmong), without.cell("%.1f"), with.cell("%.1f"))
	s.verdict("p99 of live clients beside nine times as many that stopped, ms", with.cell("%.1f"), "≤ the greatest without", with.median() <= slices.Max(without))
	return s
}

// firstRow returns how many milliseconds it takes until a client with the since has a row.
func firstRow(t testing.TB, address string, since uint64) float64 {
	t.Helper()
	begun := time.Now()
	c, err := follow(address, fmt.Sprintf("/events?since=%d", since), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.until([]byte(`"id":`)); err != nil {
		t.Fatal(err)
	}
	return time.Since(begun).Seconds() * 1e3
}
