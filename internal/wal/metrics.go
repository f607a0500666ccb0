package wal

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the collectors of what all relations of a capture share.
type Metrics struct {
	lag, confirmed prometheus.Gauge
	transactions   prometheus.Counter
	sessions       prometheus.Counter
	looks          *prometheus.CounterVec
}

// NewMetrics makes the collectors and registers them with reg, unless it is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "lockstep", Subsystem: "bridge", Name: name, Help: help}
	}
	return &Metrics{
		lag:          auto.NewGauge(prometheus.GaugeOpts(opts("slot_lag_bytes", "WAL that Postgres keeps for the bridge's replication slot."))),
		confirmed:    auto.NewGauge(prometheus.GaugeOpts(opts("slot_unconfirmed_bytes", "WAL written since the place up to which every stream is known to hold it."))),
		transactions: auto.NewCounter(prometheus.CounterOpts(opts("wal_transactions_total", "Transactions read from the WAL."))),
		sessions:     auto.NewCounter(prometheus.CounterOpts(opts("wal_sessions_total", "Replication connections that came as far as reading."))),
		looks: auto.NewCounterVec(prometheus.CounterOpts(opts("wal_looks_total", "Looks at relations by SQL beside the WAL, by result.")),
			[]string{"result"}),
	}
}
