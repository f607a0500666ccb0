// Package reconcile names the keys in which two sides, a stream and the
// relation that it is made from, differ, in bounded memory. It knows neither.
//
// # How
//
// The first pass reads both sides once, and keeps of each bucket of keys a
// fingerprint that does not depend on the order: how many rows there are, and
// the sum of their hashes. Buckets with equal fingerprints are done with. Of
// the others, as many at a time as hold at most Options.MaxKeys rows, both
// sides are read again, and what differs in them is compared key by key.
//
// Writes may go on meanwhile. A key may then be suspect only because it was
// written between two reads: what is suspect must be looked at again, and
// nothing may be concluded from what was read here. What is written in such a
// moment and is missed, because the sides were equal when they were read, was
// not different before.
package reconcile

import (
	"cmp"
	"context"
	"errors"
)

// Row is one live row of a side: its key's columns, and its content. Data that
// is nil equals nothing, not even itself.
type Row struct {
	Key  [][]byte
	Data []byte
}

// Side reads all live rows of one side, in any order, and calls row for each of
// them; it returns row's error, if there is one. The row's memory is Side's
// again when row returns. It is called several times, never twice at once, and
// need not give the same rows each time. A key that it gives twice is suspect.
type Side func(ctx context.Context, row func(Row) error) error

// Kind is how a key differs.
type Kind byte

// Kinds of suspects. Of one that is Unknown it is not even known that it
// differs.
const (
	Unknown Kind = iota
	// Missing is in the relation, not in the stream.
	Missing
	// Stale is in both, and not the same.
	Stale
	// Zombie is in the stream, not in the relation.
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
	// Approximate says that so much differs that keys were named without a
	// look at whether they do: they are counted as Stale.
	Approximate bool
}

// Differ is the number of keys that differ.
func (c Counts) Differ() int64 { return c.Missing + c.Stale + c.Zombie }

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

// Options bound a comparison; the zero value of each is its default.
type Options struct {
	// MaxKeys is how many rows of both sides are compared key by key at once
	// (100,000); a single bucket may have more.
	MaxKeys int
	// Page is how many suspects are named at once, at most (1,000).
	Page int
}

const (
	defaultMaxKeys = 100_000
	defaultPage    = 1000
	// maxPasses is how many times both sides are read for a comparison key by
	// key. Where that is not enough, all keys of the buckets are suspects.
	maxPasses = 20
)

// ErrGrew is returned where the sides became so much larger between two passes
// that they can't be compared within bounds.
var ErrGrew = errors.New("the relation grew many times over while it was compared")

// Compare reads both sides and calls suspects with pages of keys that differ.
// What suspects is given is its own.
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
