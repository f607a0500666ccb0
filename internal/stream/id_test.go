package stream_test

import (
	"slices"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/lockstep"
)

// TestNewID: IDs sort in the order in which they were made, also if the clock goes back. IDs of the same moment differ. An ID
// is part of a valid cursor.
func TestNewID(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	ids := []string{stream.NewID("", now)}
	for _, at := range []time.Time{now, now.Add(time.Millisecond), now.Add(-time.Hour), now.Add(-time.Hour), now.Add(time.Minute), time.Unix(0, 0)} {
		ids = append(ids, stream.NewID(ids[len(ids)-1], at))
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("not in order: %q", ids)
	}
	seen := map[string]bool{}
	for range 1000 {
		id := stream.NewID("", now)
		if seen[id] || len(id) != len(ids[0]) || id[:12] != ids[0][:12] {
			t.Fatalf("%q after %d others of the same moment", id, len(seen))
		}
		seen[id] = true
	}
	for _, old := range []string{"", "QJxVvXbAZaKxK6Q9wVbKqz", "0123", "zz0123456789abcdef0123"} { // IDs of earlier bridges say nothing
		if id := stream.NewID(old, now); id[:12] != ids[0][:12] {
			t.Errorf("after %q came %q", old, id)
		}
	}
	c := lockstep.Cursor{Incarnation: ids[0], Epoch: ids[1], Seq: 7}
	if got, err := lockstep.ParseCursor(c.String()); err != nil || got != c {
		t.Errorf("cursor %s: %v", c, err)
	}
}
