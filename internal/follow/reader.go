package follow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// requestTimeout bounds one request to the broker.
	requestTimeout = 5 * time.Second
	// consumerIdle is when the broker forgets a consumer that nobody pulls.
	consumerIdle = time.Minute
	// askAgain is the longest wait in one call of the client, maxSilence in one of
	// Next. A bridge that lives sends something every few seconds.
	askAgain   = 100 * time.Millisecond
	maxSilence = 20 * time.Second
	// closeTimeout bounds the farewell to a consumer.
	closeTimeout = 500 * time.Millisecond
)

var (
	// ErrDropped says that messages were lost between broker and reader. A new Reader
	// from after the last message heals it.
	ErrDropped = errors.New("messages were dropped on the way")
	// ErrSilent says that no message came for 20 s. The broker may have forgotten the
	// consumer, or keeps it where the stream's copy lacks the end.
	ErrSilent = errors.New("no message came for too long")
)

// Message is one message of a stream.
type Message struct {
	// Seq is its sequence in the stream.
	Seq uint64
	// Kind is KindUnknown for a message that no bridge has written.
	Kind    stream.Kind
	Subject string
	Header  nats.Header
	Data    []byte
	// Time is when the broker stored it.
	Time time.Time
	// Pending is how many messages the broker had after it when it sent it.
	Pending uint64
}

// Reader brings the messages of a stream in order, from a sequence on. It reads
// without a filter: with one the broker would walk all subjects first. It is for one
// goroutine.
type Reader struct {
	layout    stream.Layout
	js        jetstream.JetStream
	name      string
	it        jetstream.MessagesContext
	delivered uint64
	// step bounds a wait.
	step    context.Context
	endStep context.CancelFunc
}

// Open returns a Reader that begins at the first message at or after the sequence
// from. The caller closes it.
func Open(ctx context.Context, js jetstream.JetStream, l stream.Layout, from uint64) (*Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := js.CreateConsumer(ctx, l.Stream, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, from),
		AckPolicy: jetstream.AckNonePolicy, MaxDeliver: 1, MemoryStorage: true, Replicas: 1, InactiveThreshold: consumerIdle,
	})
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", l.Stream, err)
	}
	// With a limit by messages and bytes the client stalls where the broker ends a
	// request because of its bytes: it counts the messages that are left as owed.
	ahead, more := stream.PullAhead(js.Conn().MaxPayload())
	it, err := c.Messages(ahead, more, jetstream.PullHeartbeat(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", l.Stream, err)
	}
	return &Reader{layout: l, js: js, name: c.CachedInfo().Name, it: it, endStep: func() {}}, nil
}

// Next waits for the next message and returns it; its data is valid until the call
// after. It returns ErrDropped, ErrSilent, the error of ctx, or one of the broker.
func (r *Reader) Next(ctx context.Context) (Message, error) {
	msg, err := r.wait(ctx)
	if err != nil {
		return Message{}, fmt.Errorf("read stream %s: %w", r.layout.Stream, err)
	}
	md, err := msg.Metadata()
	if err != nil {
		return Message{}, fmt.Errorf("read stream %s: %w", r.layout.Stream, err)
	}
	r.delivered++
	if md.Sequence.Consumer != r.delivered {
		return Message{}, fmt.Errorf("read stream %s: %w", r.layout.Stream, ErrDropped)
	}
	m := Message{
		Seq: md.Sequence.Stream, Kind: r.layout.KindOf(msg.Subject()), Subject: msg.Subject(),
		Header: msg.Headers(), Data: msg.Data(), Time: md.Timestamp, Pending: md.NumPending,
	}
	if len(m.Header[stream.HighHeader]) == 0 {
		m.Kind = stream.KindUnknown
	}
	return m, nil
}

// wait returns the next message as it came. The client asks the broker for more only
// when it is called, or when something comes; where a request ended because the next
// message was too large for the rest of it, that can be never. So it is called again
// and again. One step serves all messages that come within it, because a timer for each
// would cost as much as the message.
func (r *Reader) wait(ctx context.Context) (jetstream.Msg, error) {
	for silent := time.Duration(0); silent < maxSilence; silent += askAgain {
		if r.step == nil || r.step.Err() != nil {
			r.endStep()
			r.step, r.endStep = context.WithTimeout(context.Background(), askAgain)
		}
		msg, err := r.it.Next(jetstream.NextContext(r.step))
		if err == nil || !errors.Is(err, context.DeadlineExceeded) {
			return msg, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return nil, ErrSilent
}

// Close ends the reading. It also tells the broker; if that fails, the broker forgets
// the consumer by itself.
func (r *Reader) Close() {
	r.it.Stop()
	r.endStep()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = r.js.DeleteConsumer(ctx, r.layout.Stream, r.name)
}
