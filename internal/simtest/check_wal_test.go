package simtest_test

import (
	"testing"
	"time"

	"bridge/internal/simtest"
)

// walTruth is the truth of all cases with capture=wal. Transaction 10 inserts rows a and b with 50 each, and a large
// value in a. 11 moves 10 from a to b. 12 deletes b, and gives its balance to a. 13 inserts b again with 30 from a; it
// changes a twice. 14 gives a the key d. The large value never changes. Postgres is killed before 13, but nothing is
// lost that any client saw.
func walTruth() *simtest.Truth {
	sum := int64(100)
	t := &simtest.Truth{Relation: simtest.Accounts, WAL: true, Sum: &sum, Lost: map[int64]int{70: 0}, Starts: []int64{902}}
	t.SetHistory([]simtest.Committed{
		{Key: "a", Ver: 1, Op: 1, Txid: 10, At: 900, Blob: "large"},
		{Key: "b", Ver: 1, Op: 1, Txid: 10, At: 900},
		{Key: "a", Ver: 2, Op: 2, Txid: 11, At: 900, Blob: "large"},
		{Key: "b", Ver: 2, Op: 3, Txid: 11, At: 900},
		{Key: "b", Ver: 3, Op: 3, Txid: 12, At: 901, Deleted: true, Gone: true},
		{Key: "a", Ver: 3, Op: 4, Txid: 12, At: 901, Blob: "large"},
		{Key: "a", Ver: 4, Op: 5, Txid: 13, Era: 1, At: 902, Blob: "large"},
		{Key: "b", Ver: 4, Op: 6, Txid: 13, Era: 1, At: 902},
		{Key: "a", Ver: 5, Op: 7, Txid: 13, Era: 1, At: 902, Blob: "large"},
		{Key: "a", Ver: 6, Op: 8, Txid: 14, Era: 1, At: 903, Deleted: true, Gone: true},
		{Key: "d", Ver: 1, Op: 8, Txid: 14, Era: 1, At: 903, Blob: "large"},
	})
	return t
}

func large(key string, ver, op int64, txid uint64, balance int64) simtest.Event {
	e := row(key, ver, op, txid, 10, balance)
	e.Blob = "large"
	return e
}

func away(key string, txid uint64) simtest.Event {
	e := row(key, 0, 0, txid, 10, 0)
	e.Deleted = true
	return e
}

func then(parts ...[]simtest.Event) history {
	var h history
	for _, p := range parts {
		h = append(h, p...)
	}
	return h
}

// The rows of each transaction of walTruth, and a first load.
var (
	w10  = history{large("a", 1, 1, 10, 50), row("b", 1, 1, 10, 10, 50)}
	w11  = history{large("a", 2, 2, 11, 40), row("b", 2, 3, 11, 10, 60)}
	w12  = history{away("b", 12), large("a", 3, 4, 12, 100)}
	w13  = history{large("a", 4, 5, 13, 71), row("b", 4, 6, 13, 10, 30), large("a", 5, 7, 13, 70)}
	w14  = history{away("a", 14), large("d", 1, 8, 14, 70)}
	load = then(history{connected(0)}, w10, history{completed(), beat(11, 900, "e1", 10)})
)

func beats(e simtest.Event) history { return history{e} }

func TestCheckWAL_AcceptsWhatIsRight(t *testing.T) {
	for name, h := range map[string]history{
		"all in one":                   then(load, w11, w12, w13, w14, beats(beat(15, 903, "e1", 40))),
		"a heartbeat at each":          then(load, w11, beats(beat(11, 900, "e1", 20)), w12, beats(beat(12, 901, "e1", 30)), w13, beats(beat(13, 902, "e1", 40)), w14, beats(beat(15, 903, "e1", 50))),
		"loaded after the delete":      then(history{connected(0), large("a", 3, 4, 12, 100), completed(), beat(13, 901, "e1", 10)}),
		"loaded after the new key":     then(history{connected(0), row("b", 4, 6, 13, 10, 30), large("d", 1, 8, 14, 70), completed(), beat(15, 903, "e1", 10)}),
		"said again by another writer": then(load, w11, w12, w11, w12, beats(beat(13, 901, "e2", 30))),
		"found away by a look":         then(load, w11, history{away("b", 20), large("a", 3, 4, 12, 100), beat(13, 901, "e1", 30)}),
		"removed again by a TRUNCATE":  then(load, w11, w12, history{away("b", 99), beat(13, 901, "e1", 30)}),
		"refused after a loss":         then(load, history{{Kind: simtest.Refused, Status: 410, At: 61 * time.Second}}),
		"resumed before the delete":    then(load, w11, w12, beats(beat(12, 901, "e1", 30)), history{connected(11)}, w11, w12, history{completed(), beat(12, 901, "e1", 31)}),
	} {
		t.Run(name, func(t *testing.T) {
			for _, h := range []history{h, timed(h)} {
				if found := checkWAL(h); len(found) > 0 {
					t.Errorf("got %v", found)
				}
			}
		})
	}
}

