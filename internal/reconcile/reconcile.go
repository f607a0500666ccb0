// Package reconcile compares a relation with the stream that was made from it, in
// bounded memory. It names the keys that differ. It reads both sides through
// functions, and knows nothing about either.
//
// # How
//
// Keys are divided among buckets by their hash. The first pass reads both sides
// once. For each bucket and side it keeps a fingerprint: the number of rows and
// the sum of their hashes, which does not depend on the order of the rows. Buckets
// with equal fingerprints need no more work.
//
// The others are compared key by key in further passes. Each pass reads both sides
// again, and compares as many buckets as have at most Options.MaxKeys rows
// together.
//
// Writes may go on meanwhile. So a key may be suspect only because it was written
// between two reads. The caller MUST look again at suspect keys, and MUST NOT
// conclude anything else from them. A difference that arises during the comparison
// may be missed, but none that existed before it.
package reconcile

import (
	"cmp"
	"context"
	"errors"
)

// Row is one live row of a side: its key columns and its content. Data that is nil
// equals nothing, not even another nil.
type Row struct {
	Key  [][]byte
	Data []byte
}

// Side reads all live rows of one side, in any order, and calls row for each of
// them. It returns row's error, if there is one. row must not keep the Row after
// it returns. Compare calls a Side several times, one call after the other. The
// calls need not give the same rows. A key that a call gives twice is suspect.
type Side func(ctx context.Context, row func(Row) error) error

// Kind is how a key differs.
type Kind byte

// Kinds of suspects.
const (
	// Unknown keys may differ: they were not compared one by one.
	Unknown Kind = iota
	// Missing keys are in the relation, but not in the stream.
	Missing
	// Stale keys are in both, with different content.
	Stale
	// Zombie keys are in the stream, but not in the relation.
	Zombie
)

// Suspect is a key to look at again.
type Suspect struct {
	Key  [][]byte
	Kind Kind
}

// Counts is what a comparison found.
type Counts struct {
	// Rows is how many rows the relation has.
	Rows int64
	// Missing, Stale and Zombie count keys by their kind.
	Missing, Stale, Zombie int64
	// Approximate says that too much differs for a comparison key by key. All keys
	// of the buckets that differ were named, and are counted as Stale.
	Approximate bool
}

// Differ returns the number of keys that differ.
func (c Counts) Differ() int64 { return c.Missing + c.Stale + c.Zombie }

// Plus returns the counts of keys of both.
func (c Counts) Plus(o Counts) Counts {
	c.Missing, c.Stale, c.Zombie = c.Missing+o.Missing, c.Stale+o.Stale, c.Zombie+o.Zombie
	return c
}

// Add counts one key.
func (c *Counts) Add(k Kind) {
	switch k {
	case Missing:
		c.Missing++
	case Zombie:
		c.Zombie++
	default:
		c.Stale++
	}
}

// Options bound a comparison. A field that is 0 has its default.
type Options struct {
	// MaxKeys bounds how many rows of both sides one pass compares key by key
	// (default 100,000). If a single bucket has more, the pass has only this bucket.
	MaxKeys int
	// Page bounds the number of suspects in one page (default 1,000).
	Page int
}

const (
	defaultMaxKeys = 100_000
	defaultPage    = 1000
	// maxPasses bounds how many times both sides are read to compare key by key. If
	// more passes would be needed, all keys of the buckets that differ are suspect.
	maxPasses = 20
)

// ErrGrew is returned when the sides grew so much between two passes that they
// can't be compared in bounded memory.
var ErrGrew = errors.New("the relation grew too fast to be compared, try again later")

// Compare reads both sides and calls suspects with pages of keys that differ. It
// does not use a page again after the call.
func Compare(ctx context.Context, stream, relation Side, opt Options, suspects func(context.Context, []Suspect) error) (Counts, error) {
	opt.MaxKeys, opt.Page = cmp.Or(opt.MaxKeys, defaultMaxKeys), cmp.Or(opt.Page, defaultPage)
	c := newComparison(opt, suspects)
	c.sides[ofRelation], c.sides[ofStream] = relation, stream
	if err := c.fingerprint(ctx); err != nil {
		return Counts{}, err
	}
	passes := c.plan()
	if len(passes) > maxPasses {
		return c.counts, c.nameAll(ctx)
	}
	for _, p := range passes {
		if err := c.byKey(ctx, p); err != nil {
			return c.counts, err
		}
	}
	return c.counts, nil
}
