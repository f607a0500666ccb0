package simtest

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// Committed is a version that Postgres holds in its history: the last one that its transaction made of the key, or with
// capture=wal any.
type Committed struct {
	Key     string
	Ver, Op int64
	Txid    uint64
	Deleted bool
	// Gone says that the row was really deleted, or took another key.
	Gone bool
	Era  int
	// Blob is the MD5 of the large value, empty for none.
	Blob string
	// At is when it was written, in Unix seconds.
	At       int64
	siblings []*Committed // of the same transaction
	stamp    int          // Truth.stamp of the last heartbeat for which the transaction was looked at
}

// FinalRow is a row of the relation at the end.
type FinalRow struct {
	Txid    uint64
	Deleted bool
	Data    string // as to_json gives it
}

// Truth is what is known of a relation when the run is over.
type Truth struct {
	Relation string
	// WAL says that the relation was captured from the WAL.
	WAL bool
	// Sum of the balances at any time; nil for a relation without.
	Sum *int64
	// Lost are the statements of transactions that were committed asynchronously and undone by a crash, with the era
	// in which they ran.
	Lost map[int64]int
	// Starts are the Unix seconds at which Postgres was started again.
	Starts []int64
	Final  map[string]FinalRow
	// EdgeKills is when edges were killed, Losses when the broker or Postgres lost something.
	EdgeKills, Losses []time.Duration

	byKey map[string]*chain
	// undone are the keys of which some client saw a version that was lost.
	undone map[string]bool
	// first is when some client first saw a row, and, with xmin 0, a version.
	first map[shown]time.Duration
	stamp int // counts the heartbeats that were checked
}

// shown is a row as a bridge published it: the same version may come again, with another xmin.
type shown struct {
	key     string
	txid    uint64
	ver, op int64
	xmin    uint64
}

func (e *Event) shown(xmin uint64) shown { return shown{e.Key, e.Txid, e.Ver, e.Op, xmin} }

// chain is the history of one key.
type chain struct {
	versions []*Committed // by txid, and within a transaction in their order
	// newest and era are the highest Ver and the highest Era among versions[:i+1].
	newest []int64
	era    []int
}

// SetHistory tells the truth about versions: all that are in Postgres' history, in any order. What is read from the WAL
// was flushed, so no crash takes it back: there all is of one era.
func (t *Truth) SetHistory(all []Committed) {
	type place struct {
		key  string
		txid uint64
	}
	last := map[place]*Committed{}
	for i := range all {
		c := &all[i]
		p := place{c.Key, c.Txid}
		if old := last[p]; old == nil || old.Ver < c.Ver {
			last[p] = c
		}
	}
	t.byKey = map[string]*chain{}
	byTx := map[uint64][]*Committed{}
	for p, c := range last {
		byTx[p.txid] = append(byTx[p.txid], c)
	}
	for i := range all {
		c := &all[i]
		if t.WAL {
			c.Era = 0
		} else if last[place{c.Key, c.Txid}] != c {
			continue
		}
		c.siblings = byTx[c.Txid]
		if t.byKey[c.Key] == nil {
			t.byKey[c.Key] = &chain{}
		}
		t.byKey[c.Key].versions = append(t.byKey[c.Key].versions, c)
	}
	for _, ch := range t.byKey {
		slices.SortFunc(ch.versions, func(a, b *Committed) int { return cmp.Or(cmp.Compare(a.Txid, b.Txid), cmp.Compare(a.Ver, b.Ver)) })
		newest, era := int64(0), 0
		for _, c := range ch.versions {
			newest, era = max(newest, c.Ver), max(era, c.Era)
			ch.newest, ch.era = append(ch.newest, newest), append(ch.era, era)
		}
	}
}

// Observe takes note of what a client saw, and when. A version that was lost makes its key undone: what stands in the
// stream instead is older than what is in front of it; a client that begins anew sees it there for the first time.
func (t *Truth) Observe(l *Log) {
	if t.undone == nil {
		t.undone, t.first = map[string]bool{}, map[shown]time.Duration{}
	}
	events := l.Events()
	for i := range events {
		e := &events[i]
		if e.Kind != RowSeen {
			continue
		}
		if _, lost := t.lost(e.Op); lost {
			t.undone[e.Key] = true
		}
		for _, s := range []shown{e.shown(0), e.shown(e.Xmin)} {
			if at, ok := t.first[s]; !ok || e.At < at {
				t.first[s] = e.At
			}
		}
	}
}

// repeats says whether a crash of Postgres may have had the version of a row published again, which clients saw before
// another row. Polling looks at all again that a crash may have undone.
func (t *Truth) repeats(row *Event, known *Committed, other *Event) bool {
	first, seen := t.first[row.shown(0)]
	return !t.WAL && known.Era < len(t.Starts) && seen && first < t.first[other.shown(other.Xmin)]
}

// lost returns the era in which a statement ran that a crash of Postgres undid. What was undone was never flushed, so it
// is never read from the WAL.
func (t *Truth) lost(op int64) (int, bool) {
	era, lost := t.Lost[op]
	return era, lost && !t.WAL
}

// of returns the versions that a transaction made of a key.
func (t *Truth) of(key string, txid uint64) []*Committed {
	ch := t.byKey[key]
	if ch == nil {
		return nil
	}
	i := sort.Search(len(ch.versions), func(i int) bool { return ch.versions[i].Txid >= txid })
	end := i
	for end < len(ch.versions) && ch.versions[end].Txid == txid {
		end++
	}
	return ch.versions[i:end]
}

// find returns the committed version that v of the key is, nil for none.
func (t *Truth) find(key string, v Version) *Committed {
	for _, c := range t.of(key, v.Txid) {
		if c.Op == v.Op && c.Ver == v.Ver {
			return c
		}
	}
	return nil
}

// required returns the lowest Ver that a state of the era must hold where every transaction below since is finished.
func (c *chain) required(since uint64, era int) int64 {
	i := sort.Search(len(c.versions), func(i int) bool { return c.versions[i].Txid >= since })
	switch {
	case i == 0:
		return 0
	case c.era[i-1] <= era:
		return c.newest[i-1]
	}
	newest := int64(0)
	for _, v := range c.versions[:i] {
		if v.Era <= era {
			newest = max(newest, v.Ver)
		}
	}
	return newest
}

// era is the life of Postgres in which a heartbeat with the timestamp was made.
func (t *Truth) era(timestamp int64) int {
	if t.WAL {
		return 0
	}
	n := 0
	for _, s := range t.Starts {
		if s <= timestamp {
			n++
		}
	}
	return n
}

// within says whether one of times is in [from, to].
func within(times []time.Duration, from, to time.Duration) bool {
	return slices.ContainsFunc(times, func(at time.Duration) bool { return from <= at && at <= to })
}
