package wal

import "bridge/internal/relation"

// maxRecent is how many transactions are remembered. Of those that a snapshot
// shows as running, one that was read longer ago would have to have waited for
// a synchronous standby while as many others passed it, which wait as well.
const maxRecent = 1 << 16

// recent are the transactions that were read last.
type recent struct {
	// n counts all that were read.
	n    uint64
	at   map[uint64]uint64 // n by transaction
	ring []uint64
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
	r.at[xid] = r.n
}

// unseen says whether one of the first n transactions that were read is not
// visible in the snapshot. It can only be among those that the snapshot lists
// as running: the others not visible had not begun.
func (r *recent) unseen(n uint64, sn relation.Snapshot) bool {
	for _, xid := range sn.Xip {
		if at, ok := r.at[xid]; ok && at <= n {
			return true
		}
	}
	return false
}
