package simtest

import (
	"cmp"
	"slices"
	"sort"
	"time"

	"bridge/internal/capture"
)

// Committed is a committed version of a row. Polls see only the last version that a transaction made of a key.
type Committed struct {
	Key     string
	Ver, Op int64
	Txid    uint64
	Deleted bool
	// Gone says that the row was deleted for good, or took another key.
	Gone bool
	Era  int
	// Blob is the MD5 of the large value, empty if there is none.
	Blob string
	// At is when the version was written, in Unix seconds.
	At       int64
	siblings []*Committed // the last versions that the transaction made of each key
	stamp    int          // Truth.stamp of the last heartbeat for which the transaction was checked
}

// FinalRow is a row of the relation at the end.
type FinalRow struct {
	Txid    uint64
	Deleted bool
	Data    string // as to_json gives it
}

// Truth is what is known about a relation when the run is over.
type Truth struct {
	Relation string
	// WAL says that the relation was captured from the WAL, and Tidied that old deleted rows were removed from its stream.
	WAL, Tidied bool
	// Sum is the sum of the balances at any time; nil for a relation without balances.
	Sum *int64
	// Lost has the statements of transactions that were committed asynchronously and that a crash undid, with the era in
	// which they ran.
	Lost map[int64]int
	// Starts are the Unix seconds at which Postgres was started again.
	Starts []int64
	Final  map[string]FinalRow
	// EdgeKills is when edges were killed, Losses when the broker or Postgres may have lost something.
	EdgeKills, Losses []time.Duration
	// BrokerKills is when the broker was killed.
	BrokerKills []BrokerKill
	// Beats, if not nil, knows the heartbeats' snapshots.
	Beats *Beats

	byKey map[string]*chain
	// undone has the keys for which some client saw a version that was lost.
	undone map[string]bool
	// first is when a client first saw each row, and (with xmin 0) each version.
	first map[shown]time.Duration
	stamp int // counts the heartbeats that were checked
}

// BrokerKill is when the broker was killed, and the Unix second in which it was started again.
type BrokerKill struct {
	At   time.Duration
	Back int64
}

// shown is a row as a bridge published it. The same version may be published again with another xmin.
type shown struct {
	key     string
	txid    uint64
	ver, op int64
	xmin    uint64
}

func (e *Event) shown(xmin uint64) shown { return shown{e.Key, e.Txid, e.Ver, e.Op, xmin} }

// chain is the history of one key.
type chain struct {
	versions []*Committed // by txid, and within a transaction by Ver
	// newest[i] and era[i] are the highest Ver and the highest Era among versions[:i+1].
	newest []int64
	era    []int
}

// SetHistory sets the committed versions: all that are in Postgres' history, in any order. What is read from the WAL
// was flushed, so no crash takes it back. With capture=wal all versions are therefore of one era.
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

// Observe records what a client saw, and when. If a client saw a lost version, its key is undone: the version that
// replaces it in the stream is older than the rows before it, and another client may see it there for the first time.
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

// repeats says whether a row may be a repeat that a crash of Postgres caused: polls publish again what a crash may have
// undone. It is one if a client saw this version before any client saw the row other.
func (t *Truth) repeats(row *Event, known *Committed, other *Event) bool {
	first, seen := t.first[row.shown(0)]
	return !t.WAL && known.Era < len(t.Starts) && seen && first < t.first[other.shown(other.Xmin)]
}

// lost says whether a crash of Postgres undid a statement, and in which era it ran. What was undone was never flushed,
// so it is never read from the WAL.
func (t *Truth) lost(op int64) (int, bool) {
	era, lost := t.Lost[op]
	return era, lost && !t.WAL
}

// of returns a transaction's versions of a key.
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

// find returns the committed version of the key that equals v, or nil.
func (t *Truth) find(key string, v Version) *Committed {
	for _, c := range t.of(key, v.Txid) {
		if c.Op == v.Op && c.Ver == v.Ver {
			return c
		}
	}
	return nil
}

// required returns the lowest Ver that a state of the era must hold if it is that of the snapshot.
func (c *chain) required(sn capture.Snapshot, era int) int64 {
	i := sort.Search(len(c.versions), func(i int) bool { return c.versions[i].Txid >= sn.Xmin })
	newest := int64(0)
	if i > 0 && c.era[i-1] <= era {
		newest = c.newest[i-1]
	} else {
		for _, v := range c.versions[:i] {
			if v.Era <= era {
				newest = max(newest, v.Ver)
			}
		}
	}
	for ; i < len(c.versions) && c.versions[i].Txid < sn.Xmax; i++ {
		if v := c.versions[i]; v.Era <= era && sn.Visible(v.Txid) {
			newest = max(newest, v.Ver)
		}
	}
	return newest
}

// snapshot returns the snapshot of a heartbeat. If it is not known, it is the least that the heartbeat's since says.
func (t *Truth) snapshot(e *Event) (sn capture.Snapshot, known bool) {
	if t.Beats != nil {
		sn, known = t.Beats.Snapshot(e.Cursor)
	}
	if !known {
		sn = capture.Snapshot{Xmin: e.Since, Xmax: e.Since}
	}
	return sn, known
}

// era returns the era in which a heartbeat with the timestamp was made.
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
