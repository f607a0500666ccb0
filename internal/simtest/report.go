package simtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// minimum is how much of something a run must have seen, for the run to count.
type minimum struct {
	what      string
	got, want int
}

// minimums returns the minimums of a run of 120 s, reduced in proportion for a shorter run. A short run need not kill
// each process.
func (s *Sim) minimums() []minimum {
	per := func(n int) int { return n * min(s.cfg.Seconds, 120) / 120 }
	kills := 0
	for _, n := range s.kills {
		kills += n
	}
	list := []minimum{
		{"commits", s.writers.Commits(), per(2000)},
		{"kills", kills, per(20)},
	}
	for _, p := range []string{"bridge", "edge", "nats", "postgres"} {
		list = append(list, minimum{"kills of " + p, s.kills[p], per(3)})
	}
	if s.cfg.Capture == WAL {
		for _, fault := range walFaults() {
			list = append(list, minimum{"faults: " + fault, s.done[fault], s.cfg.Seconds / 120})
		}
	}
	return list
}

// leastEvents is the least number of events of a log; runs that poll have none.
func (s *Sim) leastEvents() int {
	if s.journal == nil {
		return 0
	}
	return 200 * min(s.cfg.Seconds, 120) / 120
}

// enough returns an error that says what the run still lacks, or nil.
func (s *Sim) enough() error { return missing(s.minimums()) }

func missing(list []minimum) error {
	var err error
	for _, m := range list {
		if m.got < m.want {
			err = errors.Join(err, fmt.Errorf("the run does not count, too little happened: %d %s, want %d", m.got, m.what, m.want))
		}
	}
	return err
}

// Report returns the counts as a table, and an error if some are too small. It is called after Judge.
func (s *Sim) Report() (string, error) {
	per := func(n int) int { return n * min(s.cfg.Seconds, 120) / 120 }
	list := append(s.minimums(),
		minimum{"heartbeats compared", s.counts.Heartbeats, per(1000)},
		minimum{"positions", s.counts.Positions, per(300)},
		minimum{"heartbeats compared with their snapshot", s.counts.Snapshots, s.counts.Heartbeats / 2},
		minimum{"tokens resumed", s.resumed, per(200)},
		minimum{"events of a log compared", s.logEvents, s.leastEvents()},
		minimum{"gaps in the log, as often as they were shown", s.logGaps, 0},
		minimum{"bridges stopped and woken", s.pauses, 0},
		minimum{"transactions that Postgres lost", s.lost, 0},
		minimum{"rows seen", s.counts.Rows, 0},
		minimum{"repeats seen", s.counts.Repeats, 0},
		minimum{"connections", s.counts.Connections, 0},
		minimum{"cuts", s.counts.Cuts, 0},
		minimum{"requests refused", s.counts.Refusals, 0},
		minimum{"violations", len(s.violations), 0},
	)
	var b strings.Builder
	fmt.Fprintf(&b, "capture %s, seed %d, %d s\n", s.cfg.Capture, s.cfg.Seed, s.cfg.Seconds)
	for _, m := range list {
		fmt.Fprintf(&b, "%8d  %s", m.got, m.what)
		if m.want > 0 {
			fmt.Fprintf(&b, " (at least %d)", m.want)
		}
		b.WriteByte('\n')
	}
	kinds := s.writers.Kinds()
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Fprintf(&b, "%8d  commits: %s\n", kinds[k], k)
	}
	fmt.Fprintf(&b, "%8d  files of a cache damaged\n", s.damaged)
	for _, fault := range slices.Sorted(maps.Keys(s.done)) {
		if s.cfg.Capture == WAL && slices.Contains(walFaults(), fault) {
			continue // they are among the minimums
		}
		fmt.Fprintf(&b, "%8d  faults: %s\n", s.done[fault], fault)
	}
	fmt.Fprintf(&b, "%8s  slowest recovery; longer than %v: %q\n", s.slowest.Round(100*time.Millisecond), slow, s.slow)
	return b.String(), missing(list)
}

// Again returns the command that repeats the run.
func (c Config) Again() string {
	again := fmt.Sprintf("go test ./internal/simtest -run 'TestSim$' -count=1 -timeout 0 -v -args -capture=%s -seconds=%d -seed=%d -kills=%d -writers=%d -clients=%d",
		c.Capture, c.Seconds, c.Seed, c.Kills, c.Writers, c.Clients)
	if c.Shipped {
		again += " -shipped"
	}
	return again
}

