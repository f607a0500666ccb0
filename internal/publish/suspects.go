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

// Suspects implements capture.Sink. All pages together cover the stream up to the
// last message that had been sent when the first page was asked for. No heartbeat
// comes meanwhile, so a long search says in the log how far it has come.
func (p *Publisher) Suspects(ctx context.Context, txid uint64, page capture.Page, limit int) ([]capture.RowPosition, capture.Page, error) {
	e, last, err := p.sent()
	if err != nil {
		return nil, capture.Page{}, err
	}
	if page.End != 0 {
		last = page.End
	} else {
		p.nextProgress = time.Now().Add(p.opt.Timing.Progress)
	}
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	from, err := p.firstHigh(ctx, txid, max(1, page.From), last+1)
	if err != nil || from > last {
		return nil, capture.Page{}, orLost(ctx, err)
	}
	rows, next, err := p.suspects(ctx, e, txid, from, last, limit)
	if err != nil {
		return nil, capture.Page{}, orLost(ctx, err)
	}
	return rows, next, nil
}

// suspects reads one page of rows from the sequences from to last.
func (p *Publisher) suspects(ctx context.Context, e *epoch, txid, from, last uint64, limit int) (rows []capture.RowPosition, next capture.Page, err error) {
	err = p.read(ctx, e, from, func(msg jetstream.Msg, md *jetstream.MsgMetadata) (more bool, err error) {
		seq := md.Sequence.Stream
		if now := time.Now(); now.After(p.nextProgress) {
			p.nextProgress = now.Add(5 * p.opt.Timing.Progress)
			p.log.Info().Uint64("seq", seq).Uint64("last", last).
				Msg("looking in the stream for rows that a crash of Postgres may have undone")
		}
		if t, ok := lockstep.Txid(msg.Data()); ok && t >= txid && seq <= last && p.layout.KindOf(msg.Subject()) == stream.KindRow {
			key, err := p.key(msg, seq)
			if err != nil {
				return false, err
			}
			rows = append(rows, capture.RowPosition{Txid: t, Key: key})
		}
		switch {
		case seq >= last: // last itself may be gone, replaced by a later message
			return false, nil
		case len(rows) == limit:
			next = capture.Page{From: seq + 1, End: last}
			return false, nil
		}
		return true, nil
	})
	return rows, next, err
}

// firstHigh returns the first sequence in [lo, hi) whose message has a High of
// at least txid, or hi if there is none.
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
			return 0, fmt.Errorf("read High of message %d of stream %s: %w", seq, p.layout.Stream, err)
		}
		if high >= txid {
			hi = mid
		} else {
			lo = seq + 1
		}
	}
	return lo, nil
}
