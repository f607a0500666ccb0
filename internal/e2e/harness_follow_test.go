package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// seen is one message of a stream.
type seen struct {
	seq      uint64
	kind     stream.Kind
	key      string // of a row: its subject, and the header in which a long key stands
	row      lockstep.Row
	since    uint64
	high     uint64
	snapshot capture.Snapshot // of a heartbeat
	durable  uint64           // the xmax of D
	// durableXmin is the xmin of D.
	durableXmin uint64
	lsn         uint64
	at          time.Time
}

// follower reads a stream as a NATS subscriber does: from its start, every message in order, as long as the test runs.
// It checks the rules that hold in every stream. At its end the test fails for each message that broke one.
type follower struct {
	t      *testing.T
	rel    table
	layout stream.Layout
	js     jetstream.JetStream

	mu sync.Mutex
	// Guarded by mu, as all fields below. rows is the state by key; all is every message.
	rows        map[string]lockstep.Row
	all         []seen
	incarnation string
	high, since uint64
	heartbeats  capture.Snapshot // of the last heartbeat
	faults      []string
	// stop ends the following. A broker that may lose what it has acknowledged gives sequences out again; a follower that
	// knows no epochs would take those of after for those of before.
	stop func()
	// keep says that kept gets every version of every row, with its document.
	keep      bool
	kept      []lockstep.Row
	truncated int
	// crashes allows what follows a crash of Postgres, which gives transaction IDs out again: rows come that an earlier
	// heartbeat's snapshot showed, and a row that Postgres lost gets its older version back. No ID below a since that was
	// shown is given out again.
	crashes bool
	// repairs allows rows that an earlier heartbeat covered, because reconcile finds what polls do not see.
	repairs bool
}

// follow begins to follow a stream as soon as it exists.
func follow(t *testing.T, nc *nats.Conn, rel table) *follower {
	t.Helper()
	f := newFollower(t, nc, rel)
	f.begin()
	return f
}

// followAll is follow, and keeps every version of every row.
func followAll(t *testing.T, nats string, rel table) *follower {
	t.Helper()
	f := newFollower(t, testenv.NATSConn(t, nats), rel)
	f.keep = true
	f.begin()
	return f
}

// newFollower returns a follower that does not read yet.
func newFollower(t *testing.T, nc *nats.Conn, rel table) *follower {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return &follower{t: t, rel: rel, layout: rel.layout(), js: js, rows: map[string]lockstep.Row{}}
}

