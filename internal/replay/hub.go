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
	"golang.org/x/sync/singleflight"
)

// Options are a hub's; zero values have the defaults named.
type Options struct {
	// Prefix is that of the bridge's streams.
	Prefix string
	// CacheBytes bounds the memory of the blocks of all relations; 64 MiB.
	CacheBytes int
	// CacheDir is a folder for blocks that are not in memory, empty for none. It is for this
	// hub alone. CacheDiskBytes bounds the files there; 4 GiB. CacheKept says that the files
	// stay when the hub ends, and that those of an earlier hub are taken up.
	CacheDir       string
	CacheDiskBytes int64
	CacheKept      bool
	// Native is the form in which blocks keep documents; as they are.
	Native Native
	// ColdReaders bounds the readers of what is in no block, of all relations; 8.
	ColdReaders int
	// IdleTime is how long a relation that nobody reads is still read; 1 min.
	IdleTime time.Duration
	// Wait is how long a request waits for what it needs; 10 s.
	Wait time.Duration
	// Past is a connection for what cold readers read: new rows, and answers to requests,
	// would wait after up to 4 MiB for each of them. By default it is the hub's.
	Past jetstream.JetStream
}

// Hub serves every relation of one broker.
type Hub struct {
	// Static after construction.
	nc      *nats.Conn
	js      jetstream.JetStream
	opt     Options
	log     zerolog.Logger
	metrics *Metrics
	cache   *cache
	// disk is nil if there is none.
	disk *disk
	// reading has a place for each cold reader that may read, and queued counts those
	// that wait for one.
	reading chan struct{}
	queued  atomic.Int64
	// gets are the reads of searches that are under way.
	gets singleflight.Group
	// filled is when one filled a block last, in Unix nanoseconds.
	filled atomic.Int64

	mu sync.Mutex
	// Guarded by mu, all by stream name: what is served, and where a stream ended that was
	// found to have gone back.
	relations map[string]*relation
	setBack   map[string]follow.Place
	// questions has, for each stream whose leader is being asked, the question that will
	// be asked next, nil for none.
	questions map[string]*question
	lost      chan struct{}

	startMu sync.Mutex
	// Guarded by startMu: runs a function in a goroutine of Run's, nil before and after.
	start func(func(context.Context))
}

