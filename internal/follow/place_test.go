package follow_test

import (
	"errors"
	"testing"

	"bridge/internal/follow"
	"bridge/internal/stream"
)

// TestPlace_Held (I8): a place is no longer held by a stream that lost what was read,
// also if the stream is longer by now.
func TestPlace_Held(t *testing.T) {
	t.Parallel()
	a, b, c := stream.Epoch{ID: "a", First: 1}, stream.Epoch{ID: "b", First: 10}, stream.Epoch{ID: "c", First: 20}
	for name, tc := range map[string]struct {
		then, now stream.Epochs
		seq, last uint64
		held      bool
	}{
		"the same":                       {stream.Epochs{a, b}, stream.Epochs{a, b}, 15, 15, true},
		"another epoch behind it":        {stream.Epochs{a, b}, stream.Epochs{a, b, c}, 15, 30, true},
		"shorter":                        {stream.Epochs{a, b}, stream.Epochs{a, b}, 15, 14, false},
		"another epoch before it":        {stream.Epochs{a, b}, stream.Epochs{a, b, {ID: "x", First: 14}}, 15, 30, false},
		"another epoch in place of its":  {stream.Epochs{a, b}, stream.Epochs{a, {ID: "x", First: 10}}, 15, 30, false},
		"older than the epochs known":    {stream.Epochs{b}, stream.Epochs{b, c}, 5, 30, true},
		"nothing read, and another now":  {stream.Epochs{a}, stream.Epochs{{ID: "x", First: 1}}, 0, 3, true},
		"its epoch began where it stood": {stream.Epochs{a, b}, stream.Epochs{a, b}, 10, 10, true},
	} {
		p := follow.NewPlace(stream.Relation{}, tc.seq, tc.then)
		if err := p.Held("", tc.now, tc.last); (err == nil) != tc.held || err != nil && !errors.Is(err, follow.ErrReset) {
			t.Errorf("%s: %v, held should be %v", name, err, tc.held)
		}
	}
}
