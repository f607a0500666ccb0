package replay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// Options are a hub's; zero values have the defaults named.
type Options struct {
	// Prefix is that of the bridge's streams.
	Prefix string
	// CacheBytes bounds the ring of each relation; 64 MiB.
	CacheBytes int
	// Catchups bounds the clients that read from the broker at once, because
	// they are older than the ring; 16.
	Catchups int
	// IdleTime is how long a relation that nobody reads is still read; 1 min.
	IdleTime time.Duration
	// Wait is how long a request waits for what it needs; 10 s.
	Wait time.Duration
}

// Hub serves every relation of one broker.
type Hub struct {
	// Static after construction.
	nc       *nats.Conn
	js       jetstream.JetStream
	opt      Options
	log      zerolog.Logger
	metrics  *Metrics
	catchups chan struct{}
	// queued counts the clients that wait for a place among those.
	queued atomic.Int64

	mu sync.Mutex
	// Guarded by mu: by stream name, and where a stream ended that was found to
	// have gone back.
	tails map[string]*tail
	// questions has, for each stream whose leader is being asked, the question that will
	// be asked next, nil for none.
	questions map[string]*question
	setBack   map[string]follow.Place
	// start runs a tail for as long as Run runs, nil before and after.
	start func(*tail)
	lost  chan struct{}
}

// NewHub returns a hub; Run must run while it is used.
func NewHub(nc *nats.Conn, js jetstream.JetStream, opt Options, m *Metrics, log zerolog.Logger) *Hub {
	opt.Prefix = orDefault(opt.Prefix, stream.DefaultPrefix)
	opt.CacheBytes = orDefault(opt.CacheBytes, 64<<20)
	opt.Catchups = orDefault(opt.Catchups, 16)
	opt.IdleTime = orDefault(opt.IdleTime, time.Minute)
	opt.Wait = orDefault(opt.Wait, 10*time.Second)
	return &Hub{
		nc: nc, js: js, opt: opt, metrics: m, log: log.With().Str("component", "replay").Logger(),
		catchups: make(chan struct{}, opt.Catchups), tails: make(map[string]*tail), questions: make(map[string]*question), setBack: make(map[string]follow.Place), lost: make(chan struct{}),
	}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Run owns the tails until ctx ends, and returns when all of them have ended.
func (h *Hub) Run(ctx context.Context) error {
	status := h.nc.StatusChanged(nats.RECONNECTING)
	defer h.nc.RemoveStatusListener(status)
	var wg sync.WaitGroup
	defer wg.Wait()
	h.mu.Lock()
	h.start = func(t *tail) {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go h.stopWhenIdle(ctx, t, cancel)
			t.run(ctx)
			h.forget(t)
		})
	}
	h.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			h.mu.Lock()
			h.start = nil
			h.mu.Unlock()
			return ctx.Err()
		case <-status:
			h.mu.Lock()
			close(h.lost)
			h.lost = make(chan struct{})
			h.mu.Unlock()
		}
	}
}

// stopWhenIdle ends a tail that nobody reads.
func (h *Hub) stopWhenIdle(ctx context.Context, t *tail, stop func()) {
	tick := time.NewTicker(max(h.opt.IdleTime/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.mu.Lock()
		t.mu.Lock()
		idle := t.clients == 0 && time.Since(t.idleSince) > h.opt.IdleTime
		t.mu.Unlock()
		if idle && h.tails[t.info.Layout.Stream] == t {
			delete(h.tails, t.info.Layout.Stream)
		}
		h.mu.Unlock()
		if idle {
			stop()
			return
		}
	}
}

func (h *Hub) forget(t *tail) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tails[t.info.Layout.Stream] == t {
		delete(h.tails, t.info.Layout.Stream)
	}
}

// reconnected returns a channel that is closed when the connection to the
// broker is lost next.
func (h *Hub) reconnected() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// errLost says that the connection to the broker was lost.
var errLost = errors.New("the connection to the broker was lost")

// untilLost returns a context that ends when the connection to the broker is lost:
// who awaits an answer then would wait in vain. The caller calls cancel.
func (h *Hub) untilLost(ctx context.Context) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	lost := h.reconnected()
	go func() {
		select {
		case <-lost:
			end(errLost)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { end(nil) }
}

// running returns the relation's tail, nil where there is none.
func (h *Hub) running(l stream.Layout) *tail {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tails[l.Stream]
}

// tail returns the relation's tail, with the caller as a client. One that has
// to be started reads from the sequence from on; epochs is what the stream's
// were when that was chosen.
func (h *Hub) tail(info stream.Relation, from uint64, epochs stream.Epochs) (*tail, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.start == nil {
		return nil, fmt.Errorf("%w: the edge is stopping", ErrNotReady)
	}
	t := h.tails[info.Layout.Stream]
	if t == nil || t.over() || t.info.Meta.Incarnation != info.Meta.Incarnation {
		t = newTail(h, info, from, epochs)
		h.tails[info.Layout.Stream] = t
		h.start(t)
	}
	t.join()
	return t, nil
}

// lookup is follow.Lookup, but returns ErrUnknownRelation if there is no stream.
func (h *Hub) lookup(ctx context.Context, l stream.Layout) (follow.Info, error) {
	info, err := follow.Lookup(ctx, h.js, h.opt.Prefix, l.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrInvalidStreamName) {
		err = ErrUnknownRelation
	}
	return info, err
}
