package reconcile_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/reconcile"

	"github.com/rs/zerolog"
)

// Comparisons come once in each interval, and take at most a quarter of the time: one that took T is followed by at least 3 T
// without any. If that stretches the interval, the log says so, once. A comparison that fails costs as much. (Issue 14, number 8.)
func TestKeeper_TakesAQuarterOfTheTimeAtMost(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		every     time.Duration
		took      []time.Duration
		fails     bool
		rests     []time.Duration
		stretched int
	}{
		{"short", 10 * time.Second, []time.Duration{time.Second, 2 * time.Second, time.Millisecond}, false, []time.Duration{9 * time.Second, 8 * time.Second}, 0},
		{"long", 10 * time.Second, []time.Duration{5 * time.Second, 8 * time.Second, time.Second}, false, []time.Duration{15 * time.Second, 24 * time.Second}, 1},
		{"longer than the interval", 10 * time.Second, []time.Duration{time.Minute, time.Second, time.Minute, 0}, false, []time.Duration{3 * time.Minute, 9 * time.Second, 3 * time.Minute}, 2},
		{"failing", 10 * time.Second, []time.Duration{time.Minute, time.Minute}, true, []time.Duration{3 * time.Minute}, 1},
		{"failing, with a long interval", 24 * time.Hour, []time.Duration{time.Minute, 5 * time.Minute, 0}, true, []time.Duration{9 * time.Minute, 15 * time.Minute}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var log bytes.Buffer
				var rests []time.Duration
				var ended time.Time
				n := 0
				k := &reconcile.Keeper{
					Live: func() bool { return true }, Log: zerolog.New(&log), Done: func(time.Duration, int64, int64, int64) {},
					Compare: func(context.Context) (reconcile.Counts, time.Duration, error) {
						if n > 0 {
							rests = append(rests, time.Since(ended))
						}
						took := tt.took[n]
						time.Sleep(took)
						if n++; n == len(tt.took) {
							cancel()
						}
						ended = time.Now()
						if tt.fails {
							return reconcile.Counts{}, took, errors.New("failed")
						}
						return reconcile.Counts{}, took, nil
					},
				}
				k.Run(ctx, tt.every)
				for i, want := range tt.rests {
					if got := rests[i]; got < want || got > want+want/10+time.Millisecond {
						t.Errorf("after %s the next comparison came after %s, want %s and at most a tenth more", tt.took[i], got, want)
					}
				}
				if got := strings.Count(log.String(), "take more than a quarter"); got != tt.stretched {
					t.Errorf("the log says %d times that the interval was stretched, want %d:\n%s", got, tt.stretched, log.String())
				}
			})
		})
	}
}

// Who says in BRIDGE_TABLES how often to compare a relation expects differences. So they are no warning, and that there are
// none is no news.
func TestKeeper_ExpectedDifferencesAreNoWarning(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		expected bool
		stale    int64
		want     string
	}{{false, 0, "info"}, {false, 1, "warn"}, {true, 0, "debug"}, {true, 1, "info"}} {
		var log bytes.Buffer
		k := &reconcile.Keeper{Log: zerolog.New(&log), Done: func(time.Duration, int64, int64, int64) {}, Expected: tt.expected}
		k.Report(reconcile.Counts{Stale: tt.stale}, time.Second)
		if !strings.Contains(log.String(), `"level":"`+tt.want+`"`) {
			t.Errorf("%+v: got %s", tt, log.String())
		}
	}
}
