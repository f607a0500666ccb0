package wal

import (
	"context"
	"time"

	"bridge/internal/health"
)

const (
	// keylessTick is how often it is asked whether keyless rows are to be counted,
	// keylessEvery how often they are counted as long as there are some.
	keylessTick  = 5 * time.Second
	keylessEvery = time.Minute
)

// watchKeyless reports the rows of each relation that are left out because of
// their key. A count that fails is tried again at the next tick: the relation's own
// reads say why.
func (s *session) watchKeyless(ctx context.Context) {
	t := time.NewTicker(keylessTick)
	defer t.Stop()
	known := make(map[*feed]*health.Keyless)
	for {
		var feeds []*feed
		if !s.call(ctx, func(context.Context) error { feeds = s.feedsByName(); return nil }) {
			return
		}
		for _, f := range feeds {
			k := known[f]
			if k == nil {
				k = new(health.Keyless)
				known[f] = k
			}
			if !k.Due(f.metKeyless.Load(), keylessEvery) {
				continue
			}
			f.metKeyless.Store(false)
			if n, err := f.form.CountKeyless(ctx, s.c.pool, f.filtered()); err == nil {
				k.Count(n, f.r.metrics, f.r.log)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