func TestCheckWAL_FindsWhatIsWrong(t *testing.T) {
	stale := large("a", 2, 2, 11, 40)
	stale.Blob = "larger"
	for _, c := range []struct {
		name, want string
		h          history
	}{
		{"lost delete", "I2: at the heartbeat with since 13 row b has version 2, want at least 3", then(load, w11, w12[1:], beats(beat(13, 901, "e1", 30)))},
		{"lost delete of a moved key", "I2: at the heartbeat with since 15 row a has version 5, want at least 6", then(load, w13, w14[1:], beats(beat(15, 903, "e1", 30)))},
		{"resurrected row", "I4: row b went back from version 3 to 2", then(load, w11, w12, beats(beat(12, 901, "e1", 30)), w11[1:], beats(beat(12, 901, "e1", 40)))},
		{"resurrected row for who resumes", "I2: at the heartbeat with since 13 row b has version 2, want at least 3", then(load, w11, w12, history{connected(11), w11[1], completed(), beat(13, 901, "e1", 40)})},
		{"resurrected by another writer", "I4: at the heartbeat with since 11 row b is back at version 2, after 3", then(load, w11, w12, w11, beats(beat(11, 901, "e2", 40)))},
		{"refused although nothing was lost", "I3: since 0 was refused with 410", then(load, history{{Kind: simtest.Refused, Status: 410, At: 59 * time.Second}})},
		{"torn transaction", "I2: only a part of transaction 12 is there: row b has its version 3, row a has version 2", then(load, w11, w12[:1], beats(beat(12, 901, "e1", 30)))},
		{"torn transaction, by the sum", "the balances sum to 40", then(load, w11, w12[:1], beats(beat(12, 901, "e1", 30)))},
		{"torn change of a key", "I2: only a part of transaction 14 is there: row a has its version 6, row d has version 0", then(load, w13, w14[:1], beats(beat(14, 903, "e1", 30)))},
		{"heartbeat within a transaction", "row a has version 4, want at least 5", then(load, w11, w12, w13[:2], beats(beat(13, 902, "e1", 30)))},
		{"heartbeat before all is said again", "I4: at the heartbeat with since 11 row a is back at version 2, after 3", then(load, w11, w12, w11[:1], beats(beat(11, 901, "e2", 30)))},
		{"stale TOAST value", "I12: row a (txid 11, ver 2) does not have the large value", then(load, history{stale})},
		{"delete that was none", "I2: row d (txid 15) was deleted by the bridge", then(load, w13, w14, history{away("d", 15), beat(15, 903, "e1", 30)})},
		{"missing, and not yet deleted", "I2: at the heartbeat with since 12 row b has version 0, want at least 2", history{connected(0), large("a", 2, 2, 11, 40), completed(), beat(12, 900, "e1", 10)}},
		{"missing, and inserted again", "I2: at the heartbeat with since 15 row b has version 0, want at least 4", history{connected(0), large("d", 1, 8, 14, 70), completed(), beat(15, 903, "e1", 10)}},
		{"version that a crash took back", "a version that was never committed", then(load, history{large("a", 3, 70, 12, 90)})},
		{"since falls, though no crash takes anything back", "I5: a heartbeat's since fell from 13 to 12", then(load, w11, w12, history{beat(13, 901, "e1", 30), beat(12, 902, "e2", 40)})},
		{"delete below a row's since", "I5: row b (txid 12, ver 3) is new below since 13", then(load, w11, history{since(large("a", 5, 7, 13, 70), 13), away("b", 12), row("b", 4, 6, 13, 10, 30), beat(13, 902, "e1", 30)})},
		{"new row below a row's since", "I5: row b (txid 11, ver 2) is new below since 12", then(load, history{since(large("a", 3, 4, 12, 100), 12), since(row("b", 2, 3, 11, 10, 60), 12), beat(12, 901, "e1", 30)})},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, h := range []history{c.h, timed(c.h)} {
				mustFind(t, checkWAL(h), c.want)
			}
		})
	}
}

// since returns the event with another current_xmin.
func since(e simtest.Event, xmin uint64) simtest.Event {
	e.Xmin, e.Since = xmin, min(e.Txid, xmin)
	return e
}

func checkWAL(h history) []simtest.Violation {
	t := walTruth()
	t.Losses = []time.Duration{60 * time.Second}
	l := simtest.NewLog("c", simtest.Accounts)
	for _, e := range h {
		l.Add(e)
	}
	t.Observe(l)
	_, found := simtest.Check(t, l)
	return found
}

func TestParseCapture(t *testing.T) {
	for _, want := range simtest.Captures() {
		if got, err := simtest.ParseCapture(string(want)); got != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if got, err := simtest.ParseCapture("logical"); err == nil {
		t.Errorf("got %q for a text that is not a capture", got)
	}
}
