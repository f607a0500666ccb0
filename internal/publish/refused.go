package publish

import (
	"context"
	"errors"
	"fmt"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A row that breaks a limit which the bridge knows is never sent (see
// epoch.prepare). The broker may refuse others: for a limit of a later version, or
// for one that was set a moment ago. A batch ends at a refused message and does not
// name it. If the epoch just began again, it would end there for ever.
//
// So the next rows are sent alone: outside the batch, one at a time, each with an
// answer of its own. Only a row that the broker refuses alone, in an answer, twice,
// while it stores a control message in between, is replaced by an oversize control
// row. A broker that has no room, or is about to change its leader, ends the epoch as
// before, and nothing is replaced.

// firstAlone is how many rows are sent alone after a refusal. The refused one is among
// them, unless the capture repeats more rows than that before it. So the number doubles
// until it is found.
const firstAlone, mostAlone = 2000, 1 << 30

// caution decides which rows are sent alone.
type caution struct {
	// rows is how many of the next rows are sent alone, tried how many it was after
	// the last refusal, if no row was found since.
	rows, tried int
	// size is that of the smallest row known to be refused, 0 for none. Rows of this
	// size or more are sent alone.
	size int
}

// alone says whether a row of that size is sent alone.
func (c *caution) alone(size int) bool { return c.rows > 0 || c.size > 0 && size >= c.size }

// batchRefused records that the broker refused a message of a batch.
func (c *caution) batchRefused() {
	c.tried = min(max(firstAlone, 2*c.tried), mostAlone)
	c.rows = c.tried
}

// stored records that a row that was sent alone is stored.
func (c *caution) stored(size int) {
	c.rows = max(0, c.rows-1)
	if c.size > 0 && size >= c.size { // the broker takes larger rows by now
		c.size = size + 1
	}
}

// found records that a row of that size was refused alone.
func (c *caution) found(size int) {
	c.rows, c.tried = 0, 0
	if c.size == 0 || size < c.size {
		c.size = size
	}
}

// Errors of the broker that jetstream has no names for. The first says that there is
// no such batch any more, the others that there is no room.
const (
	errCodeUnknownBatch     jetstream.ErrorCode = 10208
	errCodeAccountResources jetstream.ErrorCode = 10002
	errCodeInsufficient     jetstream.ErrorCode = 10023
	errCodeMemoryResources  jetstream.ErrorCode = 10028
	errCodeStorageResources jetstream.ErrorCode = 10047
	errCodeStoreFailed      jetstream.ErrorCode = 10077
)

// refusal returns the broker's answer, if it may have refused a message because of
// the message itself: not because of another writer, a lost batch, or a lack of
// room, which passes with time. Without room the broker may still store a small
// message.
func (e *epoch) refusal(err error) *jetstream.APIError {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return nil
	}
	switch api.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant, errCodeUnknownBatch,
		errCodeAccountResources, errCodeInsufficient, errCodeMemoryResources, errCodeStorageResources:
		return nil
	case errCodeStoreFailed:
		if e.fills { // the store is full, not the message too large
			return nil
		}
	}
	return api
}

// batchFailed takes what the broker says of the batch.
func (e *epoch) batchFailed(err error) {
	if e.refusal(err) != nil {
		e.refused.Store(true)
	}
	e.fail(err)
}

// addAlone sends a row alone. If the broker refuses it, addAlone sends an oversize
// control row in its place. The caller holds mu.
func (p *Publisher) addAlone(ctx context.Context, e *epoch, c capture.Change) error {
	err := p.sendAlone(ctx, e, &e.row)
	if err == nil {
		p.caution.stored(len(c.Line))
		p.sentRow(c)
		return nil
	}
	if e.refusal(err) == nil {
		return err
	}
	if p.sendAlone(ctx, e, e.control(stream.NewAlive(p.layout), 0)) != nil {
		return err // it stores nothing, or another writer writes
	}
	if err := e.keepOpen(); err != nil {
		return err
	}
	if err := e.prepare(c, c.Line); err != nil {
		return err
	}
	if err = p.sendAlone(ctx, e, &e.row); err == nil {
		p.sentRow(c)
		return nil
	}
	api := e.refusal(err)
	if api == nil {
		return err
	}
	p.caution.found(len(c.Line))
	key, err := c.KeyJSON(nil)
	if err != nil {
		return fmt.Errorf("encode key of refused row: %w", err)
	}
	reason := fmt.Sprintf("%s (error %d)", api.Description, api.ErrorCode)
	if err := e.prepare(c, lockstep.AppendRefused(nil, c.Txid, c.Xmin, e.changeOf(c), key, int64(len(c.Line)), reason)); err != nil {
		return err
	}
	if err := p.sendAlone(ctx, e, &e.row); err != nil {
		return err
	}
	p.metrics.oversize.Inc()
	p.log.Warn().Uint64("txid", c.Txid).Int("bytes", len(c.Line)).Str("reason", reason).
		Msg("row refused by the broker, not published: change its limits, then update the row")
	return nil
}

// sendAlone publishes a message outside the batch. It returns nil when the broker
// has stored it. Like every message of the epoch it names the sequence of its
// predecessor, and nothing is sent before its answer came. So it is fenced as they
// are (I6), and the batch goes on after it.
func (p *Publisher) sendAlone(ctx context.Context, e *epoch, msg *nats.Msg) error {
	ctx, end := p.whileConnected(ctx)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, p.opt.Timing.StoredWithin)
	defer cancel()
	ack, err := p.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if err != nil {
		return fmt.Errorf("publish: %w", orLost(ctx, err))
	}
	if ack.Sequence != e.seq+1 {
		return fmt.Errorf("%w: sequence %d was expected, %d was given", errOvertaken, e.seq+1, ack.Sequence)
	}
	e.count(msg)
	e.confirmed(e.seq)
	return nil
}

// leftOut handles a row that the stream can't hold in any form, because not even the
// headers of its control row fit. No version of it was ever published, so nothing
// is out of date.
func (p *Publisher) leftOut(c capture.Change, size *tooLargeError) {
	p.metrics.oversize.Inc()
	p.log.Warn().Uint64("txid", c.Txid).Int64("bytes", size.bytes).Str("reason", size.by).
		Msg("row left out: its key is too long for the broker")
}
