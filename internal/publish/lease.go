package publish

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// lease decides which of several bridges tries to write a stream. It is a key
// with a time to live, in a bucket that the broker keeps in memory. A broker that
// restarts forgets it. This does no harm, because fences protect the stream, not
// leases.
type lease struct {
	// Static after construction.
	nc          *nats.Conn
	js          jetstream.JetStream
	bucket, key string
	holder      string
	// replicas is Limits.Replicas of the publisher.
	replicas int
	timing   Timing
	log      zerolog.Logger

	mu sync.Mutex
	// revision is that of the key while we hold the lease, 0 otherwise. Guarded
	// by mu.
	revision uint64
	// raised is set once the bucket has its replicas or can get no more. Guarded
	// by mu.
	raised bool
}

// acquire blocks until we hold the lease. It asks the server even if we should
// still hold it: two writers that trust their memory would depose each other for
// ever. If it has to wait, it first calls standby, once.
func (l *lease) acquire(ctx context.Context, standby func()) error {
	waiting := false
	for {
		held, err := l.try(ctx)
		if err != nil {
			return err
		}
		if held {
			if waiting {
				l.log.Info().Msg("lease of the other bridge ended, taking over")
			}
			return nil
		}
		if !waiting {
			waiting = true
			l.log.Info().Msg("another bridge writes this stream, standing by")
			standby()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(l.timing.LeaseRetry):
		}
	}
}

func (l *lease) try(ctx context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	kv, err := l.open(ctx)
	if err != nil {
		return false, fmt.Errorf("open lease bucket %s: %w", l.bucket, err)
	}
	entry, err := kv.Get(ctx, l.key)
	switch {
	case err == nil && string(entry.Value()) == l.holder:
		l.revision = entry.Revision()
		err := l.renewLocked(ctx)
		if errors.Is(err, errLeaseLost) {
			return false, nil
		}
		return err == nil, err
	case err == nil:
		return false, nil
	case !errors.Is(err, jetstream.ErrKeyNotFound):
		return false, fmt.Errorf("read lease %s: %w", l.key, err)
	}
	rev, err := kv.Create(ctx, l.key, []byte(l.holder), jetstream.KeyTTL(l.timing.LeaseTTL))
	if errors.Is(err, jetstream.ErrKeyExists) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("take lease %s: %w", l.key, err)
	}
	l.revision = rev
	return true, nil
}

// open returns the bucket, and creates it if it does not exist. It gives the
// bucket as many replicas as streams get: a bucket on a single server of a
// cluster is not available while that server is down.
func (l *lease) open(ctx context.Context) (jetstream.KeyValue, error) {
	cfg := jetstream.KeyValueConfig{
		Bucket: l.bucket, Description: "lockstep: which bridge writes which stream",
		Storage: jetstream.MemoryStorage, History: 1, LimitMarkerTTL: time.Minute,
	}
	kv, err := l.js.KeyValue(ctx, l.bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = withReplicas(l.nc, l.replicas, func(n int) error {
			cfg.Replicas = n
			kv, err = l.js.CreateKeyValue(ctx, cfg)
			return err
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = l.js.KeyValue(ctx, l.bucket)
		}
		return kv, err
	}
	if err != nil || l.raised {
		return kv, err
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, err
	}
	l.raised = true
	if cfg.Replicas = wantedReplicas(l.nc, l.replicas); cfg.Replicas <= status.Config().Replicas {
		return kv, nil
	}
	if raised, err := l.js.UpdateKeyValue(ctx, cfg); err == nil {
		return raised, nil
	} else if !tooFewServers(err) {
		return nil, err
	}
	return kv, nil
}

// errLeaseLost says that another bridge may be writing now.
var errLeaseLost = errors.New("the lease was lost, another bridge may be writing")

// renew prolongs the lease. It publishes to the key's subject itself, because
// kv.Update would remove the key's time to live.
func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewLocked(ctx)
}

func (l *lease) renewLocked(ctx context.Context) error {
	msg := &nats.Msg{Subject: "$KV." + l.bucket + "." + l.key, Data: []byte(l.holder)}
	ack, err := l.js.PublishMsg(ctx, msg, jetstream.WithMsgTTL(l.timing.LeaseTTL), jetstream.WithExpectLastSequencePerSubject(l.revision))
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return fmt.Errorf("%w: %w", errLeaseLost, err)
	}
	if err != nil {
		return fmt.Errorf("renew lease %s: %w", l.key, err)
	}
	l.revision = ack.Sequence
	return nil
}

// release gives the lease up, so that a standby does not wait until it expires.
func (l *lease) release(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.revision == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if kv, err := l.js.KeyValue(ctx, l.bucket); err == nil {
		// If this fails, the lease expires by itself.
		_ = kv.Delete(ctx, l.key, jetstream.LastRevision(l.revision))
	}
	l.revision = 0
}
