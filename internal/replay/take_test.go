package replay_test

import (
	"errors"
	"slices"
	"testing"

	"bridge/internal/follow"
	"bridge/internal/replay"
	"bridge/internal/stream"
)

// TestReader_Take_I2 has the rules of TestModel_Blocks_I2 as the engine keeps them: what a client gets of one block.
func TestReader_Take_I2(t *testing.T) {
	t.Parallel()
	documents := []uint64{10, 12, 13, 15, 18}
	block := replay.TestBlock{First: 10, Last: 19, HighBefore: 100, End: 30, Documents: documents, Beats: []uint64{12, 15}}
	with := func(change func(*replay.TestBlock)) replay.TestBlock {
		b := block
		change(&b)
		return b
	}
	client := func(change func(*replay.TestClient)) replay.TestClient {
		c := replay.TestClient{Next: 10, Holds: 90, Completed: true}
		if change != nil {
			change(&c)
		}
		return c
	}
	for _, tt := range []struct {
		name   string
		block  replay.TestBlock
		client replay.TestClient
		want   []uint64
		after  replay.TestClient
	}{
		{"all", block, client(nil), documents, replay.TestClient{Next: 20, Holds: 15, Completed: true}},
		{
			"from the middle", block, client(func(c *replay.TestClient) { c.Next = 13 }),
			documents[2:],
			replay.TestClient{Next: 20, Holds: 15, Completed: true},
		},
		{
			"a heartbeat before hold does not pass", block, client(func(c *replay.TestClient) { c.Hold = 13 }),
			[]uint64{10, 13, 15, 18},
			replay.TestClient{Next: 20, Hold: 13, Holds: 15, Completed: true},
		},
		{
			"none passes before the end after the last hole", with(func(b *replay.TestBlock) { b.Until = 16 }), client(nil),
			[]uint64{10, 13, 18},
			replay.TestClient{Next: 20, Hold: 16, Holds: 90, Completed: true},
		},
		{
			"the end holds also if nothing is left of the block", with(func(b *replay.TestBlock) { b.Until, b.Documents, b.Beats = 16, nil, nil }),
			client(nil), nil,
			replay.TestClient{Next: 20, Hold: 16, Holds: 90, Completed: true},
		},
		{
			"after a hole whose end is not known none passes", with(func(b *replay.TestBlock) { b.OpenAt, b.Last = 3, 0 }), client(nil),
			[]uint64{10, 12, 13, 18},
			replay.TestClient{Next: 19, Holds: 12, Open: true, Completed: true},
		},
		{
			"before it they do", with(func(b *replay.TestBlock) { b.OpenAt, b.Last = 6, 0 }), client(nil),
			documents,
			replay.TestClient{Next: 19, Holds: 15, Completed: true},
		},
		{
			"when its end is known they pass again", with(func(b *replay.TestBlock) { b.Until = 13 }), client(func(c *replay.TestClient) { c.Open = true }),
			[]uint64{10, 13, 15, 18},
			replay.TestClient{Next: 20, Hold: 13, Holds: 15, Completed: true},
		},
		{
			"a cold block was filled after it", with(func(b *replay.TestBlock) { b.Cold = true }), client(func(c *replay.TestClient) { c.Open = true }),
			[]uint64{10, 13, 18},
			replay.TestClient{Next: 20, Hold: 30, Holds: 90, Completed: true},
		},
		{
			"what is older than since is passed over", block, client(func(c *replay.TestClient) { c.Seek = 13 }),
			documents[2:],
			replay.TestClient{Next: 20, Holds: 15, Completed: true},
		},
		{
			"holds is at most the High before the filling", with(func(b *replay.TestBlock) { b.Beats, b.HighBefore = nil, 50 }), client(nil),
			documents,
			replay.TestClient{Next: 20, Holds: 50, Completed: true},
		},
		{
			"a floor at holds cuts nobody", with(func(b *replay.TestBlock) { b.Floor = 90 }), client(nil),
			documents,
			replay.TestClient{Next: 20, Holds: 15, Completed: true},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, after, err := replay.Take(tt.block, tt.client)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
			if after != tt.after {
				t.Errorf("then the client is %+v, want %+v", after, tt.after)
			}
		})
	}
	for name, b := range map[string]replay.TestBlock{
		"a floor above holds cuts":                           with(func(b *replay.TestBlock) { b.Floor = 91 }),
		"a floor above the High before the filling does too": with(func(b *replay.TestBlock) { b.Floor, b.HighBefore = 80, 79 }),
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := replay.Take(b, client(nil)); !errors.Is(err, follow.ErrReset) {
				t.Errorf("got %v, want ErrReset", err)
			}
		})
	}
}

// TestReplay_PromisedEndIsLost_I8: a client may wait for an end of the stream that the tail has not read yet. If the broker loses
// it, the first message of the epoch after that says so.
func TestReplay_PromisedEndIsLost_I8(t *testing.T) {
	t.Parallel()
	const promised = 50
	a, b := stream.Epoch{ID: "a", First: 1}, stream.Epoch{ID: "b", First: 40}
	for _, tt := range []struct {
		name string
		seq  uint64
		list stream.Epochs
		lost bool
	}{
		{"of the same epoch", 45, stream.Epochs{a, b}, false},
		{"of an epoch before", 30, stream.Epochs{a}, false},
		{"of an epoch that began after it", 52, stream.Epochs{a, b, {ID: "c", First: 51}}, false},
		{"of an epoch that began at it", 50, stream.Epochs{a, b, {ID: "c", First: 50}}, true},
		{"of an epoch that began before it", 60, stream.Epochs{a, b, {ID: "c", First: 45}}, true},
		{"of an epoch after a", 60, stream.Epochs{a, {ID: "c", First: 30}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := replay.KeepsPromise(promised, stream.Epochs{a, b}, tt.seq, tt.list); errors.Is(err, follow.ErrReset) != tt.lost {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestBlock_Cut_I3: a block that is cut has what is before the sequence, and covers all up to it.
func TestBlock_Cut_I3(t *testing.T) {
	t.Parallel()
	tb := replay.TestBlock{First: 1, Last: 20, HighBefore: 20, Cold: true, Documents: []uint64{2, 5, 9, 10, 15, 20}, Beats: []uint64{5, 15}}
	for cut, want := range map[uint64][]uint64{2: nil, 3: {2}, 9: {2, 5}, 10: {2, 5, 9}, 15: {2, 5, 9, 10}, 16: {2, 5, 9, 10, 15}, 20: {2, 5, 9, 10, 15}, 21: {2, 5, 9, 10, 15, 20}, 50: {2, 5, 9, 10, 15, 20}} {
		tb.Cut = cut
		got, after, err := replay.Take(tb, replay.TestClient{Next: 1, Hold: 1, Holds: 20, Completed: true})
		if err != nil || !slices.Equal(got, want) || after.Next != min(cut, 21) {
			t.Errorf("cut at %d: got %v, and goes on with %d, %v; want %v", cut, got, after.Next, err, want)
		}
	}
}
