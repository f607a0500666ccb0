package wal_test

import (
	"bytes"
	"strconv"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"
	"bridge/internal/wal"
)

// A commit can be read from the WAL before any snapshot shows it. A look under
// such a snapshot is void: it would bring back what the commit replaced. xmax is
// no bound of what runs, only one above all that is seen to have ended.
func TestRecent_CommitsNotYetSeen_I4(t *testing.T) {
	t.Parallel()
	r := wal.NewRecent()
	for _, xid := range []uint64{100, 104, 102} {
		r.Add(xid)
	}
	then := r.Now()
	r.Add(103)
	for _, c := range []struct {
		snapshot string
		want     bool
	}{
		{"105:105:", false},
		{"105:200:110", false},
		{"102:105:102", true},
		{"100:105:100,103", true},
		{"103:105:103", false}, // read since, and noted by the look itself
		{"104:104:", true},     // running, and above all that have ended
		{"101:106:101,105", false},
	} {
		sn, err := capture.ParseSnapshot(c.snapshot)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Unseen(then, sn); got != c.want {
			t.Errorf("%s: %v", c.snapshot, got)
		}
	}
	for xid := range uint64(3 * wal.MaxRecent) {
		r.Add(1000 + xid)
	}
	if r.Len() != wal.MaxRecent {
		t.Errorf("%d transactions are remembered, at most %d may be", r.Len(), wal.MaxRecent)
	}
}

// Transaction IDs are 32 bits in the WAL, and wrap.
func TestFullXid(t *testing.T) {
	t.Parallel()
	const wrap = 1 << 32
	for _, c := range []struct {
		near uint64
		xid  uint32
		want uint64
	}{
		{1000, 1001, 1001},
		{1000, 999, 999},
		{5*wrap + 1000, 1001, 5*wrap + 1001},
		{5*wrap + 3, 1<<32 - 2, 5*wrap - 2},
		{5*wrap - 2, 5, 5*wrap + 5},
		{5 * wrap, 1 << 30, 5*wrap + 1<<30},
	} {
		if got := wal.FullXid(c.near, c.xid); got != c.want {
			t.Errorf("%d near %d: got %d, want %d", c.xid, c.near, got, c.want)
		}
	}
}

// The WAL continues a stream only if the slot begins where it ends, or before.
func TestJudge_NoGapIsPassedOver_I7(t *testing.T) {
	t.Parallel()
	heartbeat := func(lsn uint64) capture.Position {
		return capture.Position{Heartbeat: &capture.Heartbeat{Since: 5, LSN: lsn, Published: "a"}}
	}
	with := func(pos capture.Position, b capture.Batch) capture.Position {
		b.Published, pos.Batch = "a", &b
		return pos
	}
	key := [][]byte{[]byte("k")}
	there := wal.Began{Confirmed: 100, End: 500, Known: true, Published: "a"}
	change := func(change func(*wal.Began)) wal.Began { b := there; change(&b); return b }
	for _, c := range []struct {
		name string
		pos  capture.Position
		b    wal.Began
		want string
		anew bool
	}{
		{"nothing yet", capture.Position{}, there, "load", true},
		{"behind the slot's beginning", heartbeat(100), there, "go on", false},
		{"far behind it", heartbeat(300), there, "go on", false},
		{"before it", heartbeat(99), there, "restart", false},
		{"before a slot that this bridge moved on", heartbeat(99), change(func(b *wal.Began) { b.Released = true }), "compare", true},
		{"behind a slot that this bridge moved on", heartbeat(100), change(func(b *wal.Began) { b.Released = true }), "go on", false},
		{"too many keys", heartbeat(300), change(func(b *wal.Began) { b.Compare = true }), "compare", true},
		{"not published", heartbeat(300), change(func(b *wal.Began) { b.Known = false }), "compare", true},
		{"otherwise published", heartbeat(300), change(func(b *wal.Began) { b.Published = "b" }), "compare", true},
		{"otherwise published, and before the slot", heartbeat(99), change(func(b *wal.Began) { b.Published = "b" }), "restart", false},
		{"behind the end of the WAL", heartbeat(501), there, "restart", false},
		{"polled", heartbeat(0), there, "compare", true},
		{"a first load was interrupted", with(capture.Position{}, capture.Batch{LSN: 200, After: key}), there, "load on", false},
		{"a first load, and the slot is ahead", with(capture.Position{}, capture.Batch{LSN: 99, After: key}), there, "restart", false},
		{"a first load by polling", with(capture.Position{}, capture.Batch{Snapshot: "5:5:"}), there, "compare", true},
		{"a comparison was interrupted", with(heartbeat(0), capture.Batch{LSN: 200, Compare: true}), there, "compare", true},
		{"a first load was interrupted, and it is otherwise published", with(capture.Position{}, capture.Batch{LSN: 200, After: key}), change(func(b *wal.Began) { b.Published = "b" }), "compare", true},
		{"another load was interrupted", with(heartbeat(150), capture.Batch{LSN: 200, After: key}), there, "load on", false},
		{"an announcement is newer than the heartbeat", with(heartbeat(50), capture.Batch{LSN: 200, After: key}), there, "load on", false},
	} {
		spec := relation.NewSpec(relation.Name{Schema: "public", Table: "t"})
		if got, anew := wal.Judge(spec, c.pos, c.b); got != c.want || anew != c.anew {
			t.Errorf("%s: %s (anew %v), want %s (%v)", c.name, got, anew, c.want, c.anew)
		}
		// What is no mirror of the relation is never compared, nor purged.
		spec.History = relation.HistoryLog
		if got, _ := wal.Judge(spec, c.pos, c.b); got == "compare" && c.name != "a comparison was interrupted" {
			t.Errorf("%s, of a log: %s", c.name, got)
		}
	}
}

