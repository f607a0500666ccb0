package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/broker/embedded"
	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/poller"
	"bridge/internal/publish"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/stream"
	"bridge/internal/wal"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

var _ capture.Sink = (*publish.Publisher)(nil)

// bridge runs until ctx ends. It fails only for a bad configuration, and where
// no retry helps: an address in use, an embedded server that can't start.
func bridge(ctx context.Context, cfg *Config, warnings []string, stderr io.Writer) error {
	if err := cfg.Validate(); err != nil {
		return program.WithWarnings(err, warnings)
	}
	log, err := program.Logger(stderr, cfg.LogLevel)
	if err != nil {
		return err
	}
	defer program.SurviveHangup(log)()
	for _, w := range warnings {
		log.Warn().Str("component", "config").Msg(w)
	}
	ops, err := newOps(cfg, log)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ops.run(ctx) })
	g.Go(func() error { return capturing(ctx, cfg, ops, log) })
	return g.Wait()
}

// capturing connects to the broker and to Postgres and captures every
// relation.
func capturing(ctx context.Context, cfg *Config, ops *ops, log zerolog.Logger) error {
	relations := len(cfg.specs.List)
	if cfg.specs.All != nil {
		relations = 0 // any number
	}
	pool, err := source.Open(cfg.server(), relations)
	if err != nil {
		return err
	}
	defer pool.Close()
	fromWAL := wal.New(pool, wal.Options{
		Name: cfg.Name, HeartbeatInterval: cfg.heartbeatInterval,
		ReconcileInterval: cfg.reconcileInterval, MaxLag: cfg.slotMaxLag,
		JoinWithin: joinWithin, SlotInterval: slotInterval,
	}, wal.NewMetrics(ops.registry), log)
	unwatch := watchSlot(ctx, cfg, fromWAL)
	nc, closeBroker, err := connectBroker(ctx, cfg, ops, log)
	unwatch()
	if err != nil {
		return err
	}
	defer closeBroker()
	js, err := stream.JetStream(nc, cfg.NatsJSDomain)
	if err != nil {
		return err
	}
	specs, err := resolve(ctx, cfg, pool, ops, log)
	if err != nil {
		return err
	}
	ops.setWaiting("starting")
	self := holder()
	leases, err := publish.NewLeases(js, publish.LeaseOptions{
		Prefix: cfg.StreamPrefix, Holder: self, Replicas: cfg.replicas, Timing: publishTiming,
	})
	if err != nil {
		return err
	}
	c := &captures{
		cfg: cfg, nc: nc, js: js, pool: pool, ops: ops, log: log,
		holder: self, leases: leases, published: publish.NewMetrics(ops.registry), captured: health.NewMetrics(ops.registry),
		listener: poller.NewListener(pool, log), watcher: poller.NewWatcher(pool, cfg.pollInterval, log), fromWAL: fromWAL,
	}
	defer context.AfterFunc(ctx, func() { log.Info().Str("component", "bridge").Msg("stopping") })()
	return c.run(ctx, specs)
}

// watchSlot watches the replication slot until stop is called. So the slot's
// limit holds also before there is a connection to the broker.
func watchSlot(ctx context.Context, cfg *Config, fromWAL *wal.Capture) (stop func()) {
	if !cfg.specs.ReadsWAL() {
		return func() {} // a slot that no relation uses is not the bridge's to drop
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { fromWAL.WatchSlot(ctx) })
	return func() { cancel(); wg.Wait() }
}

// captures holds what all relations of the process share.
type captures struct {
	cfg       *Config
	nc        *nats.Conn
	js        jetstream.JetStream
	pool      *source.Pool
	ops       *ops
	log       zerolog.Logger
	holder    string
	leases    *publish.Leases
	published *publish.Metrics
	captured  *health.Metrics
	listener  *poller.Listener
	watcher   *poller.Watcher
	fromWAL   *wal.Capture
}

