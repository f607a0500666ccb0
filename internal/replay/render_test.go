package replay_test

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"bridge/internal/replay"
)

// pieces is a form that puts documents together, each piece in brackets.
type pieces struct{ bytes int }

func (p pieces) Together() int { return p.bytes }

func (pieces) Append(dst []byte, docs iter.Seq[[]byte]) ([]byte, error) {
	dst = append(dst, '[')
	for doc := range docs {
		dst = append(dst, doc...)
	}
	return append(dst, ']'), nil
}

// TestPart_Pieces_I3: in a form that puts documents together, clients share pieces. Wherever a client begins and ends, also
// within a piece of others, and however the block grew, it gets each document once, in whole pieces.
func TestPart_Pieces_I3(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		docs := make([]string, 1+rnd.IntN(30))
		for i := range docs {
			docs[i] = fmt.Sprintf("%d%s\n", i, strings.Repeat("x", rnd.IntN(20)))
		}
		var at []int
		for range rnd.IntN(6) {
			at = append(at, 1+rnd.IntN(len(docs)))
		}
		from := rnd.IntN(len(docs))
		to := from + 1 + rnd.IntN(len(docs)-from)
		form := pieces{bytes: []int{0, 1, 40, 100}[rnd.IntN(4)]}
		var got strings.Builder
		err := replay.Rendered(docs, at, from, to, form, func(data string, ends []uint32) {
			begin := 0
			for i, end := range ends {
				if i < len(ends)-1 && ends[i+1] == end {
					continue
				}
				piece := data[begin:end]
				inner := strings.TrimSuffix(strings.TrimPrefix(piece, "["), "]")
				if len(inner) != len(piece)-2 || strings.ContainsAny(inner, "[]") {
					t.Fatalf("seed %d: %q is not one piece", seed, piece)
				}
				if n, want := strings.Count(inner, "\n"), i+1-slices.Index(ends, end); n != want {
					t.Fatalf("seed %d: the piece %q has %d documents, its ends say %d", seed, piece, n, want)
				}
				got.WriteString(inner)
				begin = int(end)
			}
		})
		if want := strings.Join(docs[from:to], ""); err != nil || got.String() != want {
			t.Fatalf("seed %d: documents %d to %d of %d, others at %v, %+v: got %q, %v, want %q", seed, from, to, len(docs), at, form, got.String(), err, want)
		}
	}
}

// TestPart_OnlyCutPiecesAreMadeAgain_I9: a client gets the whole pieces of its part together, as others do. What it has of a
// piece in which it begins or ends comes alone.
func TestPart_OnlyCutPiecesAreMadeAgain_I9(t *testing.T) {
	t.Parallel()
	docs := strings.SplitAfter(strings.Repeat("document\n", 100), "\n")[:100]
	for _, tt := range []struct {
		from, to int
		want     []int
	}{
		{0, 100, []int{100}},
		{1, 100, []int{9, 90}},
		{10, 95, []int{80, 5}},
		{12, 17, []int{5}},
		{10, 15, []int{5}},
		{15, 35, []int{5, 10, 5}},
	} {
		var got []int
		if err := replay.Rendered(docs, []int{100}, tt.from, tt.to, pieces{bytes: 90}, func(_ string, ends []uint32) { got = append(got, len(ends)) }); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("documents %d to %d came in parts of %v, %v; want %v", tt.from, tt.to, got, err, tt.want)
		}
	}
}
