package poller

import "strconv"

// maxRepeats bounds the memory for rows read from a standby. Past it rows are
// published again, which is harmless.
const maxRepeats = 100_000

// repeats remembers which rows were read from a standby that the next look
// will show again: its snapshots don't say which transactions above xmin they
// show, so every look reads all of those.
type repeats struct {
	rows map[string]uint64
	name []byte
}

func newRepeats() *repeats { return &repeats{rows: make(map[string]uint64)} }

// seen says whether the row's version was seen before, and remembers it.
func (r *repeats) seen(values [][]byte, key []int, txid uint64) bool {
	r.name = r.name[:0]
	for _, i := range key {
		r.name = strconv.AppendInt(r.name, int64(len(values[i])), 10)
		r.name = append(append(r.name, ':'), values[i]...)
	}
	if old, ok := r.rows[string(r.name)]; ok && old == txid {
		return true
	}
	if len(r.rows) < maxRepeats {
		r.rows[string(r.name)] = txid
	}
	return false
}

func (r *repeats) forgetBelow(xmin uint64) {
	for name, txid := range r.rows {
		if txid < xmin {
			delete(r.rows, name)
		}
	}
}