// run captures every relation until ctx ends. A relation that fails stops no
// other (I10): each retries by itself, for ever.
func (c *captures) run(ctx context.Context, specs []relation.Spec) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = c.listener.Run(ctx) })
	wg.Go(func() { _ = c.watcher.Run(ctx) })
	wg.Go(func() { _ = c.leases.Run(ctx) })
	watcher := poller.NewXminWatcher(c.pool, c.log)
	wg.Go(func() { _ = watcher.Run(ctx) })
	var all []captured
	for _, spec := range specs {
		pub := publish.New(c.nc, c.js, publish.Options{
			Prefix: c.cfg.StreamPrefix, Schema: spec.Name.Schema, Table: spec.Name.Table,
			Log:        spec.History == relation.HistoryLog,
			Settings:   stream.Settings{Replicas: c.cfg.replicas, MaxAge: spec.MaxAge, MaxBytes: spec.MaxBytes, Republish: spec.Republish},
			Tombstones: spec.Tombstones, HeartbeatInterval: c.cfg.heartbeatInterval, Leases: c.leases, Timing: publishTiming,
		}, c.published, c.log)
		var by reconciler
		if spec.Capture == relation.CaptureWAL {
			r := c.fromWAL.Add(spec, pub, c.captured)
			all = append(all, captured{spec.Name, r})
			by = r
		} else {
			p := poller.New(c.pool, pub, poller.Options{
				Spec: spec, Interval: c.cfg.pollInterval, HeartbeatInterval: c.cfg.heartbeatInterval,
				ReconcileInterval: c.cfg.reconcileInterval, Watcher: c.watcher,
			}, c.listener, c.captured, c.log)
			all = append(all, captured{spec.Name, p})
			by = p
			wg.Go(func() { _ = p.Run(ctx) })
		}
		wg.Go(func() { _ = pub.Run(ctx) })
		d := &desk{nc: c.nc, subject: reconcileSubject(c.cfg, spec.Name), holder: c.holder, by: by, log: c.log}
		wg.Go(func() {
			if err := d.Run(ctx); ctx.Err() == nil {
				c.log.Error().Str("component", "bridge").Str("table", spec.Name.String()).Err(err).Msg("requests of bridge reconcile are no longer answered, restart the bridge")
			}
		})
	}
	c.ops.show(all)
	wg.Go(func() { _ = c.fromWAL.Run(ctx) })
	wg.Go(func() { c.tellOrphans(ctx, specs) })
	c.log.Info().Str("component", "bridge").Int("relations", len(specs)).Msg("capturing")
	<-ctx.Done()
	return ctx.Err()
}

// holder names this process in the leases that it takes.
func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d/%s", host, os.Getpid(), nuid.Next())
}

// connectBroker connects to the broker, and first starts the embedded server if
// NATS_URL is empty. It retries until ctx ends.
func connectBroker(ctx context.Context, cfg *Config, ops *ops, log zerolog.Logger) (*nats.Conn, func(), error) {
	ops.setWaiting("no connection to the broker")
	connect := func() (*nats.Conn, error) { return broker.Connect(ctx, cfg.broker(), log) }
	stop := func() {}
	if cfg.NatsURL == "" {
		server := embedded.New(cfg.embedded(), log)
		if err := server.Start(ctx); err != nil {
			return nil, nil, err
		}
		stop = server.Shutdown
		connect = func() (*nats.Conn, error) { return server.Connect(ctx, log) }
	}
	var nc *nats.Conn
	err := retry(ctx, log, "no connection to the broker, trying again", func() error {
		var err error
		if nc, err = connect(); err != nil {
			return err
		}
		if err = broker.CheckServer(nc); err != nil {
			nc.Close()
		}
		return err
	})
	if err != nil {
		stop()
		return nil, nil, err
	}
	if cfg.NatsURL != "" {
		go broker.Watch(ctx, nc, cfg.broker(), log)
	}
	ops.setBroker(nc)
	ops.registry.MustRegister(broker.NewCollector(nc))
	return nc, func() { nc.Close(); stop() }, nil
}

// resolve lists the relations to capture. It asks Postgres what * stands for.
func resolve(ctx context.Context, cfg *Config, pool *source.Pool, ops *ops, log zerolog.Logger) ([]relation.Spec, error) {
	if cfg.specs.All == nil {
		return cfg.specs.List, nil
	}
	ops.setWaiting("asking Postgres what * in BRIDGE_TABLES stands for")
	var specs []relation.Spec
	err := retry(ctx, log, "resolving * failed, trying again", func() error {
		var skipped []relation.Problem
		var err error
		specs, skipped, err = cfg.specs.Resolve(ctx, pool)
		for _, s := range skipped {
			log.Info().Str("component", "bridge").Str("reason", s.Error()).Msg("relation left out of *")
		}
		if err == nil && len(specs) == 0 {
			err = errors.New("no table of schema public qualifies for *; prepare them with: bridge sql '*'")
		}
		return err
	})
	return specs, err
}

// retry calls f until it succeeds or ctx ends. It logs a new failure
// immediately, and the same failure once a minute.
func retry(ctx context.Context, log zerolog.Logger, msg string, f func() error) error {
	backoff := 100 * time.Millisecond
	var lastLog time.Time
	var last string
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err.Error() != last || time.Since(lastLog) > time.Minute {
			last, lastLog = err.Error(), time.Now()
			log.Warn().Str("component", "bridge").Err(err).Msg(msg)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}
