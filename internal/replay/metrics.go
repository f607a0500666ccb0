package replay

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are a hub's collectors.
type Metrics struct {
	starts, cacheReads, fills prometheus.Counter
	search                    prometheus.Histogram
	cacheBytes                *prometheus.GaugeVec
}

// NewMetrics makes the collectors and registers them with reg, unless it is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "lockstep", Subsystem: "edge", Name: name, Help: help})
	}
	return &Metrics{
		starts:     counter("replay_starts_total", "Requests for which the place to start was found."),
		cacheReads: counter("cache_reads_total", "Blocks that clients read from memory."),
		fills:      counter("cache_fills_total", "Blocks that were read from the broker, because clients wanted what was not in memory."),
		search: auto.NewHistogram(prometheus.HistogramOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "replay_search_seconds",
			Help: "Time to find the place for a since.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		cacheBytes: auto.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "cache_bytes", Help: "Bytes of rows held in memory.",
		}, []string{"relation"}),
	}
}
