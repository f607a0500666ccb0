package health

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics has the metrics of all captures of a process, by relation.
type Metrics struct {
	polls, rows, reconciles                   *prometheus.HistogramVec
	errors, missing, stale, zombie            *prometheus.CounterVec
	loadRows, loadEstimate, nulls, reconciled *prometheus.GaugeVec
	keyless                                   *prometheus.GaugeVec

	mu sync.Mutex
	// Guarded by mu. Collect computes some metrics from it, by relation.
	seen map[string]*observed
}

// observed is what is known about a relation's last heartbeat: when its state
// was read, when it was published, its since; and the transaction ID that
// Postgres gives out next.
type observed struct {
	read, published time.Time
	since, next     uint64
}

// NewMetrics makes the metrics and registers them with reg, unless reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "lockstep", Subsystem: "bridge", Name: name, Help: help}
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return auto.NewGaugeVec(prometheus.GaugeOpts(opts(name, help)), label)
	}
	hist := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return auto.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "lockstep", Subsystem: "bridge", Name: name, Help: help, Buckets: buckets,
		}, label)
	}
	count := func(name, help string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts(opts(name, help)), label)
	}
	m := &Metrics{
		polls:        hist("poll_seconds", "Time of one poll: the query, and publishing its rows.", prometheus.ExponentialBuckets(0.0002, 4, 10)),
		rows:         hist("batch_rows", "Rows of each batch that had any.", prometheus.ExponentialBuckets(1, 10, 8)),
		errors:       count("relation_errors_total", "Sessions of a relation that ended in an error and were started again."),
		reconciles:   hist("reconcile_seconds", "Time to compare the stream with the relation and to repair it.", prometheus.ExponentialBuckets(0.01, 4, 10)),
		missing:      count("reconcile_missing_total", "Rows missing in the stream that reconcile found and published."),
		stale:        count("reconcile_stale_total", "Rows with other content in the stream that reconcile found and published."),
		zombie:       count("reconcile_zombie_total", "Rows in the stream but not in the relation that reconcile found and published as deleted."),
		reconciled:   gauge("reconcile_last_success_timestamp_seconds", "When the stream was last compared with the relation."),
		loadRows:     gauge("load_rows", "Rows read so far by the batch that reads the whole relation."),
		loadEstimate: gauge("load_rows_estimate", "Rows that Postgres expects in the relation."),
		nulls:        gauge("null_txid_rows", "Rows whose txid is NULL, which no poll sees (counted up to 1000)."),
		keyless:      gauge("keyless_rows", "Rows that are left out because clients can't tell them by their key (counted up to 1000)."),
		seen:         make(map[string]*observed),
	}
	if reg != nil {
		reg.MustRegister(m)
	}
	return m
}

var (
	label           = []string{"relation"}
	lagSeconds      = prometheus.NewDesc("lockstep_bridge_lag_seconds", "Age of the state that the last heartbeat stands for.", label, nil)
	heartbeatAge    = prometheus.NewDesc("lockstep_bridge_heartbeat_age_seconds", "Time since the last heartbeat was published.", label, nil)
	lagTransactions = prometheus.NewDesc("lockstep_bridge_lag_transactions",
		"Transaction IDs that Postgres has given out and the last heartbeat's since does not yet cover.", label, nil)
)

// Describe implements prometheus.Collector, for what Collect computes.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- lagSeconds
	ch <- heartbeatAge
	ch <- lagTransactions
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, o := range m.seen {
		if o.published.IsZero() {
			continue
		}
		gauge := func(desc *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, name)
		}
		gauge(lagSeconds, time.Since(o.read).Seconds())
		gauge(heartbeatAge, time.Since(o.published).Seconds())
		gauge(lagTransactions, float64(max(o.next, o.since)-o.since))
	}
}

// RelationMetrics has the metrics of one relation. Its methods may be called
// concurrently.
type RelationMetrics struct {
	m    *Metrics
	name string

	polls, rows            prometheus.Observer
	loadRows, loadEstimate prometheus.Gauge
	// Errors counts sessions that ended in an error.
	Errors prometheus.Counter
	// Nulls is the number of rows without a txid.
	Nulls prometheus.Gauge

	keyless                prometheus.Gauge
	reconciles             prometheus.Observer
	missing, stale, zombie prometheus.Counter
}

// Relation returns the metrics of the relation with the name, which no other has:
// relation.Name.Qualified.
func (m *Metrics) Relation(name string) RelationMetrics {
	m.mu.Lock()
	m.seen[name] = &observed{}
	m.mu.Unlock()
	return RelationMetrics{
		m: m, name: name, polls: m.polls.WithLabelValues(name), rows: m.rows.WithLabelValues(name), Errors: m.errors.WithLabelValues(name),
		loadRows: m.loadRows.WithLabelValues(name), loadEstimate: m.loadEstimate.WithLabelValues(name), Nulls: m.nulls.WithLabelValues(name), keyless: m.keyless.WithLabelValues(name),
		reconciles: m.reconciles.WithLabelValues(name),
		missing:    m.missing.WithLabelValues(name), stale: m.stale.WithLabelValues(name), zombie: m.zombie.WithLabelValues(name),
	}
}

func (r RelationMetrics) observe(change func(*observed)) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	change(r.m.seen[r.name])
}

// Next says which transaction ID Postgres gives out next.
func (r RelationMetrics) Next(txid uint64) {
	r.observe(func(o *observed) { o.next = txid })
}

// Heartbeat says when a heartbeat was published, when its state was read, and
// its since.
func (r RelationMetrics) Heartbeat(published, read time.Time, since uint64) {
	r.observe(func(o *observed) { o.published, o.read, o.since = published, read, since })
}

// Fresh says that a poll found nothing newer than the last heartbeat.
func (r RelationMetrics) Fresh(read time.Time) {
	r.observe(func(o *observed) { o.read = read })
}

// Batch counts a poll with its rows.
func (r RelationMetrics) Batch(took time.Duration, rows int64) {
	r.polls.Observe(took.Seconds())
	if rows > 0 {
		r.rows.Observe(float64(rows))
	}
}

// Load sets the progress of a batch that reads the whole relation.
func (r RelationMetrics) Load(done, estimate int64) {
	r.loadRows.Set(float64(done))
	r.loadEstimate.Set(float64(estimate))
}

// Reconciled counts a comparison of stream and relation, and the rows that it
// repaired.
func (r RelationMetrics) Reconciled(took time.Duration, missing, stale, zombie int64) {
	r.reconciles.Observe(took.Seconds())
	r.missing.Add(float64(missing))
	r.stale.Add(float64(stale))
	r.zombie.Add(float64(zombie))
	r.m.reconciled.WithLabelValues(r.name).SetToCurrentTime() // absent before the first comparison
}
