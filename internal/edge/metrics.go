package edge

import "github.com/prometheus/client_golang/prometheus"

// Metrics are a server's collectors.
type Metrics struct {
	clients        prometheus.Gauge
	rows, bytes    prometheus.Counter
	ends, refusals *prometheus.CounterVec
}

// NewMetrics returns collectors that are not yet registered.
func NewMetrics() *Metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "lockstep", Subsystem: "edge", Name: name, Help: help}
	}
	m := &Metrics{
		clients:  prometheus.NewGauge(prometheus.GaugeOpts(opts("clients", "Clients with an open stream."))),
		rows:     prometheus.NewCounter(prometheus.CounterOpts(opts("sent_rows_total", "Rows written to clients."))),
		bytes:    prometheus.NewCounter(prometheus.CounterOpts(opts("sent_bytes_total", "Bytes written to clients."))),
		ends:     prometheus.NewCounterVec(prometheus.CounterOpts(opts("streams_ended_total", "Streams that ended, by reason; all but end are cuts.")), []string{"reason"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts(opts("refusals_total", "Requests refused, by code.")), []string{"code"}),
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
	return []prometheus.Collector{m.clients, m.rows, m.bytes, m.ends, m.refusals}
}
