package replay_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"bridge/internal/replay"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// BenchmarkCold: how fast an edge reads what is in no block, for one client: rows of 200 bytes. The broker is a process of its
// own. Compare with BenchmarkBare of the same run.
func BenchmarkCold(b *testing.B) {
	url, rows := filled(b)
	for b.Loop() {
		js := connected(b, url)
		h := replay.NewHub(js, replay.Options{Past: connected(b, url)}, replay.NewMetrics(prometheus.NewRegistry()), zerolog.Nop())
		go func() { _ = h.Run(b.Context()) }()
		req := request(0)
		req.Follow = false
		r, err := h.Open(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := count(b, r)
		if !errors.Is(err, io.EOF) || n < rows {
			b.Fatalf("%d rows, %v", n, err)
		}
		r.Close()
	}
	b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkBare reads the same with one consumer of the client library, and does nothing with it.
func BenchmarkBare(b *testing.B) {
	url, rows := filled(b)
	for b.Loop() {
		js := connected(b, url)
		c, err := js.CreateConsumer(b.Context(), "LOCKSTEP-public-t", jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true})
		if err != nil {
			b.Fatal(err)
		}
		done, n := make(chan struct{}), 0
		cc, err := c.Consume(func(jetstream.Msg) {
			if n++; n == rows {
				close(done)
			}
		}, jetstream.PullMaxMessages(5000))
		if err != nil {
			b.Fatal(err)
		}
		<-done
		cc.Stop()
	}
	b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
}

func filled(b *testing.B) (url string, rows int) {
	rows = 200_000
	url = testenv.NATSProcess(b).URL()
	w := newWriter(b, url)
	w.begin(b)
	for i := range rows {
		w.row(b, i, uint64(100+i), strings.Repeat("x", 120))
	}
	w.heartbeat(b, uint64(100+rows))
	w.stored(b, uint64(100+rows))
	return url, rows
}

func connected(b *testing.B, url string) jetstream.JetStream {
	js, err := jetstream.New(testenv.NATSConn(b, url, nats.ReconnectBufSize(-1)))
	if err != nil {
		b.Fatal(err)
	}
	return js
}
