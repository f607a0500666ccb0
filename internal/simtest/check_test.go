package simtest_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/simtest"
	"bridge/lockstep"
)

// The tests of this file show that the checker can fail. Each case is a short history, which breaks at most one rule.
//
// truth is the truth of all cases. Transaction 10 inserts rows a and b with 50 each. 12 moves 10 from a to b. 11,
// which took its ID before 12 and wrote after it, moves 5 more. Postgres is killed at second 1000 and is back at 1001.
// It lost 13, which had changed a, and gave that ID out again: now 13 moves 1 from b to a. 14 inserts c and deletes
// it.
func truth() *simtest.Truth {
	sum := int64(100)
	t := &simtest.Truth{
		Relation: simtest.Accounts, Sum: &sum, Lost: map[int64]int{70: 0}, Starts: []int64{1001},
		Final: map[string]simtest.FinalRow{
			"a": {Txid: 13, Data: "a4"}, "b": {Txid: 13, Data: "b4"}, "c": {Txid: 14, Deleted: true, Data: "c2"},
		},
	}
	t.SetHistory(committed())
	return t
}

func committed() []simtest.Committed {
	return []simtest.Committed{
		{Key: "a", Ver: 1, Op: 1, Txid: 10},
		{Key: "b", Ver: 1, Op: 1, Txid: 10},
		{Key: "a", Ver: 2, Op: 2, Txid: 12},
		{Key: "b", Ver: 2, Op: 3, Txid: 12},
		{Key: "a", Ver: 3, Op: 4, Txid: 11},
		{Key: "b", Ver: 3, Op: 5, Txid: 11},
		{Key: "a", Ver: 4, Op: 6, Txid: 13, Era: 1},
		{Key: "b", Ver: 4, Op: 7, Txid: 13, Era: 1},
		{Key: "c", Ver: 1, Op: 8, Txid: 14, Era: 1},
		{Key: "c", Ver: 2, Op: 9, Txid: 14, Era: 1, Deleted: true},
	}
}

type history []simtest.Event

func connected(since uint64) simtest.Event {
	return simtest.Event{Kind: simtest.Connected, Since: since}
}
func completed() simtest.Event { return simtest.Event{Kind: simtest.CompletedSeen} }

func row(key string, ver, op int64, txid, xmin uint64, balance int64) simtest.Event {
	return simtest.Event{Kind: simtest.RowSeen, Key: key, Xmin: xmin, Since: min(txid, xmin), Version: simtest.Version{Ver: ver, Op: op, Txid: txid, Balance: balance}}
}

func at(second int, e simtest.Event) simtest.Event {
	e.At = time.Duration(second) * time.Second
	return e
}

func beat(since uint64, timestamp int64, epoch string, seq uint64) simtest.Event {
	return simtest.Event{Kind: simtest.HeartbeatSeen, Since: since, Timestamp: timestamp, Cursor: lockstep.Cursor{Incarnation: "i", Epoch: epoch, Seq: seq}}
}

// loaded is a connection up to its first heartbeat, at which transaction 11 still runs.
func loaded(more ...simtest.Event) history {
	return append(history{
		connected(0),
		row("a", 2, 2, 12, 11, 40), row("b", 2, 3, 12, 11, 60),
		completed(), beat(11, 900, "e1", 10),
	}, more...)
}

// moved is loaded, and then the rows of 11 and a heartbeat.
func moved(more ...simtest.Event) history {
	return append(loaded(row("a", 3, 4, 11, 13, 35), row("b", 3, 5, 11, 13, 65), beat(13, 901, "e1", 20)), more...)
}

