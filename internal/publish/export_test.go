package publish

import (
	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
)

// KnowOnly makes the publisher believe that streams have the limits of cfg, whatever
// they have. So a limit of the broker is one that this version does not know.
func (p *Publisher) KnowOnly(cfg jetstream.StreamConfig) {
	p.sizesOf = func(_ jetstream.StreamConfig, maxPayload int64) stream.Sizes { return stream.SizesOf(cfg, maxPayload) }
}
