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

// Keeper has one relation compared with its stream, when it is asked to and
// from time to time, once at a time. Its fields are set before it is used.
type Keeper struct {
	// Compare compares, has repaired what differs, and says how long that took;
	// it waits until it can be done.
	Compare func(context.Context) (Counts, time.Duration, error)
	// Live says whether the relation is captured by this process, and loaded.
	Live func() bool
	// Done is told of each comparison that came to its end.
	Done func(took time.Duration, missing, stale, zombie int64)
	Log  zerolog.Logger

	// mu is held by whoever compares.
	mu sync.Mutex
}

// ErrStandby says that another process captures the relation.
var ErrStandby = errors.New("another bridge captures the relation")

// ErrBusy is returned by Reconcile where a comparison is under way.
var ErrBusy = errors.New("it is being reconciled already")

// Reconcile compares now. It may be called from any goroutine.
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

// Report logs and counts what a comparison came to.
func (k *Keeper) Report(c Counts, took time.Duration) {
	k.Done(took, c.Missing, c.Stale, c.Zombie)
	e := k.Log.Info()
	if c.Differ() > 0 {
		e = k.Log.Warn()
	}
	e.Int64("rows", c.Rows).Int64("missing", c.Missing).Int64("stale", c.Stale).Int64("zombie", c.Zombie).
		Bool("approximate", c.Approximate).Dur("dur", took).Msg("the stream was compared with the relation")
}

// again is when a comparison that failed is tried again.
const again = 10 * time.Minute

// Run compares again and again until ctx ends: one interval after the relation
// became live, and then as often.
func (k *Keeper) Run(ctx context.Context, every time.Duration) {
	for next := every; ; {
		if k.untilLive(ctx) != nil || sleep(ctx, next+rand.N(next/10+1)) != nil || k.untilLive(ctx) != nil {
			return
		}
		next = every
		if _, err := k.Reconcile(ctx); err != nil && ctx.Err() == nil {
			k.Log.Warn().Err(err).Msg("the stream could not be compared with the relation, trying again later")
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

// sleep waits, but not longer than ctx lasts.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
