package edge

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are a server's collectors.
type Metrics struct {
	clients        prometheus.Gauge
	rows, bytes    prometheus.Counter
	ends, refusals *prometheus.CounterVec
}

// NewMetrics makes the collectors and registers them with reg, unless it is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "lockstep", Subsystem: "edge", Name: name, Help: help}
	}
	m := &Metrics{
		clients:  auto.NewGauge(prometheus.GaugeOpts(opts("clients", "Clients with an open stream."))),
		rows:     auto.NewCounter(prometheus.CounterOpts(opts("sent_rows_total", "Rows written to clients."))),
		bytes:    auto.NewCounter(prometheus.CounterOpts(opts("sent_bytes_total", "Bytes written to clients."))),
		ends:     auto.NewCounterVec(prometheus.CounterOpts(opts("streams_ended_total", "Streams that ended, by reason; all but end are cuts.")), []string{"reason"}),
		refusals: auto.NewCounterVec(prometheus.CounterOpts(opts("refusals_total", "Requests refused, by code.")), []string{"code"}),
	}
	// What has not happened yet is 0, not absent.
	for _, reason := range []string{reasonEnd, reasonClient, reasonSlow, reasonDrain, reasonSource} {
		m.ends.WithLabelValues(reason)
	}
	for code := range statuses {
		m.refusals.WithLabelValues(string(code))
	}
	return m
}
