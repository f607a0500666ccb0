package follow

import (
	"context"
	"errors"
	"fmt"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Info is what a stream's leader says of the stream.
type Info struct {
	stream.Relation
	// First and Last are the stream's sequences.
	First, Last uint64
	// Stream is the stream itself, for reads.
	Stream jetstream.Stream
}

// Lookup asks the stream's leader. It returns an error that wraps
// jetstream.ErrStreamNotFound if there is no stream, and stream.ErrLayout if it is not
// of this version's layout.
func Lookup(ctx context.Context, js jetstream.JetStream, prefix, name string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := js.Stream(ctx, name)
	if err != nil {
		return Info{}, fmt.Errorf("look up stream %s: %w", name, err)
	}
	meta, err := stream.ReadMeta(s.CachedInfo().Config)
	if err != nil {
		return Info{}, err
	}
	rel := stream.Relation{Layout: stream.NewLayout(prefix, meta.Schema, meta.Table, meta.Log), Meta: meta}
	state := s.CachedInfo().State
	return Info{Relation: rel, First: state.FirstSeq, Last: state.LastSeq, Stream: s}, nil
}

// Stored is a message as the stream's leader has it.
type Stored struct {
	*nats.Msg
	Seq uint64
}

// Marks are a stream's newest fence and its newest heartbeat, nil if there is none.
type Marks struct{ Fence, Heartbeat *Stored }

// ReadMarks reads the marks of a stream.
func ReadMarks(ctx context.Context, js jetstream.JetStream, l stream.Layout) (Marks, error) {
	fence, err := Last(ctx, js, l, l.Fence())
	if err != nil {
		return Marks{}, err
	}
	heartbeat, err := Last(ctx, js, l, l.Heartbeat())
	return Marks{fence, heartbeat}, err
}

// Epochs returns the stream's list of epochs, which the newer of the two has.
func (m Marks) Epochs() (stream.Epochs, error) {
	newest := m.Fence
	if m.Heartbeat != nil && (newest == nil || m.Heartbeat.Seq > newest.Seq) {
		newest = m.Heartbeat
	}
	if newest == nil {
		return nil, nil
	}
	return stream.ParseEpochs(newest.Header.Get(stream.EpochsHeader))
}

// ReadEpochs reads the stream's list of epochs.
func ReadEpochs(ctx context.Context, js jetstream.JetStream, l stream.Layout) (stream.Epochs, error) {
	m, err := ReadMarks(ctx, js, l)
	if err != nil {
		return nil, err
	}
	return m.Epochs()
}

// Last returns the newest message of the subject, nil if there is none.
func Last(ctx context.Context, js jetstream.JetStream, l stream.Layout, subject string) (*Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return stored(stream.Last(ctx, js, l.Stream, subject))
}

// FirstFrom returns the first message of the subject at or after seq, nil if there is
// none.
func FirstFrom(ctx context.Context, js jetstream.JetStream, l stream.Layout, subject string, seq uint64) (*Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return stored(stream.FirstFrom(ctx, js, l.Stream, subject, seq))
}

func stored(msg *nats.Msg, seq uint64, err error) (*Stored, error) {
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &Stored{msg, seq}, nil
}

// everything is the filter with which the broker looks at no subject.
const everything = ">"

// Next returns a get for FirstHigh, which asks the stream's leader.
func Next(js jetstream.JetStream, l stream.Layout) func(context.Context, uint64) (*Stored, error) {
	return func(ctx context.Context, seq uint64) (*Stored, error) { return FirstFrom(ctx, js, l, everything, seq) }
}

// RowAfter returns the first row after seq, nil if there is none. Use it near the end
// of a stream: it passes control messages one by one in a stream of latest versions,
// where the broker would walk all subjects to find a row.
func RowAfter(ctx context.Context, js jetstream.JetStream, l stream.Layout, seq uint64) (*Stored, error) {
	filter := everything
	if l.Log() {
		filter = l.Rows()
	}
	for {
		msg, err := FirstFrom(ctx, js, l, filter, seq+1)
		if err != nil || msg == nil || l.KindOf(msg.Subject) == stream.KindRow {
			return msg, err
		}
		seq = msg.Seq
	}
}

// End returns the sequence at or after which a heartbeat completes what a reader
// needs that came when the stream ended at last. That is the last heartbeat's own
// if no row came after it.
func End(ctx context.Context, js jetstream.JetStream, l stream.Layout, last uint64) (uint64, error) {
	heartbeat, err := Last(ctx, js, l, l.Heartbeat())
	if err != nil {
		return 0, err
	}
	return EndAfter(ctx, js, l, last, heartbeat)
}

// EndAfter is End for who has read the last heartbeat, nil for none.
func EndAfter(ctx context.Context, js jetstream.JetStream, l stream.Layout, last uint64, heartbeat *Stored) (uint64, error) {
	if heartbeat == nil || heartbeat.Seq >= last {
		return last, nil
	}
	row, err := RowAfter(ctx, js, l, heartbeat.Seq)
	if err != nil || row != nil {
		return last, err
	}
	return heartbeat.Seq, nil
}

// EndNow returns the function that a Gate of the stream needs.
func EndNow(js jetstream.JetStream, l stream.Layout) func(context.Context, uint64) (uint64, error) {
	return func(ctx context.Context, seq uint64) (uint64, error) {
		row, err := RowAfter(ctx, js, l, seq)
		if err != nil || row == nil {
			return seq, err
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		s, err := js.Stream(ctx, l.Stream)
		if err != nil {
			return 0, fmt.Errorf("look up stream %s: %w", l.Stream, err)
		}
		return End(ctx, js, l, s.CachedInfo().State.LastSeq)
	}
}

// FirstHigh returns the first sequence in [lo, hi) whose message has a High of at
// least high, or hi and false if it met none. It halves the stream by calls of get,
// which returns the first message at or after a sequence, and nil if there is none. It
// stops when there is no more left than within, and returns the first of that.
func FirstHigh(ctx context.Context, get func(ctx context.Context, seq uint64) (*Stored, error), high, lo, hi, within uint64) (seq uint64, found bool, err error) {
	for lo < hi && hi-lo > within {
		mid := lo + (hi-lo)/2
		msg, err := get(ctx, mid)
		if err != nil {
			return 0, false, err
		}
		if msg == nil || msg.Seq >= hi {
			hi = mid
			continue
		}
		h, err := stream.High(msg.Header)
		if err != nil {
			return 0, false, fmt.Errorf("message %d: %w", msg.Seq, err)
		}
		if h >= high {
			hi, found = mid, true
		} else {
			lo = msg.Seq + 1
		}
	}
	return lo, found, nil
}
