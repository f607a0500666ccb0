package wal

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the collectors of what all relations of a capture share.
type Metrics struct {
	lag, confirmed prometheus.Gauge
	transactions   prometheus.Counter
	sessions       prometheus.Counter
	looks          *prometheus.CounterVec
}

// NewMetrics returns collectors that are not yet registered.
func NewMetrics() *Metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "lockstep", Subsystem: "bridge", Name: name, Help: help}
	}
	return &Metrics{
		lag:          prometheus.NewGauge(prometheus.GaugeOpts(opts("slot_lag_bytes", "WAL that Postgres keeps for the bridge's replication slot."))),
		confirmed:    prometheus.NewGauge(prometheus.GaugeOpts(opts("slot_unconfirmed_bytes", "WAL written since the place up to which every stream is known to hold it."))),
		transactions: prometheus.NewCounter(prometheus.CounterOpts(opts("wal_transactions_total", "Transactions read from the WAL."))),
		sessions:     prometheus.NewCounter(prometheus.CounterOpts(opts("wal_sessions_total", "Replication connections that came as far as reading."))),
		looks: prometheus.NewCounterVec(prometheus.CounterOpts(opts("wal_looks_total", "Looks at relations by SQL beside the WAL, by result.")),
			[]string{"result"}),
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.lag, m.confirmed, m.transactions, m.sessions, m.looks}
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
