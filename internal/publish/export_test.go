package publish

import (
	"context"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
)

// KnowOnly makes the publisher believe that streams have the limits of cfg, whatever
// they have. So a limit of the broker is one that this version does not know.
func (p *Publisher) KnowOnly(cfg jetstream.StreamConfig) {
	p.sizesOf = func(_ jetstream.StreamConfig, maxPayload int64) stream.Sizes { return stream.SizesOf(cfg, maxPayload) }
}

// TombstoneRounds returns a function that makes one round after the other, for rows that were stored before the given time.
func (p *Publisher) TombstoneRounds(before time.Time) func(context.Context) (removed int, err error) {
	var r tombstoneRound
	return func(ctx context.Context) (removed int, err error) {
		removed, r, err = p.removeTombstones(ctx, before, r)
		return removed, err
	}
}
