package publish

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
)

// requestTimeout bounds one request to the broker.
const requestTimeout = 5 * time.Second

// errOvertaken says that another writer stored a message after we read the
// stream's end and before our fence.
var errOvertaken = errors.New("another writer stored a message first")

// Begin implements capture.Sink.
func (p *Publisher) Begin(ctx context.Context, src capture.Source, standby func()) (capture.Position, error) {
	p.end(ctx)
	if err := p.awaitConnected(ctx); err != nil {
		return capture.Position{}, err
	}
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	pos, err := p.begin(ctx, src, standby)
	return pos, orLost(ctx, err)
}

func (p *Publisher) begin(ctx context.Context, src capture.Source, standby func()) (capture.Position, error) {
	// A standby has its stream, too, and finds at once that it holds another source's
	// rows.
	if err := p.inTurn(ctx, func() error {
		if err := p.checkDestination(ctx); err != nil {
			return err
		}
		_, err := p.ensureStream(ctx, src)
		return err
	}); err != nil {
		return capture.Position{}, err
	}
	for pause := beginPause; ; pause = min(2*pause, maxBeginPause) {
		if err := p.lease.acquire(ctx, standby); err != nil {
			return capture.Position{}, err
		}
		var pos capture.Position
		err := p.inTurn(ctx, func() error {
			var err error
			pos, err = p.beginEpoch(ctx, src)
			return err
		})
		if !errors.Is(err, errOvertaken) {
			return pos, err
		}
		p.log.Info().Msg("another writer stored a message first, trying again")
		select {
		case <-ctx.Done():
			return capture.Position{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// inTurn calls f when it is this publisher's turn to begin (see Leases.turn).
func (p *Publisher) inTurn(ctx context.Context, f func() error) error {
	done, err := p.opt.Leases.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f()
}

// Pauses between two tries to store a fence. They are needed because a broker
// without room to store a message also answers that the sequence is wrong.
const (
	beginPause    = 20 * time.Millisecond
	maxBeginPause = 2 * time.Second
)

// end closes the epoch, if there is one.
func (p *Publisher) end(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch != nil {
		if p.epoch.refused.Load() {
			p.caution.batchRefused()
		}
		p.epoch.close(ctx)
		p.epoch = nil
	}
}

// tail is the end of a stream as the stream's leader has it.
type tail struct {
	config     jetstream.StreamConfig
	last       uint64
	high       uint64
	heartbeat  *capture.Heartbeat
	heartbeats uint64 // the sequence of heartbeat
	fence      uint64 // the sequence of the last fence
	epochs     stream.Epochs
	// incarnation is the one that the newer of last fence and heartbeat names.
	incarnation string
	// foreign describes a message that no bridge wrote, and is empty without
	// one. Such a message may have replaced a row.
	foreign string
}

// beginEpoch stores the fence, then reads the position and opens the batch.
func (p *Publisher) beginEpoch(ctx context.Context, src capture.Source) (capture.Position, error) {
	meta, err := p.ensureStream(ctx, src)
	if err != nil {
		return capture.Position{}, err
	}
	if err := p.updateSettings(ctx); err != nil {
		return capture.Position{}, err
	}
	t, err := p.readTail(ctx)
	if err != nil {
		return capture.Position{}, err
	}
	reason := foreign(meta, src, p.opt.Log)
	if reason == "" && t.incarnation == meta.Incarnation {
		reason = t.foreign
	}
	if reason != "" {
		shown := uint64(0)
		if next := voidBelow(src); meta.Source.Timeline != src.Timeline && next > 0 {
			shown = next - 1 // also by an end of the stream that the broker may have lost
		}
		if meta, err = p.newIncarnation(ctx, src, reason, shown); err != nil {
			return capture.Position{}, err
		}
		if t, err = p.readTail(ctx); err != nil {
			return capture.Position{}, err
		}
	}
	if t.incarnation != "" && t.incarnation != meta.Incarnation {
		if t, err = p.purge(ctx, t.last); err != nil {
			return capture.Position{}, err
		}
	}
	e, err := newEpoch(p.nc, p.js, p.layout)
	if err != nil {
		return capture.Position{}, err
	}
	e.sizes, e.fills = p.sizesOf(t.config, p.nc.MaxPayload()), t.config.Discard == jetstream.DiscardNew
	e.id, e.incarnation, e.src = nextEpoch(t.epochs), meta.Incarnation, src
	e.floor, e.storedFloor = meta.Floor, meta.Floor
	e.high, e.seq = t.high, t.last+1
	e.epochs = t.epochs.Append(stream.Epoch{ID: e.id, First: e.seq})
	if err := p.fence(ctx, e.incarnation, e.epochs, e.high, e.floor); err != nil {
		return capture.Position{}, err
	}
	pos, err := p.position(ctx, t)
	if err != nil {
		return capture.Position{}, err
	}
	pos.Restarted, pos.Tidied = reason, meta.Tidied
	// We don't know when the schema was stored. schemaAt stays zero, so a log
	// gets it again with the first heartbeat.
	e.schema = pos.Schema
	// The first message waits for the server's answer. So we learn here if the
	// server refuses to open the batch.
	if err := e.add(stream.NewAlive(p.layout), 0); err != nil {
		e.close(ctx)
		return capture.Position{}, err
	}
	p.mu.Lock()
	p.epoch = e
	p.mu.Unlock()
	p.metrics.epochs.Inc()
	p.log.Info().Str("epoch", e.id).Uint64("seq", e.seq).Msg("epoch begun")
	return pos, nil
}

// nextEpoch returns the ID of an epoch that follows those.
func nextEpoch(epochs stream.Epochs) string {
	previous := ""
	if len(epochs) > 0 {
		previous = epochs[len(epochs)-1].ID
	}
	return stream.NewID(previous, time.Now())
}

// readTail reads the stream's end. It makes several requests, so its result is
// certain only once a fence is stored that expects tail.last.
func (p *Publisher) readTail(ctx context.Context) (tail, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return tail{}, fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	t := tail{config: s.CachedInfo().Config, last: s.CachedInfo().State.LastSeq}
	marks, err := follow.ReadMarks(ctx, p.js, p.layout)
	if err != nil {
		return tail{}, err
	}
	if fence := marks.Fence; fence != nil {
		if err := t.take(fence); err != nil {
			t.foreign = err.Error()
		} else {
			t.fence, t.incarnation = fence.Seq, fence.Header.Get(stream.IncarnationHeader)
		}
	}
	if marks.Heartbeat != nil {
		if err := t.takeHeartbeat(marks.Heartbeat); err != nil {
			t.foreign = err.Error()
		}
	}
	if err := p.takeEnd(ctx, &t); err != nil {
		return tail{}, err
	}
	return t, nil
}

// takeHeartbeat reads the last heartbeat. Where it is newer than the last fence,
// the epochs are taken from it too: in a log the fence may have expired.
func (t *tail) takeHeartbeat(msg *follow.Stored) error {
	hb, err := stream.ParseHeartbeat(msg.Header, msg.Data)
	if err != nil {
		return fmt.Errorf("parse heartbeat %d: %w", msg.Seq, err)
	}
	incarnation, err := stream.Incarnation(msg.Data)
	if err != nil {
		return fmt.Errorf("parse heartbeat %d: %w", msg.Seq, err)
	}
	if msg.Seq > t.fence {
		if err := t.take(msg); err != nil {
			return err
		}
		t.incarnation = incarnation
	}
	t.heartbeat, t.heartbeats = &hb, msg.Seq
	return nil
}

// maxForeign is how many foreign messages at the stream's end takeEnd passes
// over in its search for a bridge's message.
const maxForeign = 1000

// takeEnd takes High from the last message that a bridge wrote, which has the
// highest of all. There may be no such message, for example after a purge by
// hand.
func (p *Publisher) takeEnd(ctx context.Context, t *tail) error {
	next := follow.Next(p.js, p.layout)
	for seq := t.last; seq > 0 && seq+maxForeign > t.last; seq-- {
		end, err := next(ctx, seq)
		if err != nil || end == nil {
			return err
		}
		high, err := stream.High(end.Header)
		if err == nil {
			t.high = max(t.high, high)
			return nil
		}
		t.foreign = fmt.Sprintf("no bridge wrote message %d: %v", seq, err)
	}
	return nil
}

// take reads the epoch list and High of a fence or heartbeat.
func (t *tail) take(msg *follow.Stored) error {
	high, err := stream.High(msg.Header)
	if err != nil {
		return fmt.Errorf("parse message %d: %w", msg.Seq, err)
	}
	t.high = max(t.high, high)
	t.epochs, err = stream.ParseEpochs(msg.Header.Get(stream.EpochsHeader))
	return err
}

// fence stores the fence of the last epoch in epochs. It returns errOvertaken
// where the stream no longer ends directly before that fence.
func (p *Publisher) fence(ctx context.Context, incarnation string, epochs stream.Epochs, high, floor uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	seq := epochs[len(epochs)-1].First
	msg := stream.NewFence(p.layout, incarnation, epochs, floor)
	msg.Header[stream.HighHeader] = []string{strconv.FormatUint(high, 10)}
	ack, err := p.js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequence(seq-1), jetstream.WithRetryAttempts(0))
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return errOvertaken
	}
	if err != nil {
		return fmt.Errorf("publish fence: %w", err)
	}
	if ack.Sequence != seq {
		return errOvertaken
	}
	return nil
}

// position reads what a capture needs to go on, once the fence is stored. It
// returns errOvertaken where the stream's last heartbeat is not the one in t.
func (p *Publisher) position(ctx context.Context, t tail) (capture.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	pos := capture.Position{High: t.high, Heartbeat: t.heartbeat}
	msg, err := follow.Last(ctx, p.js, p.layout, p.layout.Heartbeat())
	if err != nil {
		return capture.Position{}, err
	}
	if (msg != nil) != (t.heartbeat != nil) || msg != nil && msg.Seq != t.heartbeats {
		return capture.Position{}, errOvertaken
	}
	if pos.Loose, err = p.rowsAfter(ctx, t.heartbeats, t.last); err != nil {
		return capture.Position{}, err
	}
	if msg, err = follow.Last(ctx, p.js, p.layout, p.layout.SchemaSubject()); err != nil {
		return capture.Position{}, err
	}
	if msg != nil {
		pos.Schema = msg.Data
	}
	msg, err = follow.Last(ctx, p.js, p.layout, p.layout.Batch())
	if err != nil || msg == nil || msg.Seq < t.heartbeats {
		return pos, err
	}
	b, err := stream.ParseBatch(msg.Data)
	if err != nil {
		return capture.Position{}, fmt.Errorf("parse announcement of stream %s: %w", p.layout.Stream, err)
	}
	pos.Batch = &b
	if b.LSN != 0 { // it says itself how far it came
		return pos, nil
	}
	pos.After, err = p.lastRow(ctx, msg.Seq, t.last)
	return pos, err
}

// rowsAfter says whether the stream has a row after the sequence after, up to
// last.
func (p *Publisher) rowsAfter(ctx context.Context, after, last uint64) (bool, error) {
	if after >= last {
		return false, nil
	}
	row, err := follow.RowAfter(ctx, p.js, p.layout, after)
	return row != nil && row.Seq <= last, err
}

// lastRow returns the place of the last row after the sequence after, or nil if
// there is none. It probes from the end in growing steps and then halves the
// distance. Asking for the last message of a wildcard would be simpler, but the
// server would then look through all subjects.
func (p *Publisher) lastRow(ctx context.Context, after, last uint64) (*capture.RowPosition, error) {
	lo, hi := after, last+1 // the last row is at lo or later, and before hi
	var found *follow.Stored
	probe := func(from uint64) (bool, error) {
		msg, err := follow.FirstFrom(ctx, p.js, p.layout, p.layout.Rows(), from)
		if err != nil {
			return false, err
		}
		if msg == nil || msg.Seq > last {
			hi = from
			return false, nil
		}
		found, lo = msg, msg.Seq
		return true, nil
	}
	for step := uint64(1); found == nil; step *= 2 {
		from := after + 1
		if last > after+step {
			from = last - step
		}
		ok, err := probe(from)
		if err != nil {
			return nil, err
		}
		if !ok && from == after+1 {
			return nil, nil
		}
	}
	for hi-lo > 1 {
		if _, err := probe(lo + (hi-lo)/2); err != nil {
			return nil, err
		}
	}
	txid, ok := lockstep.Txid(found.Data)
	if !ok {
		return nil, fmt.Errorf("row %d of stream %s: %w", lo, p.layout.Stream, stream.ErrLayout)
	}
	key, err := p.layout.Key(found.Subject, found.Header.Get(stream.KeyHeader))
	if err != nil {
		return nil, fmt.Errorf("row %d of stream %s: %w", lo, p.layout.Stream, err)
	}
	return &capture.RowPosition{Txid: txid, Key: key}, nil
}
