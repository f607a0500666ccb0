package poller

import (
	"context"
	"time"

	"bridge/internal/relation"
)

// What the tests of this package's pure parts need.

// Pace is pace.
type Pace struct{ p *pace }

func NewPace(interval time.Duration) Pace { return Pace{newPace(interval)} }

func (p Pace) Wait(ctx context.Context, w *Wake, flowing bool) error {
	return p.p.wait(ctx, w, flowing)
}

func NewWake() *Wake { return newWake() }

func (w *Wake) Notify() { w.notify() }

// MaxRepeats is maxRepeats.
const MaxRepeats = maxRepeats

// Repeats is repeats.
type Repeats struct{ r *repeats }

func NewRepeats() Repeats { return Repeats{newRepeats()} }

func (r Repeats) Seen(values [][]byte, key []int, txid uint64, content string) bool {
	return r.r.seen(values, key, txid, []byte(content))
}
func (r Repeats) ForgetBelow(xmin uint64) { r.r.forgetBelow(xmin) }
func (r Repeats) Len() int                { return len(r.r.rows) }

// Queries returns a relation's statements by name.
func Queries(rel *relation.Relation, serverSide []bool) map[string]string {
	q := newQueries(rel, serverSide)
	return map[string]string{
		"whole": q.whole, "delta": q.delta, "keys": q.keys, "nulls": q.nulls,
		"continueWhole": q.continueWhole, "continueWholeAfter": q.continueWholeAfter,
		"continueDelta": q.continueDelta, "continueDeltaAfter": q.continueDeltaAfter,
	}
}

// KeyArrays and KeyName are the forms of keys in which repair asks for them.
func KeyArrays(keys [][][]byte, columns int) [][]byte {
	m := make(map[string][][]byte)
	for _, k := range keys {
		m[keyName(k)] = k
	}
	return keyArrays(m, columns)
}

func KeyName(key [][]byte) string { return keyName(key) }

// ParseTxid, IsDeleted and XIDArray read and write values in text form.
func ParseTxid(text string) (uint64, error) { return parseTxid([]byte(text)) }
func IsDeleted(value []byte) bool           { return isDeleted(value) }
func XIDArray(ids []uint64) string          { return string(xidArray(ids)) }

// OneLine is oneLine for tests.
var OneLine = oneLine

// SchemaOf and SameRows make and compare schema documents.
var (
	SchemaOf = schemaOf
	SameRows = sameRows
)