// begin waits until the stream exists, and starts to read it.
func (f *follower) begin() {
	f.t.Helper()
	t := f.t
	var c jetstream.Consumer
	var err error
	testenv.Eventually(t, long, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err = f.js.OrderedConsumer(ctx, f.layout.Stream, jetstream.OrderedConsumerConfig{})
		return err
	})
	cc, err := c.Consume(f.take, jetstream.ConsumeErrHandler(func(jetstream.ConsumeContext, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	f.stop = cc.Stop
	t.Cleanup(func() {
		f.stop()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, fault := range f.faults {
			t.Errorf("stream %s: %s", f.layout.Stream, fault)
		}
	})
}

// take notes one message, and checks the rules that hold in every stream.
func (f *follower) take(msg jetstream.Msg) {
	s := seen{kind: f.layout.KindOf(msg.Subject()), at: time.Now()}
	md, err := msg.Metadata()
	if err == nil {
		s.seq = md.Sequence.Stream
		s.high, err = stream.High(msg.Headers())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fault := func(format string, args ...any) {
		f.faults = append(f.faults, fmt.Sprintf("message %d: ", s.seq)+fmt.Sprintf(format, args...))
	}
	if err != nil {
		fault("%v", err)
		return
	}
	switch s.kind {
	case stream.KindFence:
		inc := msg.Headers().Get(stream.IncarnationHeader)
		if f.incarnation != "" && inc != f.incarnation { // the first fence may come after rows: older fences are gone
			f.rows, f.high, f.since, f.heartbeats = map[string]lockstep.Row{}, 0, 0, capture.Snapshot{}
		}
		f.incarnation = inc
	case stream.KindHeartbeat:
		hb, err := stream.ParseHeartbeat(msg.Headers(), msg.Data())
		if err == nil {
			s.snapshot, err = capture.ParseSnapshot(hb.Snapshot)
		}
		if err != nil {
			fault("%v", err)
		}
		s.lsn = hb.LSN
		s.since, s.durable = hb.Since, durable(msg.Headers().Get(stream.DurableHeader))
		if s.since < f.since {
			fault("I5: a heartbeat's since falls from %d to %d", f.since, s.since)
		}
		if s.since > s.high || s.since > s.snapshot.Xmin {
			fault("I3: since %d of a heartbeat is above its High %d, or above the xmin of its snapshot %s", s.since, s.high, s.snapshot)
		}
		d, err := capture.ParseSnapshot(hb.Durable)
		if s.durableXmin = d.Xmin; hb.LSN == 0 && (s.since > 0 || hb.Durable != "") && (err != nil || s.since > d.Xmin) {
			fault("I5: since %d of a heartbeat is above what is known to be durable: %s (%v)", s.since, hb.Durable, err)
		}
		f.since, f.heartbeats = s.since, s.snapshot
	case stream.KindRow:
		m, err := lockstep.Decode(msg.Data())
		if m.Control != nil && m.Control.Type == lockstep.Truncate {
			f.rows = map[string]lockstep.Row{}
			f.truncated++
			break
		}
		if m.Control != nil && m.Control.Type == lockstep.Gap {
			break
		}
		if err != nil || m.Row == nil {
			fault("not a row: %s (%v)", msg.Data(), err)
			return
		}
		s.row, s.since = *m.Row, m.Row.Since
		s.key = msg.Subject() + " " + msg.Headers().Get(stream.KeyHeader)
		if f.rel.key != "" {
			s.key = f.keyIn(s.row.Data)
			if s.row.Old != nil {
				delete(f.rows, f.keyIn(s.row.Old))
			}
		}
		if s.since > s.high {
			fault("I3: since %d of a row is above its High %d", s.since, s.high)
		}
		// The rows that a heartbeat's snapshot shows come before the heartbeat. After it they are only repeats, deletes,
		// or allowed (see crashes and repairs).
		if old := f.rows[s.key]; f.heartbeats.Xmax > 0 && f.heartbeats.Visible(s.row.Txid) && old.Txid != s.row.Txid && !s.row.Deleted && !f.crashes && !f.repairs {
			fault("I2: a row of transaction %d comes after a heartbeat whose snapshot shows it: %s", s.row.Txid, f.heartbeats)
		}
		if _, held := f.rows[s.key]; s.row.Txid < f.since && !s.row.Deleted && !held && !f.repairs {
			fault("I5: a new row of transaction %d comes after a heartbeat with since %d", s.row.Txid, f.since)
		}
		if f.rows[s.key] = s.row; s.row.Deleted {
			delete(f.rows, s.key)
		}
		if f.keep {
			f.kept = append(f.kept, s.row)
		}
		s.row.Data = nil // rows has it, and all may be long
	}
	if s.high < f.high {
		fault("I3: High falls from %d to %d", f.high, s.high)
	}
	f.high = s.high
	f.all = append(f.all, s)
}

// keyIn returns the JSON of the key in a row's data.
func (f *follower) keyIn(data []byte) string {
	var columns map[string]json.RawMessage
	if err := json.Unmarshal(data, &columns); err != nil || columns[f.rel.key] == nil {
		f.faults = append(f.faults, fmt.Sprintf("a row without its key: %s (%v)", data, err))
	}
	return string(columns[f.rel.key])
}

// durable parses capture.Heartbeat.Durable. If that is a whole snapshot, durable returns its xmax.
func durable(text string) uint64 {
	parts := strings.Split(text, ":")
	n, _ := strconv.ParseUint(parts[min(1, len(parts)-1)], 10, 64)
	return n
}

// wantEpochs fails the test unless the stream has want fences. There may be one more for each epoch that a slow machine
// ended.
func (f *follower) wantEpochs(want int, by ...*bridge) {
	f.t.Helper()
	most := want
	for _, b := range by {
		most += b.endedBySlowness()
	}
	if n := len(f.messages(stream.KindFence, 0)); n < want || n > most {
		f.t.Errorf("the stream has %d epochs, want %d; a slow machine explains up to %d", n, want, most)
	}
}

// messages returns the messages of one kind from a sequence on.
func (f *follower) messages(kind stream.Kind, from uint64) []seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, _ := slices.BinarySearchFunc(f.all, from, func(s seen, seq uint64) int { return int(s.seq) - int(seq) })
	return slices.DeleteFunc(slices.Clone(f.all[i:]), func(s seen) bool { return s.kind != kind })
}

// repeats returns how many row messages, from a sequence on, there are beyond the given number of rows.
func (f *follower) repeats(rows int, from uint64) int {
	return len(f.messages(stream.KindRow, from)) - rows
}

// set changes what f.mu guards.
func (f *follower) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// last is the highest sequence seen.
func (f *follower) last() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.all) == 0 {
		return 0
	}
	return f.all[len(f.all)-1].seq
}