// Violations describes the violations: some of each invariant, with the events before them. It also writes all events
// to a file, and names it.
func (s *Sim) Violations() string {
	if len(s.violations) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d violations; to repeat the run: %s\n", len(s.violations), s.cfg.Again())
	told, kinds := map[*Log]bool{}, map[string]int{}
	for _, v := range s.violations {
		kinds[v.Invariant]++
	}
	fmt.Fprintln(&b, kinds)
	clear(kinds)
	for _, v := range s.violations {
		if told[v.Log] || kinds[v.Invariant] >= 2 {
			continue
		}
		told[v.Log] = true
		kinds[v.Invariant]++
		fmt.Fprintf(&b, "\n%s\n", v)
		if v.Log != nil {
			s.around(&b, v, 12)
		}
	}
	path, err := s.dump()
	if err != nil {
		path = err.Error()
	}
	fmt.Fprintf(&b, "\nall events: %s\n", path)
	return b.String()
}

// around prints what a client saw before a violation, and what the nemesis did meanwhile.
func (s *Sim) around(b *strings.Builder, v Violation, n int) {
	events := v.Log.Events()
	first := max(0, v.Event-n)
	s.World.mu.Lock()
	defer s.World.mu.Unlock()
	done := 0
	for i := first; i <= min(v.Event, len(events)-1); i++ {
		for ; done < len(s.events) && s.eventAt[done] <= events[i].At; done++ {
			if events[i].At-s.eventAt[done] < 10*time.Second {
				fmt.Fprintf(b, "  %10.3f *** %s\n", s.eventAt[done].Seconds(), s.events[done])
			}
		}
		fmt.Fprintf(b, "  %10.3f %6d %s\n", events[i].At.Seconds(), i, events[i].describe())
	}
}

func (e *Event) describe() string {
	switch e.Kind {
	case RowSeen:
		return fmt.Sprintf("row %s ver=%d op=%d txid=%d xmin=%d deleted=%v balance=%d", e.Key, e.Ver, e.Op, e.Txid, e.Xmin, e.Deleted, e.Balance)
	case HeartbeatSeen:
		return fmt.Sprintf("heartbeat since=%d timestamp=%d cursor=%s", e.Since, e.Timestamp, e.Cursor)
	case PositionSeen:
		return fmt.Sprintf("position since=%d cursor=%s", e.Since, e.Cursor)
	case Connected:
		return fmt.Sprintf("connected since=%d", e.Since)
	case Adopted:
		return fmt.Sprintf("token since=%d %s", e.Since, e.Text)
	case CutSeen:
		return fmt.Sprintf("cut own=%v torn=%v %s", e.Own, e.Torn, e.Text)
	case Refused:
		return fmt.Sprintf("refused since=%d status=%d %s", e.Since, e.Status, e.Text)
	}
	return e.Kind.String() + " " + e.Text
}

// dump writes to a file what the nemesis did, each transaction, and the logs with violations. If there are no
// violations, it writes all clients' logs.
func (s *Sim) dump() (string, error) {
	f, err := os.CreateTemp("", fmt.Sprintf("simtest-%d-*.log", s.cfg.Seed))
	if err != nil {
		return "", err
	}
	defer f.Close()
	s.World.mu.Lock()
	for i, e := range s.events {
		fmt.Fprintf(f, "%10.3f *** %s\n", s.eventAt[i].Seconds(), e)
	}
	s.World.mu.Unlock()
	s.writers.mu.Lock()
	for _, tx := range s.writers.txs {
		fmt.Fprintf(f, "%10.3f tx %d %s era=%d async=%v outcome=%d ops=%v\n", tx.At.Seconds(), tx.ID, tx.Kind, tx.Era, tx.Async, tx.Outcome, tx.Ops)
	}
	s.writers.mu.Unlock()
	for _, v := range s.violations {
		fmt.Fprintln(f, v)
	}
	written := map[*Log]bool{}
	for _, v := range s.violations {
		s.write(f, v.Log, written)
	}
	if len(s.violations) == 0 {
		for _, c := range s.clients {
			s.write(f, c.Log, written)
		}
	}
	return f.Name(), f.Close()
}

func (s *Sim) write(f *os.File, l *Log, written map[*Log]bool) {
	if l == nil || written[l] {
		return
	}
	written[l] = true
	fmt.Fprintf(f, "\nclient %s of %s\n", l.Client, l.Relation)
	for i, e := range l.Events() {
		fmt.Fprintf(f, "%10.3f %6d %s\n", e.At.Seconds(), i, e.describe())
	}
}
