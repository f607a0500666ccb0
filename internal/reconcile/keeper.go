package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Keeper runs the comparisons of one relation with its stream: on request and
// periodically, but never two at the same time. Its exported fields are set before
// it is used.
type Keeper struct {
	// Compare compares, has the differences repaired, and returns how long that
	// took. It waits until it may begin.
	Compare func(context.Context) (Counts, time.Duration, error)
	// Live says whether this process captures the relation and has loaded it.
	Live func() bool
	// Done is called after each comparison that succeeded.
	Done func(took time.Duration, missing, stale, zombie int64)
	Log  zerolog.Logger

	// mu is held during a comparison.
	mu sync.Mutex
}

// ErrStandby says that another process captures the relation.
var ErrStandby = errors.New("another bridge captures the relation")

// ErrBusy is returned by Reconcile while another comparison of the relation runs.
var ErrBusy = errors.New("the relation is already being reconciled, wait until that has ended")

// Reconcile compares now. Any goroutine may call it.
func (k *Keeper) Reconcile(ctx context.Context) (Counts, error) {
	if !k.mu.TryLock() {
		return Counts{}, ErrBusy
	}
	defer k.mu.Unlock()
	counts, took, err := k.Compare(ctx)
	if err != nil {
		return Counts{}, fmt.Errorf("reconcile: %w", err)
	}
	k.Report(counts, took)
	return counts, nil
}

// Report logs and counts the result of a comparison.
func (k *Keeper) Report(c Counts, took time.Duration) {
	k.Done(took, c.Missing, c.Stale, c.Zombie)
	e := k.Log.Info()
	if c.Differ() > 0 {
		e = k.Log.Warn()
	}
	e.Int64("rows", c.Rows).Int64("missing", c.Missing).Int64("stale", c.Stale).Int64("zombie", c.Zombie).
		Bool("approximate", c.Approximate).Dur("dur", took.Round(time.Millisecond)).Msg("stream compared with the relation")
}

// again is the longest time after which a comparison that failed is tried again.
const again = 10 * time.Minute

// Run compares periodically until ctx ends: first one interval after the relation
// became live, and then once in each interval.
func (k *Keeper) Run(ctx context.Context, every time.Duration) {
	for next := every; ; {
		if k.untilLive(ctx) != nil || sleep(ctx, next+rand.N(next/10+1)) != nil || k.untilLive(ctx) != nil {
			return
		}
		next = every
		if _, err := k.Reconcile(ctx); err != nil && ctx.Err() == nil {
			k.Log.Warn().Err(err).Msg("comparing the stream with the relation failed, trying again later")
			next = min(next, again)
		}
	}
}

func (k *Keeper) untilLive(ctx context.Context) error {
	for !k.Live() {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// sleep waits for d, or returns ctx's error as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