// NewHub returns a hub; Run must run while it is used.
func NewHub(js jetstream.JetStream, opt Options, m *Metrics, log zerolog.Logger) *Hub {
	opt.Prefix = orDefault(opt.Prefix, stream.DefaultPrefix)
	opt.CacheBytes = orDefault(opt.CacheBytes, 64<<20)
	opt.ColdReaders = orDefault(opt.ColdReaders, 8)
	opt.IdleTime = orDefault(opt.IdleTime, time.Minute)
	opt.Wait = orDefault(opt.Wait, 10*time.Second)
	opt.Past = orDefault(opt.Past, js)
	opt.CacheDiskBytes = orDefault(opt.CacheDiskBytes, 4<<30)
	log = log.With().Str("component", "replay").Logger()
	return &Hub{
		disk: newDisk(opt, m.diskBytes, log),
		nc:   js.Conn(), js: js, opt: opt, metrics: m, log: log,
		cache: newCache(opt.CacheBytes), reading: make(chan struct{}, opt.ColdReaders), lost: make(chan struct{}),
		relations: make(map[string]*relation), setBack: make(map[string]follow.Place), questions: make(map[string]*question),
	}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Run owns all readers until ctx ends, and returns when all of them have ended.
func (h *Hub) Run(ctx context.Context) error {
	status, past := h.nc.StatusChanged(nats.RECONNECTING), h.opt.Past.Conn().StatusChanged(nats.RECONNECTING)
	defer h.nc.RemoveStatusListener(status)
	defer h.opt.Past.Conn().RemoveStatusListener(past)
	var wg sync.WaitGroup
	defer wg.Wait()
	if h.disk != nil {
		wg.Go(func() { h.disk.run(ctx) })
	}
	h.setStart(func(run func(context.Context)) { wg.Go(func() { run(ctx) }) })
	for {
		select {
		case <-ctx.Done():
			h.setStart(nil)
			return ctx.Err()
		case <-status:
		case <-past:
		}
		h.mu.Lock()
		close(h.lost)
		h.lost = make(chan struct{})
		h.mu.Unlock()
	}
}

func (h *Hub) setStart(start func(func(context.Context))) {
	h.startMu.Lock()
	defer h.startMu.Unlock()
	h.start = start
}

// spawn runs a function in a goroutine that ends when the hub does. It returns false if
// the hub does not run.
func (h *Hub) spawn(run func(context.Context)) bool {
	h.startMu.Lock()
	defer h.startMu.Unlock()
	if h.start == nil {
		return false
	}
	h.start(run)
	return true
}

// enter waits for a place among the cold readers that may read. It returns false if ctx
// ended before.
func (h *Hub) enter(ctx context.Context) bool {
	h.queued.Add(1)
	defer h.queued.Add(-1)
	select {
	case h.reading <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (h *Hub) exit() { <-h.reading }

// serve runs a relation until nobody reads it any more.
func (h *Hub) serve(r *relation) func(context.Context) {
	return func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go h.stopWhenIdle(ctx, r, cancel)
		r.run(ctx)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.forget(r)
	}
}

// stopWhenIdle ends a relation that nobody reads.
func (h *Hub) stopWhenIdle(ctx context.Context, r *relation, stop func()) {
	tick := time.NewTicker(max(h.opt.IdleTime/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.mu.Lock()
		r.mu.Lock()
		idle := r.clients == 0 && time.Since(r.idleSince) > h.opt.IdleTime
		r.mu.Unlock()
		if idle {
			h.forget(r)
			r.end(errIdle) // so that the next one may take its blocks up
		}
		h.mu.Unlock()
		if idle {
			stop()
			return
		}
	}
}

// errIdle ends a relation that nobody reads.
var errIdle = errors.New("nobody reads the relation")

// forget has the next request begin with a new relation. The caller holds mu.
func (h *Hub) forget(r *relation) {
	if name := r.info.Layout.Stream; h.relations[name] == r {
		delete(h.relations, name)
	}
}

// reconnected returns a channel that is closed when a connection to the broker is lost
// next.
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

// load returns what a block has. If it is on disk and can't be read, it is no block of the
// relation any more.
func (h *Hub) load(b *Block) (view, error) {
	v, read, err := b.load(h.disk)
	switch {
	case err != nil:
		b.relation.remove(b)
	case read:
		h.metrics.diskReads.Inc()
		h.cache.add(b)
		h.cache.trim()
	}
	return v, err
}

// drop forgets a block, in memory and on disk.
func (h *Hub) drop(b *Block) {
	h.cache.drop(b)
	h.disk.drop(b)
}

// running returns what is served of the relation, nil for nothing.
func (h *Hub) running(l stream.Layout) *relation {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.relations[l.Stream]; r != nil && r.over() == nil {
		return r
	}
	return nil
}

// join returns the relation, with the caller as a client. One that has to be begun has
// its tail read from the sequence from on; now is what the stream's leader said when
// that was chosen, and epochs is what the stream's are.
func (h *Hub) join(now *answer, epochs stream.Epochs, from uint64) (*relation, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.relations[now.Layout.Stream]
	if r == nil || r.over() != nil || r.info.Meta.Incarnation != now.Meta.Incarnation {
		r = newRelation(h, now, epochs, from)
		if !h.spawn(h.serve(r)) {
			return nil, fmt.Errorf("%w: the edge is stopping", ErrNotReady)
		}
		h.relations[now.Layout.Stream] = r
	}
	r.join()
	return r, nil
}

// lookup is follow.Lookup, but returns ErrUnknownRelation if there is no stream.
func (h *Hub) lookup(ctx context.Context, l stream.Layout) (follow.Info, error) {
	info, err := follow.Lookup(ctx, h.js, h.opt.Prefix, l.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrInvalidStreamName) {
		err = ErrUnknownRelation
	}
	return info, err
}
