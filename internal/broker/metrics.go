package broker

import (
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
)

// Collector has the metrics of a process's connections to the broker. They come from the counters of nats.go.
type Collector struct {
	conns []*nats.Conn

	connected, reconnects, in, out *prometheus.Desc
}

// NewCollector returns a collector for all these connections together.
func NewCollector(conns ...*nats.Conn) *Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("lockstep_broker_"+name, help, nil, nil)
	}
	return &Collector{
		conns:      conns,
		connected:  desc("connected", "1 if every connection to the broker is up, else 0."),
		reconnects: desc("reconnects_total", "How often a connection to the broker was lost and came back."),
		in:         desc("received_bytes_total", "Payload bytes received from the broker."),
		out:        desc("sent_bytes_total", "Payload bytes sent to the broker."),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connected
	ch <- c.reconnects
	ch <- c.in
	ch <- c.out
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	up := 1.0
	var reconnects, in, out uint64
	for _, nc := range c.conns {
		if !nc.IsConnected() {
			up = 0
		}
		s := nc.Stats()
		reconnects += s.Reconnects
		in += s.InBytes
		out += s.OutBytes
	}
	ch <- prometheus.MustNewConstMetric(c.connected, prometheus.GaugeValue, up)
	ch <- prometheus.MustNewConstMetric(c.reconnects, prometheus.CounterValue, float64(reconnects))
	ch <- prometheus.MustNewConstMetric(c.in, prometheus.CounterValue, float64(in))
	ch <- prometheus.MustNewConstMetric(c.out, prometheus.CounterValue, float64(out))
}
