package publish

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Scan implements capture.Sink.
func (p *Publisher) Scan(ctx context.Context, row func(capture.StoredRow) error) error {
	e, last, err := p.sent()
	if err != nil {
		return err
	}
	// Before all of it is stored, a row could come twice: its old version, and
	// then the new one.
	if err := p.awaitStored(ctx, e, last); err != nil {
		return err
	}
	return p.read(ctx, e, 1, func(msg jetstream.Msg, md *jetstream.MsgMetadata) (more bool, err error) {
		seq := md.Sequence.Stream
		if seq <= last && p.layout.KindOf(msg.Subject()) == stream.KindRow {
			r := e.storedRow(msg.Data(), msg.Headers())
			if r.Key, err = p.key(msg, seq); err != nil {
				return false, err
			}
			if err := row(r); err != nil {
				return false, err
			}
		}
		return seq < last, nil // last itself may be gone, replaced by a later message
	})
}

// storedRow returns what a row's message says. It does not set the key.
func (e *epoch) storedRow(line []byte, h nats.Header) (r capture.StoredRow) {
	var isRow, known bool
	r.Deleted, r.Data, isRow = lockstep.Parts(line)
	r.Txid, known = lockstep.Txid(line)
	if r.Oversize = known && !isRow; r.Oversize {
		limit, digest, _ := strings.Cut(h.Get(stream.DigestHeader), " ")
		// A broker that takes more than it did then may take the row now.
		if n, err := strconv.ParseInt(limit, 10, 64); err == nil && n >= e.sizes.Largest() {
			r.Digest = []byte(digest)
		}
	}
	return r
}

// sent returns the current epoch and the last sequence sent in it.
func (p *Publisher) sent() (*epoch, uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.current()
	if err != nil {
		return nil, 0, err
	}
	return e, e.seq, nil
}

// key returns the key of a row's message.
func (p *Publisher) key(msg jetstream.Msg, seq uint64) ([][]byte, error) {
	key, err := p.layout.Key(msg.Subject(), msg.Headers().Get(stream.KeyHeader))
	if err != nil {
		return nil, fmt.Errorf("read key of row %d: %w", seq, err)
	}
	return key, nil
}

// read calls each for every message from the sequence from on, without a filter,
// until each returns false. It waits for messages that were sent and are not
// stored yet; if the epoch ends meanwhile, it returns the fault.
func (p *Publisher) read(ctx context.Context, e *epoch, from uint64, each func(jetstream.Msg, *jetstream.MsgMetadata) (more bool, err error)) error {
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	failed := func(err error) error { return fmt.Errorf("read stream %s: %w", p.layout.Stream, orLost(ctx, err)) }
	c, err := p.js.OrderedConsumer(ctx, p.layout.Stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
	})
	if err != nil {
		return failed(err)
	}
	it, err := c.Messages(stream.PullAhead(p.nc.MaxPayload()))
	if err != nil {
		return failed(err)
	}
	defer it.Stop()
	for more := true; more; {
		msg, err := nextOf(ctx, it, e, 2*p.opt.Timing.StoredWithin)
		if err != nil {
			return failed(err)
		}
		md, err := msg.Metadata()
		if err != nil {
			return failed(err)
		}
		if more, err = each(msg, md); err != nil {
			return failed(err)
		}
	}
	return nil
}

// nextOf returns the iterator's next message, or the epoch's fault. After a
// fault it must not wait: a message that was sent and lost never comes.
//
// within is how long it may wait. The stream has the message that is read for, or will
// have it soon, and a quiet batch gets messages that keep it open. But the broker may
// have put the consumer where the stream's copy lacks the end: on a server that lost
// its files and does not catch up. The next consumer may be elsewhere.
func nextOf(ctx context.Context, it jetstream.MessagesContext, e *epoch, within time.Duration) (jetstream.Msg, error) {
	for begun := time.Now(); ; {
		step, cancel := context.WithTimeout(ctx, time.Second)
		msg, err := it.Next(jetstream.NextContext(step))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return msg, err
		}
		if err := e.fault(); err != nil {
			return nil, err
		}
		if time.Since(begun) > within {
			return nil, fmt.Errorf("the broker sent no message for %s", within)
		}
	}
}
