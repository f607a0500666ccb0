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
	// Expected says that the relation changes in ways that only comparisons find, and
	// is compared often for that: then differences are no warning.
	Expected bool

	// mu is held during a comparison.
	mu sync.Mutex
}

// ErrStandby says that another process captures the relation.
var ErrStandby = errors.New("another bridge captures the relation")

// ErrBusy is returned by Reconcile while another comparison of the relation runs.
var ErrBusy = errors.New("the relation is already being reconciled, wait until that has ended")

// Reconcile compares now. Any goroutine may call it.
func (k *Keeper) Reconcile(ctx context.Context) (Counts, error) {
	counts, _, err := k.reconcile(ctx)
	return counts, err
}

func (k *Keeper) reconcile(ctx context.Context) (Counts, time.Duration, error) {
	if !k.mu.TryLock() {
		return Counts{}, 0, ErrBusy
	}
	defer k.mu.Unlock()
	counts, took, err := k.Compare(ctx)
	if err != nil {
		return Counts{}, took, fmt.Errorf("reconcile: %w", err)
	}
	k.Report(counts, took)
	return counts, took, nil
}

// Report logs and counts the result of a comparison.
func (k *Keeper) Report(c Counts, took time.Duration) {
	k.Done(took, c.Missing, c.Stale, c.Zombie)
	e := k.Log.Info()
	switch {
	case c.Differ() > 0 && !k.Expected:
		e = k.Log.Warn()
	case c.Differ() == 0 && k.Expected:
		e = k.Log.Debug()
	}
	e.Int64("rows", c.Rows).Int64("missing", c.Missing).Int64("stale", c.Stale).Int64("zombie", c.Zombie).
		Bool("approximate", c.Approximate).Dur("dur", took.Round(time.Millisecond)).Msg("stream compared with the relation")
}

const (
	// again is the longest time after which a comparison that failed is tried again.
	again = 10 * time.Minute
	// rests is how many times as long as it took a comparison is followed by none: so
	// comparisons of a relation take at most a quarter of the time.
	rests = 3
)

// Run compares periodically until ctx ends: first one interval after the relation
// became live, and then once in each interval. If comparisons take more than a
// quarter of the interval, they come more rarely, and the log says so.
func (k *Keeper) Run(ctx context.Context, every time.Duration) {
	stretched := false
	for rest := every; ; {
		if k.untilLive(ctx) != nil || sleep(ctx, rest+rand.N(rest/10+1)) != nil || k.untilLive(ctx) != nil {
			return
		}
		next := every
		_, took, err := k.reconcile(ctx)
		if err != nil && ctx.Err() == nil {
			k.Log.Warn().Err(err).Msg("comparing the stream with the relation failed, trying again later")
			next = min(next, again)
		}
		rest = max(next-took, rests*took)
		if longer := rest > next-took; longer && !stretched {
			k.Log.Warn().Dur("dur", took).Dur("rest", rest).Msg("comparisons take more than a quarter of their interval, so they come more rarely: they may take no more than that")
			stretched = true
		} else if !longer {
			stretched = false
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