func TestCheck_AcceptsWhatIsRight(t *testing.T) {
	for name, h := range map[string]history{
		"load":                       loaded(),
		"a row goes to a lower txid": moved(),
		"repeats":                    moved(row("a", 3, 4, 11, 13, 35), row("b", 3, 5, 11, 13, 65), beat(13, 902, "e2", 30)),
		"a txid is given out again":  moved(beat(13, 903, "e1", 30), row("a", 4, 6, 13, 14, 36), row("b", 4, 7, 13, 14, 64), beat(14, 1001, "e2", 40)),
		"a lost version is repaired": moved(row("a", 4, 70, 13, 13, 35), beat(13, 903, "e1", 30), row("a", 3, 4, 11, 13, 35), beat(13, 1001, "e2", 40)),
		"resumed, state kept":        moved(simtest.Event{Kind: simtest.CutSeen}, connected(13), row("b", 3, 5, 11, 13, 65), completed(), beat(13, 904, "e1", 30)),
		"torn by a kill":             moved(simtest.Event{Kind: simtest.CutSeen, Torn: true, At: 50 * time.Second}),
		"torn by itself":             moved(simtest.Event{Kind: simtest.CutSeen, Torn: true, Own: true, At: 90 * time.Second}),
		"not ready":                  moved(simtest.Event{Kind: simtest.Refused, Status: 503}),
		"a crash has a row repeated": {
			connected(0), at(1, row("a", 3, 4, 11, 11, 35)), at(2, row("b", 2, 3, 12, 13, 60)),
			{Kind: simtest.Emptied},
			connected(0), at(3, row("b", 2, 3, 12, 13, 60)), at(3, row("a", 3, 4, 11, 13, 35)),
		},
		"the ring shows older ones again": moved(connected(11), row("a", 2, 2, 12, 11, 40), row("a", 3, 4, 11, 13, 35), completed(), beat(13, 904, "e1", 20)),
	} {
		t.Run(name, func(t *testing.T) {
			for _, h := range []history{h, timed(h)} {
				if found := check(h); len(found) > 0 {
					t.Errorf("got %v", found)
				}
			}
		})
	}
}

