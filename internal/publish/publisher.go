// Package publish stores in a relation's stream, in order, what a capture read
// from Postgres. It fences out every other writer of the stream. The bridge
// uses a Publisher as its capture.Sink.
//
// # Epochs
//
// An epoch is one uninterrupted run of one writer. It begins with a fence: a
// message that the server stores only if the stream still ends where this
// writer saw it end. All later messages of the epoch go into one fast-ingest
// batch. Each names the sequence of its predecessor
// (Nats-Expected-Last-Sequence). The server ends the batch at the first message
// that does not fit.
//
// So what is stored is always an unbroken prefix of what was sent (I6, I7). This
// holds for every fault: a foreign message, a lost tail, a paused writer that
// wakes, a broker that is killed in the middle. A heartbeat therefore needs no
// wait for acknowledgements: the server stores it only after everything before
// it.
//
// Any fault ends the epoch. The methods of capture.Sink then return the fault
// until Begin starts the next epoch.
//
// # Leases
//
// A lease (a key with a time to live) decides which of several bridges tries to
// write. It does not protect the stream; the fence does.
package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// Options configure a Publisher. Prefix must have passed stream.CheckPrefix.
type Options struct {
	Prefix        string
	Schema, Table string
	// Log keeps every version of a row, not only the latest.
	Log      bool
	Settings stream.Settings
	// Tombstones is how long deleted rows are kept; 0 means for ever.
	Tombstones time.Duration
	// HeartbeatInterval is the capture's interval. The stream's metadata carries
	// it, so that readers can tell whether the capture is alive.
	HeartbeatInterval time.Duration
	// Leases are those of the process, nil for a publisher that only calls Adopt.
	Leases *Leases
	// Timing is set only by tests. Its zero value is right for production.
	Timing Timing
}

// Timing is how often a Publisher checks things and how long it waits for them. A
// field that is 0 has its default.
type Timing struct {
	// LeaseTTL is how long the lease of a dead writer keeps others waiting. The
	// server counts it in whole seconds. The default is 3 s.
	LeaseTTL time.Duration
	// LeaseRetry is how often a standby tries to get the lease. The default is
	// 400 ms.
	LeaseRetry time.Duration
	// Tick is how often Publisher.Run takes care of the epoch, and Leases.Run renews
	// the leases. The default is 1 s.
	Tick time.Duration
	// StoredWithin is how long the server may take to store a message. The default is
	// 10 s.
	StoredWithin time.Duration
	// Progress is how long Suspects may search before it says how far it has come.
	// After that it says so five times more rarely. The default is 2 s.
	Progress time.Duration
}

func (t Timing) withDefaults() Timing {
	return Timing{
		LeaseTTL: cmp.Or(t.LeaseTTL, 3*time.Second), LeaseRetry: cmp.Or(t.LeaseRetry, 400*time.Millisecond),
		Tick: cmp.Or(t.Tick, time.Second), StoredWithin: cmp.Or(t.StoredWithin, 10*time.Second),
		Progress: cmp.Or(t.Progress, 2*time.Second),
	}
}

// Publisher writes one relation's stream. One goroutine calls its capture.Sink
// methods (any may call Stored and Scan), another one calls Run.
type Publisher struct {
	// Static after construction.
	nc      *nats.Conn
	js      jetstream.JetStream
	opt     Options
	layout  stream.Layout
	log     zerolog.Logger
	metrics relationMetrics
	lease   *lease
	// sizesOf is stream.SizesOf, unless a test replaces it.
	sizesOf func(cfg jetstream.StreamConfig, maxPayload int64) stream.Sizes

	// nextProgress is when Suspects next says how far it has come. Owned by the
	// goroutine that calls the methods of capture.Sink.
	nextProgress time.Time

	// config is held while the stream's configuration is changed.
	config sync.Mutex

	mu sync.Mutex
	// Guarded by mu. epoch is nil before Begin and after its end. caution outlives
	// epochs.
	epoch   *epoch
	caution caution
}

// New returns a publisher, which does nothing until Begin and Run are called.
func New(nc *nats.Conn, js jetstream.JetStream, opt Options, m *Metrics, log zerolog.Logger) *Publisher {
	opt.Timing = opt.Timing.withDefaults()
	l := stream.NewLayout(opt.Prefix, opt.Schema, opt.Table, opt.Log)
	log = log.With().Str("component", "publish").Str("stream", l.Stream).Logger()
	p := &Publisher{
		nc: nc, js: js, opt: opt, layout: l, log: log,
		metrics: m.relation(opt.Schema, opt.Table), sizesOf: stream.SizesOf,
	}
	p.lease = opt.Leases.lease(l.Stream, p.leaseLost, log)
	return p
}

// ErrFault is wrapped by every error that says that the epoch is over. Begin
// starts the next epoch.
var ErrFault = errors.New("the epoch ended")

var errNoEpoch = fmt.Errorf("%w: no other one has begun", ErrFault)

// Schema implements capture.Sink.
func (p *Publisher) Schema(_ context.Context, schema []byte) error {
	return p.send(func(e *epoch) error { return e.addSchema(schema) })
}

