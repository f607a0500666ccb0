package relation

import (
	"context"
	"slices"
)

// Hooks for tests that need no server.

// OneLine is onOneLine.
var OneLine = onOneLine

// ParseTxid and IsDeleted parse values in text form.
func ParseTxid(text string) (uint64, error) { return parseTxid([]byte(text)) }
func IsDeleted(value []byte) bool           { return isDeleted(value) }

// Refused returns the writes that Postgres refuses now, because of publications,
// and those that it would refuse with the relation in the bridge's publication.
func Refused(ctx context.Context, q Querier, spec Spec, publication string) (now, then []string, err error) {
	l, err := look(ctx, q, spec)
	if err != nil {
		return nil, nil, err
	}
	if err := l.lookPublications(ctx, q, publication); err != nil {
		return nil, nil, err
	}
	for _, h := range l.holders(nil) {
		for _, m := range l.publications.Members {
			if r := l.refuses(h, m); m.OID == h.oid && r.why != "" {
				r.member, r.of = m, h.name
				now = append(now, r.refused()...)
			}
		}
	}
	for _, r := range l.refusals(nil) {
		then = append(then, r.refused()...)
	}
	return sortedSet(now), sortedSet(then), nil
}

func (r refusal) refused() []string {
	var list []string
	if r.Update {
		list = append(list, r.of.Table+" UPDATE")
	}
	if r.Delete {
		list = append(list, r.of.Table+" DELETE")
	}
	return list
}

func sortedSet(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// Ways returns the alternatives of a problem's Do.
func (p *Problem) Ways() []string {
	if p.ways == nil {
		return []string{p.Do}
	}
	return p.ways
}