func TestCheck_FindsWhatIsWrong(t *testing.T) {
	repaired := row("b", 0, 0, 14, 14, 0)
	repaired.Deleted = true
	marked := row("a", 3, 4, 11, 13, 0)
	marked.Deleted = true
	since := row("a", 3, 4, 11, 13, 35)
	since.Since = 13
	for _, c := range []struct {
		name, want string
		h          history
	}{
		{"lost row", "I2: at the heartbeat with since 13 row a has version 2, want at least 3", loaded(row("b", 3, 5, 11, 13, 65), beat(13, 901, "e1", 20))},
		{"heartbeat before its rows", "I2", loaded(beat(13, 901, "e1", 20), row("a", 3, 4, 11, 13, 35), row("b", 3, 5, 11, 13, 65))},
		{"heartbeat amid a transaction", "only a part of transaction 11 is there", loaded(row("a", 3, 4, 11, 11, 35), beat(11, 901, "e1", 20))},
		{"sum", "the balances sum to 105", loaded(row("b", 3, 5, 11, 13, 65), beat(11, 901, "e1", 20))},
		{"row that was never committed", "a version that was never committed", loaded(row("a", 3, 99, 11, 13, 35))},
		{"version that its transaction changed again", "a version that was never committed", loaded(row("c", 1, 8, 14, 15, 0))},
		{"wrong mark", "deleted is true", loaded(marked)},
		{"wrong since", "I5: row a: since 13 is not min", loaded(since)},
		{"stale overwrite", "I4: row a went back from version 3 to 2", moved(row("a", 2, 2, 12, 13, 40))},
		{"new row below a heartbeat's since", "I5: row a (txid 11, ver 3) is new below since 13, which an earlier heartbeat", loaded(beat(13, 901, "e1", 20), row("a", 3, 4, 11, 13, 35))},
		{"new row below a row's since", "I5: row a (txid 11, ver 3) is new below since 12, which an earlier row", history{connected(0), row("b", 2, 3, 12, 13, 60), row("a", 3, 4, 11, 13, 35)}},
		{"new row below a row's since, seen again", "I5: row a (txid 11, ver 3) is new below since 12, which an earlier row", history{
			connected(0), at(1, row("b", 2, 3, 12, 13, 60)), at(2, row("a", 3, 4, 11, 13, 35)),
			{Kind: simtest.Emptied},
			connected(0), at(3, row("b", 2, 3, 12, 13, 60)), at(3, row("a", 3, 4, 11, 13, 35)),
		}},
		{"reused txid without a crash", "I5: row a (txid 13", moved(beat(14, 1001, "e1", 30), row("a", 4, 6, 13, 14, 36))},
		{"heartbeat's since falls", "I5: a heartbeat's since fell from 13 to 12", moved(beat(12, 902, "e1", 30))},
		{"heartbeat before completed", "I2: a heartbeat before snapshot_completed", moved(connected(13), beat(13, 903, "e1", 30))},
		{"completed twice", "I2: a second snapshot_completed", moved(completed())},
		{"sequence goes back", "I6: a heartbeat's sequence", moved(beat(13, 903, "e1", 20))},
		{"old writer writes again", "I6: epoch e1 writes again", moved(beat(13, 903, "e2", 30), beat(13, 904, "e1", 40))},
		{"lost version stays", "I7: at the heartbeat with since 13 row a is the version", moved(row("a", 4, 70, 13, 14, 35), beat(13, 1001, "e2", 30))},
		{"delete of what was not lost", "I2: row b (txid 11, ver 3) was deleted by the bridge", moved(repaired)},
		{"half a document", "I11: a chunk is not one line", moved(simtest.Event{Kind: simtest.Odd, Text: "a chunk is not one line"})},
		{"torn although no edge was killed", "I11: the stream was cut within", moved(simtest.Event{Kind: simtest.CutSeen, Torn: true, At: 90 * time.Second})},
		{"refused after a crash", "I3: since 0 was refused with 409", moved(simtest.Event{Kind: simtest.Refused, Status: 409, At: 61 * time.Second})},
		{"given out again below a since that was shown", "I5: row a (txid 13, ver 4) is new below since 14", moved(beat(14, 903, "e1", 30), row("a", 4, 6, 13, 14, 36), row("b", 4, 7, 13, 14, 64), beat(14, 1001, "e2", 40))},
		{"heartbeat's since falls by a crash", "I5: a heartbeat's since fell from 14 to 13", moved(beat(14, 903, "e1", 30), beat(13, 1001, "e2", 40))},
		{"refused for no reason", "I3: since 0 was refused with 400", moved(simtest.Event{Kind: simtest.Refused, Status: 400})},
		{"token that misses a row", "I2: at the heartbeat with since 13 row b has version 0", history{
			{Kind: simtest.Adopted, State: simtest.State{"a": {Ver: 3, Op: 4, Txid: 11, Balance: 35}}, Since: 13},
			connected(13), completed(), beat(13, 905, "e1", 40),
		}},
		{"state forgotten", "I2: at the heartbeat with since 11 row a has version 0", loaded(simtest.Event{Kind: simtest.Emptied}, connected(0), completed(), beat(11, 902, "e1", 30))},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, h := range []history{c.h, timed(c.h)} {
				mustFind(t, check(h), c.want)
			}
		})
	}
}

