package simtest_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bridge/internal/simtest"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// happened returns event n of the transaction that was committed at the place commit, txid 10·commit, commit minutes past
// noon, in connection conn.
func happened(conn, commit, n int, what string) simtest.Happened {
	at := noon.Add(time.Duration(commit) * time.Minute)
	return simtest.Happened{
		Conn: conn, At: at, ID: fmt.Sprintf("00000001-%016x-%016x-0000", commit, 100*commit+n),
		Txid: uint64(10 * commit), Committed: at, What: what,
	}
}

// gapAt returns a gap that is shown so many minutes past noon.
func gapAt(conn, minutes int) simtest.Happened {
	return simtest.Happened{Conn: conn, At: noon.Add(time.Duration(minutes) * time.Minute), What: "lost"}
}

func wrote(commit int, what ...string) *simtest.Wrote {
	return &simtest.Wrote{Committed: noon.Add(time.Duration(commit) * time.Minute), What: what, Blob: make([]string, len(what))}
}

// TestCheckJournal: the check of a log finds each fault that a log may have, and takes repeats and gaps for what they are.
func TestCheckJournal(t *testing.T) {
	t.Parallel()
	truth := map[uint64]*simtest.Wrote{10: wrote(1, "insert 1 a", "insert 2 b"), 20: wrote(2, "update 1 c"), 30: wrote(3, "delete 2")}
	a1, a2, b, c := happened(1, 1, 1, "insert 1 a"), happened(1, 1, 2, "insert 2 b"), happened(1, 2, 1, "update 1 c"), happened(1, 3, 1, "delete 2")
	in := func(conn int, list ...simtest.Happened) []simtest.Happened {
		for i := range list {
			list[i].Conn = conn
		}
		return list
	}
	other := func(h simtest.Happened, change func(*simtest.Happened)) simtest.Happened {
		change(&h)
		return h
	}
	for name, tc := range map[string]struct {
		seen []simtest.Happened
		want string
	}{
		"all":                          {in(1, a1, a2, b, c), ""},
		"repeated run":                 {in(1, a1, a2, b, a2, b, c), ""},
		"resumed":                      {append(in(1, a1, a2, b), in(2, b, c)...), ""},
		"an event passed over":         {append(in(1, a1, a2, b, c), in(2, a1, b)...), "came right after"},
		"a repeated run with a hole":   {in(1, a1, a2, b, a1, c), "came right after"},
		"a transaction missing":        {in(1, a1, a2, c), "transaction 20, committed"},
		"the last one missing":         {in(1, a1, a2, b), "transaction 30, committed"},
		"a part missing":               {in(1, a1, b, c), "transaction 10 has 1 events"},
		"missing, with a gap":          {in(1, a1, a2, gapAt(1, 3), c), ""},
		"a part missing, with a gap":   {in(1, a1, gapAt(1, 2), b, c), ""},
		"missing, the gap elsewhere":   {in(1, a1, gapAt(1, 1), a2, c), "transaction 20, committed"},
		"missing after the gap":        {in(1, a1, a2, b, gapAt(1, 2)), "transaction 30, committed"},
		"an event that nobody wrote":   {in(1, a1, a2, b, c, happened(1, 4, 1, "delete 1")), "which was not committed"},
		"twice, with another ID":       {in(1, a1, a2, happened(1, 1, 3, "insert 2 b"), b, c), "transaction 10 has 3 events"},
		"the same ID, something else":  {in(1, a1, a2, b, other(b, func(h *simtest.Happened) { h.What = "update 1 x" }), c), "and later"},
		"the wrong order":              {in(1, other(a1, func(h *simtest.Happened) { h.What = a2.What }), other(a2, func(h *simtest.Happened) { h.What = a1.What }), b, c), "but transaction 10 did"},
		"another value":                {in(1, a1, a2, other(b, func(h *simtest.Happened) { h.Blob = "x" }), c), "but transaction 20 did"},
		"a value that is not shown":    {in(1, a1, a2, other(b, func(h *simtest.Happened) { h.Blob = "unknown" }), c), ""},
		"another time":                 {in(1, a1, a2, other(b, func(h *simtest.Happened) { h.Committed = noon }), c), "its events say"},
		"two commits of a transaction": {in(1, a1, other(a2, func(h *simtest.Happened) { h.ID = strings.Replace(h.ID, "-0000000000000001-", "-0000000000000009-", 1) }), b, c), "have two commits"},
		"nothing was shown":            {nil, "transaction 10, committed"},
		"nothing but a gap at the end": {in(1, gapAt(1, 9)), ""},
	} {
		found := simtest.CheckJournal(truth, tc.seen)
		text := fmt.Sprint(found)
		if (tc.want == "") != (len(found) == 0) || !strings.Contains(text, tc.want) {
			t.Errorf("%s: got %s, want %q", name, text, tc.want)
		}
	}
}
