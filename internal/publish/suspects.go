package publish

import (
	"context"
	"time"

	"bridge/internal/capture"
	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"
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
	from, _, err := follow.FirstHigh(ctx, follow.Next(p.js, p.layout), txid, max(1, page.From), last+1, 0)
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
	err = p.read(ctx, e, from, func(m follow.Message) (more bool, err error) {
		if now := time.Now(); now.After(p.nextProgress) {
			p.nextProgress = now.Add(5 * p.opt.Timing.Progress)
			p.log.Info().Uint64("seq", m.Seq).Uint64("last", last).
				Msg("looking in the stream for rows that a crash of Postgres may have undone")
		}
		if t, ok := lockstep.Txid(m.Data); ok && t >= txid && m.Seq <= last && m.Kind == stream.KindRow {
			key, err := p.key(m)
			if err != nil {
				return false, err
			}
			rows = append(rows, capture.RowPosition{Txid: t, Key: key})
		}
		switch {
		case m.Seq >= last: // last itself may be gone, replaced by a later message
			return false, nil
		case len(rows) == limit:
			next = capture.Page{From: m.Seq + 1, End: last}
			return false, nil
		}
		return true, nil
	})
	return rows, next, err
}
