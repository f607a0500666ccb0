package publish

import (
	"bridge/lockstep"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the collectors that all publishers of a process share.
type Metrics struct {
	rows, bytes, oversize, heartbeats, epochs *prometheus.CounterVec
	streamMessages, streamBytes               *prometheus.GaugeVec
}

// NewMetrics makes the collectors and, unless reg is nil, registers them with it.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	vec := func(name, help string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts{Namespace: "lockstep", Subsystem: "bridge", Name: name, Help: help}, []string{"relation"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return auto.NewGaugeVec(prometheus.GaugeOpts{Namespace: "lockstep", Subsystem: "bridge", Name: name, Help: help}, []string{"relation"})
	}
	return &Metrics{
		rows:       vec("published_rows_total", "Rows sent to the stream."),
		bytes:      vec("published_bytes_total", "Bytes of rows sent to the stream."),
		oversize:   vec("oversize_rows_total", "Rows too large for the broker, replaced by a control row."),
		heartbeats: vec("heartbeats_total", "Heartbeats sent to the stream."),
		epochs:     vec("epochs_total", "Epochs begun: starts, takeovers, and recoveries from faults."),

		streamMessages: gauge("stream_messages", "Messages that the stream holds."),
		streamBytes:    gauge("stream_bytes", "Bytes of the stream's files."),
	}
}

type relationMetrics struct {
	rows, bytes, oversize, heartbeats, epochs prometheus.Counter
	streamMessages, streamBytes               prometheus.Gauge
}

func (m *Metrics) relation(schema, table string) relationMetrics {
	name := lockstep.QualifiedName(schema, table)
	return relationMetrics{
		rows: m.rows.WithLabelValues(name), bytes: m.bytes.WithLabelValues(name), oversize: m.oversize.WithLabelValues(name),
		heartbeats: m.heartbeats.WithLabelValues(name), epochs: m.epochs.WithLabelValues(name),
		streamMessages: m.streamMessages.WithLabelValues(name), streamBytes: m.streamBytes.WithLabelValues(name),
	}
}
