package poller

import (
	"hash/maphash"
	"strconv"

	"bridge/internal/relation"
)

// maxRepeats bounds the number of rows that are remembered. Rows beyond it are
// published again, which is harmless.
const maxRepeats = 100_000

// repeats remembers the published rows above xmin, for a standby and for a view:
// there every batch reads all of those rows again. It compares their content, not
// their txids, because a row of a join may change without a new highest txid.
type repeats struct {
	rows map[string]repeat
	seed maphash.Seed
	name []byte
}

type repeat struct{ txid, hash uint64 }

func newRepeats() *repeats {
	return &repeats{rows: make(map[string]repeat), seed: maphash.MakeSeed()}
}

// seen says whether this row was seen before with the same txid and content. It
// remembers the row.
func (r *repeats) seen(values [][]byte, key []int, txid uint64, content []byte) bool {
	r.name = r.name[:0]
	for _, i := range key {
		r.name = strconv.AppendInt(r.name, int64(len(values[i])), 10)
		r.name = append(append(r.name, ':'), values[i]...)
	}
	row := repeat{txid, maphash.Bytes(r.seed, content)}
	old, ok := r.rows[string(r.name)]
	if ok && old == row {
		return true
	}
	if ok || len(r.rows) < maxRepeats {
		r.rows[string(r.name)] = row
	}
	return false
}

// forgetBelow forgets the rows below xmin, which no batch reads again.
func (r *repeats) forgetBelow(xmin uint64) {
	for name, row := range r.rows {
		if row.txid < xmin {
			delete(r.rows, name)
		}
	}
}

// forget forgets a key whose delete was published. If the same row comes back, it
// must be published again.
func (r *repeats) forget(key [][]byte) { delete(r.rows, relation.KeyName(key)) }
