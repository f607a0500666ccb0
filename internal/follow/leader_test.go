package follow_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"testing"

	"bridge/internal/follow"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
)

// TestFirstHigh_I3: the search finds the first message with at least the High, whatever is missing in the stream; or, if it may
// stop early, a place that is not after it, and not further before it than it may.
func TestFirstHigh_I3(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		type message struct{ seq, high uint64 }
		var stored []message
		last := 1 + rnd.Uint64N(60)
		high := uint64(0)
		for seq := uint64(1); seq <= last; seq++ {
			if high += rnd.Uint64N(3); rnd.IntN(3) > 0 {
				stored = append(stored, message{seq, high})
			}
		}
		get := func(_ context.Context, seq uint64) (*follow.Stored, error) {
			for _, m := range stored {
				if m.seq >= seq {
					header := nats.Header{stream.HighHeader: {strconv.FormatUint(m.high, 10)}}
					return &follow.Stored{Msg: &nats.Msg{Header: header}, Seq: m.seq}, nil
				}
			}
			return nil, nil
		}
		for since := range high + 2 {
			want := last + 1 // the first message with that High
			for _, m := range stored {
				if m.high >= since {
					want = m.seq
					break
				}
			}
			for _, within := range []uint64{0, 1, 10} {
				got, found, err := follow.FirstHigh(t.Context(), get, since, 1, last+1, within)
				if err != nil || found && want > last {
					t.Fatalf("%v, since %d, within %d: %d, %v, %v", stored, since, within, got, found, err)
				}
				// What is missing between the message before and this one may be counted to either.
				after := uint64(1)
				for _, m := range stored {
					if m.high < since {
						after = m.seq + 1
					}
				}
				if got > want || got+within < min(after, want) {
					t.Errorf("%v, since %d, within %d: %d, want %d to %d", stored, since, within, got, min(after, want), want)
				}
			}
		}
	}
}
