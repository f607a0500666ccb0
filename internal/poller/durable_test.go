package poller_test

import (
	"testing"

	"bridge/internal/poller"
	"bridge/internal/relation"
)

// What may be shown follows the WAL that is on disk (I5; issue 14, number 11).
func TestDurability_I5(t *testing.T) {
	const page, file = 8192, 16 << 20
	newD := func() *poller.Durability { return poller.NewDurability(relation.WALPages{Page: page, File: file}) }
	want := func(d *poller.Durability, after string, limit uint64) {
		t.Helper()
		if got := d.Limit(1000); got != limit {
			t.Errorf("after %s: got %d, want %d", after, got, limit)
		}
	}
	d := newD()
	want(d, "nothing", 0)
	d.Look(10, 500, 400)
	want(d, "a look that is ahead of the disk", 0)
	d.Look(11, 600, 499)
	want(d, "one byte too few", 0)
	d.Look(12, 700, 500)
	want(d, "the flush of the first look's records", 10)
	d.Flushed(699)
	want(d, "one byte too few for the next", 10)
	d.Flushed(700)
	want(d, "the flush of the next look's records", 12)
	d.Look(13, 800, 800)
	want(d, "a look with everything on disk", 13)
	if got := d.Limit(5); got != 5 {
		t.Errorf("a snapshot with xmin 5: got %d", got)
	}

	d.Look(14, 900, 800)
	d.Reconnected()
	d.Flushed(5000)
	want(d, "a flush that another life of Postgres may have made", 13)

	for _, c := range []struct {
		what              string
		inserted, flushed uint64
		limit             uint64
	}{
		{"a record that ends with a page", 3*page + 24, 3 * page, 20},
		{"a record that ends with a file", 2*file + 40, 2 * file, 20},
		{"a record that ends after the header", 3*page + 32, 3 * page, 0},
		{"a record that goes on in the next page", 3*page + 40, 3 * page, 0},
		{"a page that is not yet on disk", 3*page + 24, 3*page - 8, 0},
	} {
		d := newD()
		d.Look(20, c.inserted, c.flushed)
		want(d, c.what, c.limit)
		d = newD()
		d.Look(20, c.inserted, 0)
		d.Flushed(c.flushed)
		want(d, c.what+", later", c.limit)
	}
}
