package wal

import "bridge/internal/relation"

// maxRecent is how many transactions are remembered. Of those that a snapshot
// shows as running, one that was read longer ago would have to have waited for
// a synchronous standby while as many others passed it, which wait as well.
const maxRecent = 1 << 16

// recent are the transactions that were read last.
type recent struct {
	seen
	at   map[uint64]uint64 // seen.n by transaction
	ring []uint64
}

// seen is how far the transactions had been read at some moment.
type seen struct {
	// n counts them, highest is the highest of their IDs.
	n, highest uint64
}

func newRecent() recent { return recent{at: make(map[uint64]uint64)} }

func (r *recent) add(xid uint64) {
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, xid)
	} else {
		i := r.n % maxRecent
		delete(r.at, r.ring[i])
		r.ring[i] = xid
	}
	r.n++
	r.highest = max(r.highest, xid)
	r.at[xid] = r.n
}

// unseen says whether a transaction that had been read by then is not visible
// in a later snapshot: one that it lists as running, or one at or above its
// xmax, which is but the first ID above all that are seen to have ended.
func (r *recent) unseen(then seen, sn relation.Snapshot) bool {
	if then.highest >= sn.Xmax {
		return true
	}
	for _, xid := range sn.Xip {
		if at, ok := r.at[xid]; ok && at <= then.n {
			return true
		}
	}
	return false
}