// caughtUp waits until the follower has read everything that is stored now. It returns the last sequence.
func (f *follower) caughtUp() uint64 {
	f.t.Helper()
	last := f.end()
	testenv.Eventually(f.t, long, func() error {
		if got := f.last(); got < last {
			return fmt.Errorf("read up to %d of %d", got, last)
		}
		return nil
	})
	return last
}

// await waits for a message, from a sequence on, for which ok returns true. what names it if it does not come.
func (f *follower) await(what string, from uint64, ok func(seen) bool) seen {
	f.t.Helper()
	return f.awaitWithin(long, what, from, ok)
}

// heartbeatFrom waits for a heartbeat, from a sequence on.
func (f *follower) heartbeatFrom(from uint64) seen {
	f.t.Helper()
	return f.await("heartbeat", from, func(s seen) bool { return s.kind == stream.KindHeartbeat })
}

// awaitWithin is await with another limit of time.
func (f *follower) awaitWithin(within time.Duration, what string, from uint64, ok func(seen) bool) seen {
	f.t.Helper()
	var found seen
	next := 0
	testenv.Eventually(f.t, within, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for ; next < len(f.all); next++ {
			if s := f.all[next]; s.seq >= from && ok(s) {
				found = s
				return nil
			}
		}
		return fmt.Errorf("no %s in stream %s from %d on", what, f.layout.Stream, from)
	})
	return found
}

// heartbeat waits for a heartbeat whose snapshot shows everything that is visible now.
func (f *follower) heartbeat(conn *pgx.Conn) seen {
	f.t.Helper()
	now := snapshot(f.t, conn)
	return f.await("heartbeat that covers "+now.String(), 0, func(s seen) bool {
		return s.kind == stream.KindHeartbeat && covers(s.snapshot, now)
	})
}

// state returns what a subscriber holds, sorted: the txid and the document of each row.
func (f *follower) state() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]string, 0, len(f.rows))
	for _, r := range f.rows {
		if f.rel.txid == "" {
			list = append(list, string(r.Data))
			continue
		}
		list = append(list, fmt.Sprintf("%d %s", r.Txid, r.Data))
	}
	slices.Sort(list)
	return list
}

// versions returns the documents of all versions that contain the text.
func (f *follower) versions(text string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, r := range f.kept {
		if strings.Contains(string(r.Data), text) {
			list = append(list, string(r.Data))
		}
	}
	return list
}

// awaitKept waits until n versions of rows were read, and returns them.
func (f *follower) awaitKept(n int) []lockstep.Row {
	f.t.Helper()
	var kept []lockstep.Row
	testenv.Eventually(f.t, long, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if kept = slices.Clone(f.kept); len(kept) < n {
			return fmt.Errorf("%d changes, want %d", len(kept), n)
		}
		return nil
	})
	return kept
}

// converge waits for a heartbeat that covers what is visible now. Then the subscriber's state must become equal to the
// relation (I1), within 5 s. Nobody may write meanwhile.
func (f *follower) converge(conn *pgx.Conn) seen {
	f.t.Helper()
	hb := f.heartbeat(conn)
	testenv.Eventually(f.t, 5*time.Second, func() error { return f.differs(conn) })
	return hb
}

// convergeLate is converge for when an earlier heartbeat may already seem to cover what is visible now: one from before
// a crash of Postgres, or from a bridge that could not see a change.
func (f *follower) convergeLate(conn *pgx.Conn) seen {
	f.t.Helper()
	testenv.Eventually(f.t, long, func() error { return f.differs(conn) })
	return f.converge(conn)
}

// differs returns an error if the subscriber's state is not the relation.
func (f *follower) differs(conn *pgx.Conn) error {
	f.t.Helper()
	got, want := f.state(), f.rel.rows(f.t, conn)
	if slices.Equal(got, want) {
		return nil
	}
	sample := func(of, without []string) string {
		var list []string
		for _, s := range of {
			if _, found := slices.BinarySearch(without, s); !found && len(list) < 5 {
				list = append(list, s)
			}
		}
		return strings.Join(list, "\n  ")
	}
	return fmt.Errorf("I1: %d rows in the stream, %d in Postgres\nonly in the stream:\n  %s\nonly in Postgres:\n  %s",
		len(got), len(want), sample(got, want), sample(want, got))
}
