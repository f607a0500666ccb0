package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
)

// LeaseHolder returns the process that holds the lease of a stream, "" if none
// does.
func LeaseHolder(ctx context.Context, js jetstream.JetStream, prefix, streamName string) (string, error) {
	kv, err := js.KeyValue(ctx, stream.LeaseBucket(prefix))
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open lease bucket: %w", err)
	}
	entry, err := kv.Get(ctx, streamName)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read lease %s: %w", streamName, err)
	}
	return string(entry.Value()), nil
}

// HeldError says that a bridge holds the lease of a stream.
type HeldError struct{ Stream, Holder string }

func (e *HeldError) Error() string {
	return fmt.Sprintf("bridge %s writes stream %s", e.Holder, e.Stream)
}

// removeWithin is how long Remove keeps the lease at most.
const removeWithin = time.Minute

// Remove removes a stream and its lease. It holds the lease meanwhile, so that no
// bridge begins to write. It returns a *HeldError if a bridge has the lease.
func Remove(ctx context.Context, js jetstream.JetStream, prefix, streamName, holder string) error {
	kv, err := js.KeyValue(ctx, stream.LeaseBucket(prefix))
	switch {
	case errors.Is(err, jetstream.ErrBucketNotFound): // no bridge has run since the broker started
	case err != nil:
		return fmt.Errorf("open lease bucket: %w", err)
	default:
		_, err := kv.Create(ctx, streamName, []byte(holder), jetstream.KeyTTL(removeWithin))
		if errors.Is(err, jetstream.ErrKeyExists) {
			by, err := LeaseHolder(ctx, js, prefix, streamName)
			if err != nil {
				return err
			}
			return &HeldError{streamName, by}
		}
		if err != nil {
			return fmt.Errorf("take lease %s: %w", streamName, err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
			defer cancel()
			// If this fails, the lease expires by itself. So does what is left of it now.
			_ = kv.Purge(ctx, streamName, jetstream.PurgeTTL(removeWithin))
		}()
	}
	if err := js.DeleteStream(ctx, streamName); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("remove stream %s: %w", streamName, err)
	}
	return nil
}
