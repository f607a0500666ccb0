package publish

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// lease decides which of several bridges tries to write a stream. It is a key
// with a time to live, in a bucket that the broker keeps in memory. A broker that
// restarts forgets it. This does no harm, because fences protect the stream, not
// leases.
type lease struct {
	// Static after construction. lost is called if another bridge has the lease.
	all  *Leases
	key  string
	lost func()
	log  zerolog.Logger

	mu sync.Mutex
	// revision is that of the key while we hold the lease, 0 otherwise. Guarded
	// by mu.
	revision uint64
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
		case <-time.After(l.all.opt.Timing.LeaseRetry):
		}
	}
}

// try takes the lease, or makes sure that we hold it. It returns false if another
// bridge has it. Else Leases.Run renews it from then on.
func (l *lease) try(ctx context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	entry, err := l.read(ctx)
	if err != nil {
		return false, err
	}
	revision := uint64(0) // of a lease that another bridge has
	switch {
	case entry == nil:
		revision, err = l.take(ctx)
	case string(entry.Value()) == l.all.opt.Holder:
		revision, err = l.keep(ctx, entry.Revision())
	}
	if err != nil {
		return false, err
	}
	l.hold(revision)
	return revision != 0, nil
}

// read returns the lease as the server has it, nil if nobody holds it. It opens
// the bucket again if it can't be read: a broker that restarts has forgotten it.
func (l *lease) read(ctx context.Context) (jetstream.KeyValueEntry, error) {
	for again := false; ; again = true {
		kv, err := l.all.open(ctx)
		if err != nil {
			return nil, fmt.Errorf("open lease bucket %s: %w", l.all.bucket, err)
		}
		entry, err := kv.Get(ctx, l.key)
		switch {
		case err == nil:
			return entry, nil
		case errors.Is(err, jetstream.ErrKeyNotFound):
			return nil, nil
		case again || ctx.Err() != nil:
			return nil, fmt.Errorf("read lease %s: %w", l.key, err)
		}
		l.all.forget(kv)
	}
}

// take takes a lease that nobody holds. It returns 0 if another bridge was faster.
func (l *lease) take(ctx context.Context) (revision uint64, err error) {
	kv, err := l.all.open(ctx)
	if err == nil {
		revision, err = kv.Create(ctx, l.key, []byte(l.all.opt.Holder), jetstream.KeyTTL(l.all.opt.Timing.LeaseTTL))
	}
	if errors.Is(err, jetstream.ErrKeyExists) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("take lease %s: %w", l.key, err)
	}
	return revision, nil
}

// keep renews our own lease. It returns 0 if it is no longer ours.
func (l *lease) keep(ctx context.Context, revision uint64) (uint64, error) {
	ack, err := l.all.js.PublishMsg(ctx, l.message(), l.renewal(revision)...)
	if refused(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("renew lease %s: %w", l.key, err)
	}
	return ack.Sequence, nil
}

// hold sets the revision. While it is not 0, Leases.Run renews the lease. The
// caller holds mu.
func (l *lease) hold(revision uint64) {
	l.revision = revision
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	if revision == 0 {
		delete(l.all.held, l)
	} else {
		l.all.held[l] = struct{}{}
	}
}

// message prolongs the lease. It goes to the key's subject itself, because
// kv.Update would remove the key's time to live.
func (l *lease) message() *nats.Msg {
	return &nats.Msg{Subject: stream.LeaseSubject(l.all.js, l.all.bucket, l.key), Data: []byte(l.all.opt.Holder)}
}

func (l *lease) renewal(revision uint64) []jetstream.PublishOpt {
	return []jetstream.PublishOpt{jetstream.WithMsgTTL(l.all.opt.Timing.LeaseTTL), jetstream.WithExpectLastSequencePerSubject(revision)}
}

// refused says whether the key, or the bucket, is not as it was when we last wrote
// it.
func refused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) || errors.Is(err, jetstream.ErrNoStreamResponse)
}

// release gives the lease up, so that a standby does not wait until it expires.
func (l *lease) release(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	revision := l.revision
	if revision == 0 {
		return
	}
	l.hold(0)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	kv, err := l.all.open(ctx)
	if err != nil || kv.Delete(ctx, l.key, jetstream.LastRevision(revision)) == nil {
		return
	}
	// A renewal may have been stored whose answer nobody awaited any longer. If this fails, too, the lease expires by
	// itself.
	if entry, err := kv.Get(ctx, l.key); err == nil && string(entry.Value()) == l.all.opt.Holder {
		_ = kv.Delete(ctx, l.key, jetstream.LastRevision(entry.Revision()))
	}
}