// Announce implements capture.Sink.
func (p *Publisher) Announce(_ context.Context, b capture.Batch) error {
	return p.send(func(e *epoch) error {
		if err := e.add(stream.NewBatch(p.layout, b), 0); err != nil {
			return err
		}
		e.mark(b.LSN, 0)
		return nil
	})
}

// Heartbeat implements capture.Sink.
func (p *Publisher) Heartbeat(_ context.Context, hb capture.Heartbeat) error {
	return p.send(func(e *epoch) error {
		if err := e.keepSchema(p.opt.Settings); err != nil {
			return err
		}
		cursor := lockstep.Cursor{Incarnation: e.incarnation, Epoch: e.id, Seq: e.seq + 1, Holds: max(e.high, hb.High), Since: hb.Since}
		msg := stream.NewHeartbeat(p.layout, hb, e.src, e.epochs, e.floor, time.Now().Unix(), cursor)
		if err := e.add(msg, hb.High); err != nil {
			return err
		}
		e.mark(hb.LSN, e.floor)
		p.metrics.heartbeats.Inc()
		return nil
	})
}

// Row implements capture.Sink. If the row is too large for the broker, or the broker
// refuses it, Row sends an oversize control row instead, on the subject of the same
// key.
func (p *Publisher) Row(ctx context.Context, c capture.Change) error {
	p.mu.Lock()
	e, err := p.current()
	if err == nil {
		if err = p.addRow(ctx, e, c); err != nil {
			e.fail(err)
			err = e.fault()
		}
	}
	full := err == nil && e.unconfirmed > windowBytes
	p.mu.Unlock()
	if full {
		return p.awaitWindow(ctx, e)
	}
	return err
}

// Stored implements capture.Sink.
func (p *Publisher) Stored() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch == nil {
		return 0
	}
	return p.epoch.storedLSN
}

// addRow sends a row, or the oversize control row that replaces it. The caller holds
// mu.
func (p *Publisher) addRow(ctx context.Context, e *epoch, c capture.Change) error {
	alone := p.caution.alone(len(c.Line))
	if alone { // the batch may be without a message for long
		if err := e.keepOpen(); err != nil {
			return err
		}
	}
	err := e.prepare(c, c.Line)
	var tooLarge *tooLargeError
	switch {
	case errors.As(err, &tooLarge) && tooLarge.limit < 0:
		p.leftOut(c, tooLarge)
		return nil
	case errors.As(err, &tooLarge):
		return p.addOversize(e, c, tooLarge)
	case err != nil:
		return err
	case alone:
		return p.addAlone(ctx, e, c)
	}
	if err := e.addMsg(&e.row); err != nil {
		return err
	}
	p.sentRow(c)
	return nil
}

func (p *Publisher) sentRow(c capture.Change) {
	p.metrics.rows.Inc()
	p.metrics.bytes.Add(float64(len(c.Line)))
}

// Ended implements capture.Sink.
func (p *Publisher) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch == nil {
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return p.epoch.ended
}

// current returns the epoch, or the error that says why it is over. The caller
// holds mu.
func (p *Publisher) current() (*epoch, error) {
	if p.epoch == nil {
		return nil, errNoEpoch
	}
	if err := p.epoch.fault(); err != nil {
		return nil, err
	}
	return p.epoch, nil
}

// addOversize sends the oversize control row of a row that breaks a known limit.
func (p *Publisher) addOversize(e *epoch, c capture.Change, size *tooLargeError) error {
	key, err := c.KeyJSON(nil)
	if err != nil {
		return fmt.Errorf("encode key of oversize row: %w", err)
	}
	// With the digest, a comparison knows whether the row is still the same.
	if _, data, ok := lockstep.Parts(c.Line); ok {
		e.row.Header[stream.DigestHeader] = []string{fmt.Sprintf("%d %s", e.sizes.Largest(), capture.Digest(data))}
		defer delete(e.row.Header, stream.DigestHeader)
	}
	if err := e.prepare(c, lockstep.AppendOversize(nil, c.Txid, c.Xmin, e.changeOf(c), key, size.bytes, size.limit)); err != nil {
		return err
	}
	if err := e.addMsg(&e.row); err != nil {
		return err
	}
	p.metrics.oversize.Inc()
	p.log.Warn().Uint64("txid", c.Txid).Int64("bytes", size.bytes).Int64("limit", size.limit).Str("reason", size.by).
		Msg("row too large for the broker, not published")
	return nil
}

// changeOf returns what the oversize control row of a log says of the change. In other
// streams a header says it.
func (e *epoch) changeOf(c capture.Change) lockstep.Change {
	if !e.layout.Log() || len(c.Event) == 0 {
		return lockstep.Change{}
	}
	ch, err := lockstep.ParseChange(c.Event)
	if err != nil {
		panic("publish: " + err.Error())
	}
	return ch
}

// Yield implements capture.Sink.
func (p *Publisher) Yield(ctx context.Context) {
	p.end(ctx)
	p.lease.release(ctx)
}

// send calls add with the current epoch.
func (p *Publisher) send(add func(*epoch) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.current()
	if err != nil {
		return err
	}
	if err := add(e); err != nil {
		e.fail(err)
		return e.fault()
	}
	return nil
}
