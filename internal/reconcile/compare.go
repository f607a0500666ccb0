package reconcile

import (
	"context"
	"encoding/binary"
	"hash/maphash"
)

// Indexes of arrays with an element for each side.
const (
	ofRelation = iota
	ofStream
	sides
)

// buckets is the number of buckets. Their fingerprints take 2 MiB in all.
const buckets = 1 << 16

// bucket is the fingerprint of a bucket's rows on one side.
type bucket struct {
	sum  uint64
	rows int64
}

type comparison struct {
	opt      Options
	suspects func(context.Context, []Suspect) error
	sides    [sides]Side
	buckets  [sides][]bucket
	counts   Counts
	page     []Suspect

	hash maphash.Hash
	// name is the last row's key, as appendKey wrote it.
	name []byte
}

func newComparison(opt Options, suspects func(context.Context, []Suspect) error) *comparison {
	c := &comparison{opt: opt, suspects: suspects}
	c.hash.SetSeed(maphash.MakeSeed())
	for i := range c.buckets {
		c.buckets[i] = make([]bucket, buckets)
	}
	return c
}

// look puts the row's key into c.name and returns its bucket and its hash.
func (c *comparison) look(side int, r Row) (b int, hash uint64) {
	c.name = appendKey(c.name[:0], r.Key)
	c.hash.Reset()
	_, _ = c.hash.Write(c.name)
	b = int(c.hash.Sum64() % buckets)
	if r.Data == nil { // a hash that no row of the other side has
		_ = c.hash.WriteByte(byte(1 + side))
	} else {
		_ = c.hash.WriteByte(0)
		_, _ = c.hash.Write(r.Data)
	}
	return b, c.hash.Sum64()
}

// fingerprint is the first pass: it computes the fingerprints of both sides.
func (c *comparison) fingerprint(ctx context.Context) error {
	for side, read := range c.sides {
		err := read(ctx, func(r Row) error {
			b, hash := c.look(side, r)
			c.buckets[side][b].sum += hash
			c.buckets[side][b].rows++
			if side == ofRelation {
				c.counts.Rows++
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) differs(b int) bool {
	return c.buckets[ofRelation][b] != c.buckets[ofStream][b]
}

// pass is one more reading of both sides. It compares the buckets in [from, to)
// that differ. rows is how many rows they hold on both sides together.
type pass struct {
	from, to int
	rows     int64
}

// plan divides the buckets that differ into passes.
func (c *comparison) plan() []pass {
	var passes []pass
	var p pass
	for b := range buckets {
		if !c.differs(b) {
			continue
		}
		rows := c.buckets[ofRelation][b].rows + c.buckets[ofStream][b].rows
		if p.rows > 0 && p.rows+rows > int64(c.opt.MaxKeys) {
			passes = append(passes, p)
			p = pass{from: b}
		}
		p.to, p.rows = b+1, p.rows+rows
	}
	if p.rows > 0 {
		passes = append(passes, p)
	}
	return passes
}

// byKey compares the buckets of a pass key by key. It names the suspects only
// after it has read both sides, because the caller may take long to look at them.
func (c *comparison) byKey(ctx context.Context, p pass) error {
	relation := make(map[string]uint64) // hashes by key: rows for which the stream gave none yet
	var found []Suspect
	most := 2 * max(p.rows, int64(c.opt.MaxKeys))
	within := func(side int, take func(hash uint64)) error {
		return c.sides[side](ctx, func(r Row) error {
			if b, hash := c.look(side, r); p.from <= b && b < p.to && c.differs(b) {
				take(hash)
			}
			if int64(len(relation)+len(found)) > most {
				return ErrGrew
			}
			return ctx.Err()
		})
	}
	if err := within(ofRelation, func(hash uint64) { relation[string(c.name)] = hash }); err != nil {
		return err
	}
	err := within(ofStream, func(hash uint64) {
		want, ok := relation[string(c.name)]
		switch {
		case !ok:
			found = append(found, Suspect{parseKey(string(c.name)), Zombie})
		case want != hash:
			found = append(found, Suspect{parseKey(string(c.name)), Stale})
		}
		delete(relation, string(c.name))
	})
	if err != nil {
		return err
	}
	for name := range relation {
		found = append(found, Suspect{parseKey(name), Missing})
	}
	for _, s := range found {
		if err := c.add(ctx, s); err != nil {
			return err
		}
	}
	return c.flush(ctx)
}

// nameAll reads both sides and names every key of the buckets that differ.
func (c *comparison) nameAll(ctx context.Context) error {
	c.counts.Approximate = true
	for side, read := range c.sides {
		err := read(ctx, func(r Row) error {
			if b, _ := c.look(side, r); !c.differs(b) {
				return ctx.Err()
			}
			return c.add(ctx, Suspect{parseKey(string(c.name)), Unknown})
		})
		if err != nil {
			return err
		}
		if err := c.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) add(ctx context.Context, s Suspect) error {
	c.counts.Add(s.Kind)
	c.page = append(c.page, s)
	if len(c.page) < c.opt.Page {
		return nil
	}
	return c.flush(ctx)
}

func (c *comparison) flush(ctx context.Context) error {
	if len(c.page) == 0 {
		return nil
	}
	page := c.page
	c.page = nil
	return c.suspects(ctx, page)
}

// appendKey appends a key in an encoding that no other key has.
func appendKey(dst []byte, key [][]byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(key)))
	for _, k := range key {
		dst = binary.AppendUvarint(dst, uint64(len(k)))
		dst = append(dst, k...)
	}
	return dst
}

// parseKey parses what appendKey appended.
func parseKey(name string) [][]byte {
	rest := []byte(name)
	number := func() uint64 {
		n, size := binary.Uvarint(rest)
		rest = rest[size:]
		return n
	}
	key := make([][]byte, number())
	for i := range key {
		n := number()
		key[i], rest = rest[:n:n], rest[n:]
	}
	return key
}