// The state at a heartbeat is one commit's: while a key must be looked at there
// is none, but where there would never be one.
func TestHeartbeats_WaitForSuspectKeys_I2(t *testing.T) {
	for _, c := range []struct {
		suspects, endless bool
		ago               time.Duration
		want              bool
	}{
		{false, false, 0, false},
		{true, false, 0, true},
		{true, false, time.Hour, true},
		{true, true, time.Second, true},
		{true, true, time.Hour, false},
	} {
		if got := wal.Withheld(c.suspects, c.endless, c.ago); got != c.want {
			t.Errorf("suspects %v, endless %v, %s after the last: withheld is %v", c.suspects, c.endless, c.ago, got)
		}
	}
}

// The rows kept for what Postgres does not send are bounded, and those in use
// stay.
func TestLastRows_AreBounded_I9(t *testing.T) {
	t.Parallel()
	l := new(wal.LastRows)
	row := bytes.Repeat([]byte("x"), 10_000)
	l.Put("used", []byte("a"))
	l.Put("changed", []byte("b"))
	for i := range 5 * wal.LastRowsBytes / len(row) {
		l.Put(strconv.Itoa(i), row)
		l.Put("changed", []byte("c"))
		if got := l.Get("used"); string(got) != "a" {
			t.Fatalf("after %d rows, got %q for one that is in use", i, got)
		}
		if held := l.Held(); held > 2*wal.LastRowsBytes {
			t.Fatalf("after %d rows it holds %d bytes", i, held)
		}
	}
	if l.Get("0") != nil {
		t.Error("the first row is still held")
	}
	if got := l.Get("changed"); string(got) != "c" {
		t.Errorf("got %q, want what was put last", got)
	}
	for i := range 500_000 {
		l.Put(strconv.Itoa(i), []byte("{}"))
		if i%10_000 == 0 && l.Len() > wal.LastRowsBytes/50 {
			t.Fatalf("it holds %d short rows: their places take memory, too", l.Len())
		}
	}
	l.Put("used", []byte("a"))
	l.Forget("used")
	if l.Get("used") != nil {
		t.Error("a row was not forgotten")
	}
	l.Put("changed", []byte("c"))
	l.Put("changed", make([]byte, wal.LastRowsBytes))
	if l.Get("changed") != nil {
		t.Error("a row too long to be held was, or is held as it was before")
	}
}
