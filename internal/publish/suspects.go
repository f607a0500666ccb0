package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
)

// pullBytes is how much the broker sends ahead of a reader; above 64 MiB it
// would cut the connection.
const pullBytes = 4 << 20

// Suspects implements capture.Sink. It reads the stream up to the last message
// sent when the first page is asked for.
func (p *Publisher) Suspects(ctx context.Context, txid uint64, page capture.Page, limit int) ([]capture.RowPosition, capture.Page, error) {
	p.mu.Lock()
	if p.epoch == nil {
		p.mu.Unlock()
		return nil, capture.Page{}, errNoEpoch
	}
	e, last := p.epoch, p.epoch.seq
	p.mu.Unlock()
	if err := e.fault(); err != nil {
		return nil, capture.Page{}, err
	}
	if page.End != 0 {
		last = page.End
	}
	from, err := p.firstHigh(ctx, txid, max(1, page.From), last+1)
	if err != nil || from > last {
		return nil, capture.Page{}, err
	}
	rows, next, err := p.suspects(ctx, e, txid, from, last, limit)
	if err != nil {
		return nil, capture.Page{}, fmt.Errorf("read stream %s: %w", p.layout.Stream, err)
	}
	return rows, next, nil
}

// suspects reads a page from the sequence from to last.
func (p *Publisher) suspects(ctx context.Context, e *epoch, txid, from, last uint64, limit int) ([]capture.RowPosition, capture.Page, error) {
	c, err := p.js.OrderedConsumer(ctx, p.layout.Stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
	})
	if err != nil {
		return nil, capture.Page{}, err
	}
	it, err := c.Messages(jetstream.PullMaxBytes(max(pullBytes, 2*int(p.nc.MaxPayload()))))
	if err != nil {
		return nil, capture.Page{}, err
	}
	defer it.Stop()
	var rows []capture.RowPosition
	for {
		msg, err := nextOf(ctx, it, e)
		if err != nil {
			return nil, capture.Page{}, err
		}
		md, err := msg.Metadata()
		if err != nil {
			return nil, capture.Page{}, err
		}
		seq := md.Sequence.Stream
		if t, ok := lockstep.Txid(msg.Data()); ok && t >= txid && seq <= last && p.layout.KindOf(msg.Subject()) == stream.KindRow {
			key, err := p.layout.Key(msg.Subject(), msg.Headers().Get(stream.KeyHeader))
			if err != nil {
				return nil, capture.Page{}, fmt.Errorf("row %d: %w", seq, err)
			}
			rows = append(rows, capture.RowPosition{Txid: t, Key: key})
		}
		switch {
		case seq >= last: // or what took its place since
			return rows, capture.Page{}, nil
		case len(rows) == limit:
			return rows, capture.Page{From: seq + 1, End: last}, nil
		}
	}
}

// nextOf returns the next message of an iterator, or the epoch's fault: what
// was sent and lost never comes.
func nextOf(ctx context.Context, it jetstream.MessagesContext, e *epoch) (jetstream.Msg, error) {
	for {
		step, cancel := context.WithTimeout(ctx, time.Second)
		msg, err := it.Next(jetstream.NextContext(step))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return msg, err
		}
		if err := e.fault(); err != nil {
			return nil, err
		}
	}
}

// firstHigh returns the first sequence in [lo, hi) whose message has a High of
// at least txid, or hi.
func (p *Publisher) firstHigh(ctx context.Context, txid, lo, hi uint64) (uint64, error) {
	for lo < hi {
		mid := lo + (hi-lo)/2
		msg, seq, err := stream.FirstFrom(ctx, p.nc, p.layout.Stream, p.layout.All(), mid)
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && seq >= hi {
			hi = mid
			continue
		}
		if err != nil {
			return 0, err
		}
		high, err := stream.High(msg.Header)
		if err != nil {
			return 0, fmt.Errorf("message %d of stream %s: %w", seq, p.layout.Stream, err)
		}
		if high >= txid {
			hi = mid
		} else {
			lo = seq + 1
		}
	}
	return lo, nil
}
