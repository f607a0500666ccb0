package replay

import "github.com/prometheus/client_golang/prometheus"

// Metrics are a hub's collectors.
type Metrics struct {
	starts, ringReads, catchups prometheus.Counter
	search                      prometheus.Histogram
	cacheBytes                  *prometheus.GaugeVec
}

// NewMetrics returns collectors that are not yet registered.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "lockstep", Subsystem: "edge", Name: name, Help: help})
	}
	return &Metrics{
		starts:    counter("replay_starts_total", "Requests for which the place to start was found."),
		ringReads: counter("cache_reads_total", "Blocks that clients read from memory."),
		catchups:  counter("catchups_total", "Clients that had to read from the broker, because they were older than the cache."),
		search: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "replay_search_seconds",
			Help: "Time to find the place for a since.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		cacheBytes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "lockstep", Subsystem: "edge", Name: "cache_bytes", Help: "Bytes of rows held in memory.",
		}, []string{"relation"}),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.starts, m.ringReads, m.catchups, m.search, m.cacheBytes}
}
