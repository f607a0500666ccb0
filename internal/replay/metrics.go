package replay

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are a hub's collectors.
type Metrics struct {
	starts, cacheReads, diskReads, fills prometheus.Counter
	search                               prometheus.Histogram
	cacheBytes                           *prometheus.GaugeVec
	diskBytes                            prometheus.Gauge
}

// NewMetrics makes the collectors and registers them with reg, unless it is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "lockstep", Subsystem: "edge", Name: name, Help: help})
	}
	return &Metrics{
		starts:     counter("replay_starts_total", "Requests for which the place to start was found."),
		cacheReads: counter("cache_reads_total", "Blocks that clients read from the cache."),
		diskReads:  counter("cache_disk_reads_total", "Blocks that were read from the cache on disk."),
		diskBytes: auto.NewGauge(prometheus.GaugeOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "cache_disk_bytes", Help: "Bytes of the files of the cache on disk.",
		}),
		fills: counter("cache_fills_total", "Blocks that were read from the broker, because clients wanted what was not in the cache."),
		search: auto.NewHistogram(prometheus.HistogramOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "replay_search_seconds",
			Help: "Time to find the place for a since.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		cacheBytes: auto.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "cache_bytes", Help: "Bytes of rows held in memory.",
		}, []string{"relation"}),
	}
}
