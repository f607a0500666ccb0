package wal

import (
	"slices"

	"bridge/internal/capture"
)

// maxRecent is how many transactions are remembered. Of those that a snapshot
// shows as running, one that was read longer ago would have to have waited for
// a synchronous standby while as many others passed it, which wait as well.
const maxRecent = 1 << 16

// recent are the transactions that were read last: the one read after k others
// is in place k % maxRecent.
type recent struct {
	seen
	ring []uint64
}

// seen is how far the transactions had been read at some moment.
type seen struct {
	// n counts them, highest is the highest of their IDs.
	n, highest uint64
}

func (r *recent) add(xid uint64) {
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, xid)
	} else {
		r.ring[r.n%maxRecent] = xid
	}
	r.n++
	r.highest = max(r.highest, xid)
}

// unseen says whether a transaction that had been read by then is not visible
// in a later snapshot: one that it lists as running, or one at or above its
// xmax, which is but the first ID above all that are seen to have ended.
func (r *recent) unseen(then seen, sn capture.Snapshot) bool {
	if then.highest >= sn.Xmax {
		return true
	}
	if len(sn.Xip) == 0 {
		return false
	}
	for k := r.n - uint64(len(r.ring)); k < then.n; k++ {
		if _, running := slices.BinarySearch(sn.Xip, r.ring[k%maxRecent]); running {
			return true
		}
	}
	return false
}