// Where old deleted rows are removed from a stream, a state may lack them, and a since from before may be refused. Who holds an
// older version must still be told of the deletion.
func TestCheck_RemovedDeletes(t *testing.T) {
	emptied := simtest.Event{Kind: simtest.Emptied}
	refused := func(since uint64, status int) simtest.Event {
		return simtest.Event{Kind: simtest.Refused, Since: since, Status: status}
	}
	after := func(more ...simtest.Event) history { // a load after transaction 14, without row c
		return append(moved(emptied, connected(0), row("a", 4, 6, 13, 15, 36), row("b", 4, 7, 13, 15, 64)), more...)
	}
	for _, c := range []struct {
		name, tidied, kept string // what is found with and without
		h                  history
	}{
		{"a deleted row is missing", "", "row c has version 0, want at least 2", after(completed(), beat(15, 1002, "e2", 40))},
		{
			"a row is there that was deleted", "row c has version 1, want at least 2", "row c has version 1, want at least 2",
			after(row("c", 1, 8, 14, 15, 0), completed(), beat(15, 1002, "e2", 40)),
		},
		{
			"a broker that was killed brings it back, before the bridge has come", "", "row d has version 1, want at least 2",
			after(row("d", 1, 20, 15, 16, 0), completed(), at(80, beat(17, 1002, "e2", 40))),
		},
		{
			"a broker that was killed brings it back, and the bridge has come", "row d has version 1, want at least 2", "row d has version 1, want at least 2",
			after(row("d", 1, 20, 15, 16, 0), completed(), at(80, beat(17, 1020, "e2", 40))),
		},
		{"a row that was not deleted is missing", "row b has version 0, want at least 4", "row b has version 0, want at least 4", moved(
			emptied, connected(0), row("a", 4, 6, 13, 15, 36), completed(), beat(15, 1002, "e2", 40),
		)},
		{"a since before a deletion is refused", "", "I3: since 13 was refused with 410", moved(refused(13, 410))},
		{"a since that is too high is refused", "I3: since 13 was refused with 409", "I3: since 13 was refused with 409", moved(refused(13, 409))},
		{"a since after all deletions is refused", "I3: since 17 was refused with 410", "I3: since 17 was refused with 410", moved(refused(17, 410))},
	} {
		t.Run(c.name, func(t *testing.T) {
			for tidied, want := range map[bool]string{true: c.tidied, false: c.kept} {
				tr := truth()
				tr.SetHistory(append(committed(), simtest.Committed{Key: "d", Ver: 1, Op: 20, Txid: 15, Era: 1}, simtest.Committed{Key: "d", Ver: 2, Op: 21, Txid: 16, Era: 1, Deleted: true}))
				tr.Tidied, tr.BrokerKills = tidied, []simtest.BrokerKill{{At: 70 * time.Second, Back: 1010}}
				found := checkTruth(tr, c.h)
				if want != "" {
					mustFind(t, found, want)
				} else if len(found) > 0 {
					t.Errorf("removed %v: found %v", tidied, found)
				}
			}
		})
	}
}

// A heartbeat's since may be below the xmin of its snapshot. What had ended at the snapshot must be there all the same
// (issue 14, number 11).
func TestCheck_HeartbeatAtItsSnapshot(t *testing.T) {
	first, second := beat(11, 900, "e1", 10).Cursor, beat(13, 901, "e1", 20).Cursor // of loaded and of moved
	for _, c := range []struct {
		name, want string
		beat       lockstep.Cursor
		snapshot   capture.Snapshot
		h          history
	}{
		{"transaction 11 still runs", "", first, capture.Snapshot{Xmin: 11, Xmax: 13, Xip: []uint64{11}}, loaded()},
		{"it has ended", "row a has version 2, want at least 3, as in its snapshot 13:13:", first, capture.Snapshot{Xmin: 13, Xmax: 13}, loaded()},
		{"a later one runs", "row a has version 2, want at least 3, as in its snapshot 10:13:10", first, capture.Snapshot{Xmin: 10, Xmax: 13, Xip: []uint64{10}}, loaded()},
		{"a later life gave its ID out again", "", second, capture.Snapshot{Xmin: 14, Xmax: 14}, moved()},
	} {
		t.Run(c.name, func(t *testing.T) {
			beats := simtest.NewBeats()
			beats.Add(c.beat, c.snapshot)
			found := checkWith(beats, c.h)
			if c.want == "" && len(found) > 0 {
				t.Errorf("got %v", found)
			}
			if c.want != "" {
				mustFind(t, found, c.want)
			}
		})
	}
}

func mustFind(t *testing.T, found []simtest.Violation, want string) {
	t.Helper()
	all := ""
	for _, v := range found {
		all += v.Invariant + ": " + v.Text + "\n"
	}
	if !strings.Contains(all, want) {
		t.Errorf("got %q, want %s", all, want)
	}
}

