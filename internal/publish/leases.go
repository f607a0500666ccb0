package publish

import (
	"context"
	"errors"
	"sync"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// LeaseOptions configure the leases of a process.
type LeaseOptions struct {
	// Prefix is that of the streams.
	Prefix string
	// Holder names this process. Each process needs another name.
	Holder string
	// Replicas is Settings.Replicas of the streams.
	Replicas int
	// Timing is set only by tests. Its zero value is right for production.
	Timing Timing
}

// Leases are the leases of all publishers of a process. One loop renews them
// all, because hundreds of loops cost more than all else that a bridge does for
// quiet relations.
type Leases struct {
	// Static after construction.
	js     jetstream.JetStream
	bucket string
	opt    LeaseOptions
	// turns has a token for each publisher that begins an epoch (see turn).
	turns chan struct{}

	mu sync.Mutex
	// Guarded by mu. held are the leases that this process holds. kv is the bucket,
	// nil until it is open.
	held map[*lease]struct{}
	kv   jetstream.KeyValue
}

// NewLeases returns the leases of a process. It holds none yet. Run renews those
// that it takes.
func NewLeases(js jetstream.JetStream, opt LeaseOptions) (*Leases, error) {
	opt.Timing = opt.Timing.withDefaults()
	// An acknowledgement that never comes must not stay in the client's memory.
	js, err := stream.JetStream(js.Conn(), js.Options().Domain, jetstream.WithPublishAsyncTimeout(requestTimeout))
	if err != nil {
		return nil, err
	}
	return &Leases{
		js: js, bucket: stream.LeaseBucket(opt.Prefix), opt: opt,
		turns: make(chan struct{}, maxBeginning), held: make(map[*lease]struct{}),
	}, nil
}

// lease returns the lease of a stream.
func (a *Leases) lease(key string, lost func(), log zerolog.Logger) *lease {
	return &lease{all: a, key: key, lost: lost, log: log}
}

// Run renews the leases until ctx ends.
func (a *Leases) Run(ctx context.Context) error {
	t := time.NewTicker(a.opt.Timing.Tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			a.renew(ctx)
		}
	}
}

// errLeaseLost says that another bridge may be writing now.
var errLeaseLost = errors.New("the lease was lost, another bridge may be writing")

// renewAtOnce bounds the renewals whose answers are awaited at the same time.
const renewAtOnce = 256

// renew prolongs all leases that are held. If the server refuses that, the lease
// has expired, or an answer was lost. Then lease.try says who holds it. Only if
// another bridge does, the epoch ends. A lease that could not be renewed is
// renewed with the next tick; if it expires meanwhile, the fence still protects
// the stream.
func (a *Leases) renew(ctx context.Context) {
	a.mu.Lock()
	held := make([]*lease, 0, len(a.held))
	for l := range a.held {
		held = append(held, l)
	}
	a.mu.Unlock()
	for len(held) > 0 {
		n := min(len(held), renewAtOnce)
		for _, l := range a.renewed(ctx, held[:n]) {
			if has, err := l.try(ctx); err == nil && !has {
				l.lost()
			}
		}
		held = held[n:]
	}
}

// renewed prolongs the leases. It returns those that the server refused to
// prolong.
func (a *Leases) renewed(ctx context.Context, leases []*lease) (doubtful []*lease) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answers := make([]jetstream.PubAckFuture, len(leases))
	for i, l := range leases {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.revision != 0 {
			answers[i], _ = a.js.PublishMsgAsync(l.message(), l.renewal(l.revision)...)
		}
	}
	for i, l := range leases {
		if answers[i] == nil {
			continue
		}
		select {
		case ack := <-answers[i].Ok():
			l.revision = ack.Sequence
		case err := <-answers[i].Err():
			if refused(err) {
				doubtful = append(doubtful, l)
			}
		case <-ctx.Done():
		}
	}
	return doubtful
}

// open returns the bucket, and creates it if it does not exist. It gives the
// bucket as many replicas as streams get: a bucket on a single server of a
// cluster is not available while that server is down.
func (a *Leases) open(ctx context.Context) (jetstream.KeyValue, error) {
	a.mu.Lock()
	kv := a.kv
	a.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	kv, err := a.make(ctx)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kv = kv
	return kv, nil
}

// forget makes the next open look whether the bucket exists.
func (a *Leases) forget(kv jetstream.KeyValue) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kv == kv { // else another lease has opened it again
		a.kv = nil
	}
}

func (a *Leases) make(ctx context.Context) (jetstream.KeyValue, error) {
	cfg := jetstream.KeyValueConfig{
		Bucket: a.bucket, Description: "lockstep: which bridge writes which stream",
		Storage: jetstream.MemoryStorage, History: 1, LimitMarkerTTL: time.Minute,
	}
	kv, err := a.js.KeyValue(ctx, a.bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = withReplicas(a.js, a.opt.Replicas, func(n int) error {
			cfg.Replicas = n
			kv, err = a.js.CreateKeyValue(ctx, cfg)
			return err
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = a.js.KeyValue(ctx, a.bucket)
		}
		return kv, err
	}
	if err != nil {
		return nil, err
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.Replicas = wantedReplicas(a.js, a.opt.Replicas); cfg.Replicas <= status.Config().Replicas {
		return kv, nil
	}
	if raised, err := a.js.UpdateKeyValue(ctx, cfg); err == nil {
		return raised, nil
	} else if !tooFewServers(err) {
		return nil, err
	}
	return kv, nil
}

const (
	// maxBeginning bounds how many publishers begin an epoch at the same time. If
	// hundreds did, none of them would get the broker's answers in time.
	maxBeginning = 32
	// turnWithin bounds the wait for a turn. So streams that don't answer keep the
	// others from beginning only for so long (I10).
	turnWithin = 5 * time.Second
)

// turn waits until fewer than maxBeginning publishers begin, but no longer than
// turnWithin. The caller calls done when it has begun.
func (a *Leases) turn(ctx context.Context) (done func(), err error) {
	t := time.NewTimer(turnWithin)
	defer t.Stop()
	select {
	case a.turns <- struct{}{}:
		return func() { <-a.turns }, nil
	case <-t.C:
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
