package replay

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
	// consumerIdle is when the broker forgets a consumer that nobody pulls.
	consumerIdle = time.Minute
	// requestTimeout bounds one request to the broker.
	requestTimeout = 5 * time.Second
	// askAgain is the longest wait in one call of the client, maxSilence in
	// one of next. A bridge that lives sends something every few seconds.
	askAgain   = 100 * time.Millisecond
	maxSilence = 20 * time.Second
	// closeTimeout bounds the farewell to a consumer.
	closeTimeout = 500 * time.Millisecond
)

// message is one message of a stream in the reader's hands.
type message struct {
	seq  uint64
	kind stream.Kind
	data []byte
	msg  jetstream.Msg
}

// consumer reads a stream in order from a sequence on. Messages that were
// dropped on the way end it with errDropped.
type consumer struct {
	layout    stream.Layout
	js        jetstream.JetStream
	name      string
	it        jetstream.MessagesContext
	delivered uint64
}

// errDropped says that messages were lost between broker and reader; reading
// again from behind the last one heals it.
var errDropped = errors.New("messages were dropped on the way")

// openConsumer makes a consumer. It reads without a filter: with one the
// broker would walk all subjects first.
func openConsumer(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, l stream.Layout, from uint64) (*consumer, error) {
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
	ahead, more := stream.PullAhead(nc.MaxPayload())
	it, err := c.Messages(ahead, more, jetstream.PullHeartbeat(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", l.Stream, err)
	}
	return &consumer{layout: l, js: js, name: c.CachedInfo().Name, it: it}, nil
}

// next returns the next message; its data is valid until the call after.
func (c *consumer) next(ctx context.Context) (message, error) {
	msg, err := c.wait(ctx)
	if err != nil {
		return message{}, fmt.Errorf("read stream %s: %w", c.layout.Stream, err)
	}
	md, err := msg.Metadata()
	if err != nil {
		return message{}, fmt.Errorf("read stream %s: %w", c.layout.Stream, err)
	}
	c.delivered++
	if md.Sequence.Consumer != c.delivered {
		return message{}, errDropped
	}
	kind := c.layout.KindOf(msg.Subject())
	if len(msg.Headers()[stream.HighHeader]) == 0 {
		kind = stream.KindUnknown // no bridge has written it
	}
	return message{seq: md.Sequence.Stream, kind: kind, data: msg.Data(), msg: msg}, nil
}

// wait returns the next message as it came. The client asks the broker for
// more only when it is called, or when something comes; where a request ended
// because the next message was too large for the rest of it, that can be never.
// So it is called again and again.
func (c *consumer) wait(ctx context.Context) (jetstream.Msg, error) {
	for silent := time.Duration(0); silent < maxSilence; silent += askAgain {
		msg, err := c.it.Next(jetstream.NextMaxWait(askAgain))
		if err == nil || !errors.Is(err, nats.ErrTimeout) {
			return msg, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return nil, errSilent
}

// errSilent ends a consumer that the broker may have forgotten.
var errSilent = errors.New("no message came for too long")

// close also tells the broker; where that fails it forgets the consumer by
// itself.
func (c *consumer) close() {
	c.it.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = c.js.DeleteConsumer(ctx, c.layout.Stream, c.name)
}