// timed gives each event without a time a time of its own.
func timed(h history) history {
	h = slices.Clone(h)
	for i := range h {
		if h[i].At == 0 {
			h[i].At = time.Duration(i+1) * time.Millisecond
		}
	}
	return h
}

func check(h history) []simtest.Violation { return checkWith(nil, h) }

func checkWith(beats *simtest.Beats, h history) []simtest.Violation {
	t := truth()
	t.Beats = beats
	return checkTruth(t, h)
}

func checkTruth(t *simtest.Truth, h history) []simtest.Violation {
	t.EdgeKills, t.Losses = []time.Duration{51 * time.Second}, []time.Duration{60 * time.Second}
	l := simtest.NewLog("c", simtest.Accounts)
	for _, e := range h {
		l.Add(e)
	}
	t.Observe(l)
	_, found := simtest.Check(t, l)
	return found
}

func TestDifferences_I1(t *testing.T) {
	v := func(ver int64, txid uint64, data string) simtest.Version {
		return simtest.Version{Ver: ver, Txid: txid, Hash: simtest.Hash([]byte(data))}
	}
	gone := v(2, 14, "")
	gone.Deleted = true
	for _, c := range []struct {
		name, want string
		s          simtest.State
	}{
		{"equal", "", simtest.State{"a": v(4, 13, "a4"), "b": v(4, 13, "b4"), "c": gone}},
		{"equal without the deleted row", "", simtest.State{"a": v(4, 13, "a4"), "b": v(4, 13, "b4")}},
		{"missing row", "row b is missing", simtest.State{"a": v(4, 13, "a4")}},
		{"other bytes", "row b: got another version", simtest.State{"a": v(4, 13, "a4"), "b": v(4, 13, "b 4")}},
		{"other txid", "row b: got another version", simtest.State{"a": v(4, 13, "a4"), "b": v(4, 12, "b4")}},
		{"deleted row lives", "row c: got deleted=false", simtest.State{"a": v(4, 13, "a4"), "b": v(4, 13, "b4"), "c": v(1, 14, "c1")}},
		{"living row deleted", "row b: got deleted=true", simtest.State{"a": v(4, 13, "a4"), "b": gone}},
		{"unknown row", "row d (txid 9, ver 1) is not in the relation", simtest.State{"a": v(4, 13, "a4"), "b": v(4, 13, "b4"), "d": v(1, 9, "")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(simtest.Differences(truth().Final, c.s), "; ")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// A token has the state that its client held at that moment, including what the client adopted and forgot before.
func TestLog_TokenIsTheStateOfThatMoment(t *testing.T) {
	l := simtest.NewLog("c", simtest.Accounts)
	for _, e := range []simtest.Event{
		{Kind: simtest.Adopted, State: simtest.State{"x": {Ver: 7}}, Since: 5},
		connected(5), row("a", 1, 1, 10, 10, 50), row("a", 2, 2, 12, 11, 40), beat(12, 900, "e", 1),
		{Kind: simtest.Emptied},
		connected(0), row("b", 1, 1, 10, 10, 50),
	} {
		l.Add(e)
	}
	for i, want := range map[int]simtest.State{
		2: {"x": {Ver: 7}, "a": {Ver: 1, Op: 1, Txid: 10, Balance: 50}},
		4: {"x": {Ver: 7}, "a": {Ver: 2, Op: 2, Txid: 12, Balance: 40}},
		7: {"b": {Ver: 1, Op: 1, Txid: 10, Balance: 50}},
	} {
		got, ok := l.Token(i)
		if !ok || got.Since != l.Events()[i].Since || len(got.State) != len(want) {
			t.Fatalf("token %d: got %+v %v, want %v", i, got, ok, want)
		}
		for k, v := range want {
			if got.State[k] != v {
				t.Errorf("token %d: got %v, want %v", i, got.State, want)
			}
		}
	}
	if _, ok := l.Token(1); ok {
		t.Error("a connection is not a token")
	}
}
