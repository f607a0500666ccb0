package replay

import (
	"cmp"
	"slices"

	"bridge/internal/follow"
)

// maxPlaces bounds the memory of what searches have found in a stream.
const maxPlaces = 4096

// places is what searches have found in a stream that ended at end then: the High of
// some sequences. High never falls along a stream, so clients that come back together
// share what each of them found.
type places struct {
	end   follow.Place
	known []place // by sequence
}

// place is a message's.
type place struct{ seq, high uint64 }

// bracket returns a part [lo, hi) of [lo, hi) in which the first message is whose High
// is at least since.
func (p *places) bracket(since, lo, hi uint64) (uint64, uint64) {
	n, _ := slices.BinarySearchFunc(p.known, since, func(k place, since uint64) int {
		if k.high < since {
			return -1
		}
		return 1
	})
	if n > 0 {
		lo = max(lo, p.known[n-1].seq+1)
	}
	if n < len(p.known) {
		hi = min(hi, p.known[n].seq)
	}
	return lo, max(lo, hi)
}

// add adds what a search found. If there is too much, every second is forgotten.
func (p *places) add(found []place) {
	p.known = append(p.known, found...)
	slices.SortFunc(p.known, func(a, b place) int { return cmp.Compare(a.seq, b.seq) })
	p.known = slices.CompactFunc(p.known, func(a, b place) bool { return a.seq == b.seq })
	for len(p.known) > maxPlaces {
		half := p.known[:0]
		for i := 0; i < len(p.known); i += 2 {
			half = append(half, p.known[i])
		}
		p.known = half
	}
}
