package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"bridge/internal/reconcile"
)

// rows is a side in memory: data by key. A | separates the key's columns.
type rows map[string]string

// nothing is the data of a row that equals no other row.
const nothing = "nothing"

func (r rows) read(ctx context.Context, row func(reconcile.Row) error) error {
	for _, key := range slices.Sorted(maps.Keys(r)) {
		if err := row(r.row(key)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (r rows) row(key string) reconcile.Row {
	var out reconcile.Row
	for part := range strings.SplitSeq(key, "|") {
		out.Key = append(out.Key, []byte(part))
	}
	if r[key] != nothing {
		out.Data = []byte(r[key])
	}
	return out
}

// found is the result of a comparison: kinds by key, and the largest page.
type found struct {
	kinds map[string]reconcile.Kind
	page  int
}

func compare(t *testing.T, stream, relation rows, opt reconcile.Options) (found, reconcile.Counts) {
	t.Helper()
	f := found{kinds: map[string]reconcile.Kind{}}
	counts, err := reconcile.Compare(t.Context(), stream.read, relation.read, opt, f.take)
	if err != nil {
		t.Fatal(err)
	}
	return f, counts
}

func (f *found) take(_ context.Context, page []reconcile.Suspect) error {
	f.page = max(f.page, len(page))
	for _, s := range page {
		var parts []string
		for _, k := range s.Key {
			parts = append(parts, string(k))
		}
		f.kinds[strings.Join(parts, "|")] = s.Kind
	}
	return nil
}

// naive returns what Compare must find.
func naive(stream, relation rows) (map[string]reconcile.Kind, reconcile.Counts) {
	kinds, counts := map[string]reconcile.Kind{}, reconcile.Counts{Rows: int64(len(relation))}
	for k, data := range relation {
		if stored, ok := stream[k]; !ok {
			kinds[k] = reconcile.Missing
		} else if stored != data || data == nothing {
			kinds[k] = reconcile.Stale
		}
	}
	for k := range stream {
		if _, ok := relation[k]; !ok {
			kinds[k] = reconcile.Zombie
		}
	}
	for _, k := range kinds {
		counts.Add(k)
	}
	return kinds, counts
}

func TestCompare_EachKind(t *testing.T) {
	t.Parallel()
	stream := rows{"same": "1", "stale": "1", "zombie": "1", "": "", "a|b": "1", "oversize": nothing}
	relation := rows{"same": "1", "stale": "2", "missing": "1", "": "", "a|b": "1", "oversize": "1"}
	f, counts := compare(t, stream, relation, reconcile.Options{})
	want := map[string]reconcile.Kind{
		"stale": reconcile.Stale, "missing": reconcile.Missing, "zombie": reconcile.Zombie, "oversize": reconcile.Stale,
	}
	if !maps.Equal(f.kinds, want) {
		t.Errorf("got %v, want %v", f.kinds, want)
	}
	if (counts != reconcile.Counts{Rows: 6, Missing: 1, Stale: 2, Zombie: 1}) || counts.Differ() != 4 {
		t.Errorf("got %+v", counts)
	}
}

// Two keys whose columns are the same when joined are different keys. So are two
// rows whose key and data are the same when joined.
func TestCompare_TellsKeysApart(t *testing.T) {
	t.Parallel()
	f, _ := compare(t, rows{"ab|c": "x", "k": "ey"}, rows{"a|bc": "x", "ke": "y"}, reconcile.Options{})
	if len(f.kinds) != 4 {
		t.Errorf("got %v, want four keys", f.kinds)
	}
}

func TestCompare_AgreesWithANaiveComparison(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		stream, relation := random(r)
		opt := reconcile.Options{MaxKeys: 1 + r.IntN(200), Page: 1 + r.IntN(20)}
		want, counts := naive(stream, relation)
		f, got := compare(t, stream, relation, opt)
		if got.Approximate {
			for k := range want {
				if _, ok := f.kinds[k]; !ok {
					t.Fatalf("seed %d: %q differs and was not named", seed, k)
				}
			}
			continue
		}
		if !maps.Equal(f.kinds, want) || got != counts || f.page > opt.Page {
			t.Fatalf("seed %d: got %v, %+v in pages of %d, want %v, %+v", seed, f.kinds, got, f.page, want, counts)
		}
	}
}

func random(r *rand.Rand) (stream, relation rows) {
	stream, relation = rows{}, rows{}
	differ := r.IntN(30)
	for i := range r.IntN(500) {
		key := fmt.Sprintf("%d|%d", i%7, i)
		stream[key] = fmt.Sprint(r.IntN(3))
		relation[key] = stream[key]
		if r.IntN(100) >= differ {
			continue
		}
		switch r.IntN(4) {
		case 0:
			delete(stream, key)
		case 1:
			delete(relation, key)
		case 2:
			stream[key] = nothing
		default:
			relation[key] += "!"
		}
	}
	return stream, relation
}

// If everything differs and little memory may be used, every key is named. The
// number of reads does not grow with the number of rows.
func TestCompare_TooManyDifferences_I9(t *testing.T) {
	t.Parallel()
	stream, relation := rows{}, rows{}
	for i := range 3000 {
		stream[fmt.Sprint(i)], relation[fmt.Sprint(i)] = "old", "new"
	}
	reads := 0
	counting := func(s rows) reconcile.Side {
		return func(ctx context.Context, row func(reconcile.Row) error) error {
			reads++
			return s.read(ctx, row)
		}
	}
	f := found{kinds: map[string]reconcile.Kind{}}
	counts, err := reconcile.Compare(t.Context(), counting(stream), counting(relation), reconcile.Options{MaxKeys: 10}, f.take)
	if err != nil {
		t.Fatal(err)
	}
	if !counts.Approximate || len(f.kinds) != 3000 || counts.Rows != 3000 {
		t.Errorf("%d keys were named, %+v; want all 3000", len(f.kinds), counts)
	}
	if reads != 4 {
		t.Errorf("the sides were read %d times, want 4", reads)
	}
	if f, counts = compare(t, stream, relation, reconcile.Options{MaxKeys: 1000}); counts.Stale != 3000 || counts.Approximate {
		t.Errorf("in a few passes: %d keys were named, %+v", len(f.kinds), counts)
	}
}

// If a side grows without bounds between two passes, the comparison fails instead
// of keeping its rows in memory.
func TestCompare_GrowthIsBounded_I9(t *testing.T) {
	t.Parallel()
	pass, given := 0, 0
	relation := func(_ context.Context, row func(reconcile.Row) error) error {
		n := 5
		if pass++; pass > 1 {
			n = 1 << 30
		}
		for i := range n {
			given++
			if err := row(reconcile.Row{Key: [][]byte{fmt.Append(nil, i)}, Data: []byte("x")}); err != nil {
				return err
			}
		}
		return nil
	}
	f := found{kinds: map[string]reconcile.Kind{}}
	_, err := reconcile.Compare(t.Context(), rows{}.read, relation, reconcile.Options{MaxKeys: 10}, f.take)
	if !errors.Is(err, reconcile.ErrGrew) {
		t.Errorf("got %v after %d rows", err, given)
	}
}

// A row that is written between the passes is compared as the last pass reads it.
func TestCompare_SidesThatChange(t *testing.T) {
	t.Parallel()
	pass := 0
	stream := func(ctx context.Context, row func(reconcile.Row) error) error {
		if pass++; pass == 1 {
			return rows{"a": "1", "b": "1"}.read(ctx, row)
		}
		return rows{"a": "2", "b": "1"}.read(ctx, row)
	}
	f := found{kinds: map[string]reconcile.Kind{}}
	if _, err := reconcile.Compare(t.Context(), stream, rows{"a": "2", "b": "1"}.read, reconcile.Options{}, f.take); err != nil {
		t.Fatal(err)
	}
	if len(f.kinds) != 0 {
		t.Errorf("got %v, want nothing: a became equal", f.kinds)
	}
}

func TestCompare_EndsWithItsContextAndErrors(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	named := 0
	stop := func(context.Context, []reconcile.Suspect) error {
		named++
		cancel()
		return nil
	}
	relation := rows{"a": "1", "b": "1", "c": "1"}
	if _, err := reconcile.Compare(ctx, rows{}.read, relation.read, reconcile.Options{MaxKeys: 1}, stop); !errors.Is(err, context.Canceled) || named != 1 {
		t.Errorf("after %d pages: %v, want the context's end after the first", named, err)
	}
	want := errors.New("side failed")
	broken := func(context.Context, func(reconcile.Row) error) error { return want }
	for _, s := range [][2]reconcile.Side{{broken, relation.read}, {relation.read, broken}} {
		if _, err := reconcile.Compare(t.Context(), s[0], s[1], reconcile.Options{}, nil); !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
	}
	refuse := func(context.Context, []reconcile.Suspect) error { return want }
	if _, err := reconcile.Compare(t.Context(), rows{}.read, relation.read, reconcile.Options{}, refuse); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}
