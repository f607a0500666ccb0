package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/edge"
	"bridge/internal/replay"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

// httpedge serves until ctx ends. It also runs while the broker is away, at the
// start or later: then a request waits for it, and gets status 503 if it does
// not come back in time.
func httpedge(ctx context.Context, cfg *Config, warnings []string, stderr io.Writer) error {
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
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on HTTPEDGE_LISTEN: %w", err)
	}
	defer func() { _ = l.Close() }()
	dir, done, err := cacheDir(cfg, log)
	if err != nil {
		return err
	}
	defer done()
	js, err := connect(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer js.Conn().Close()
	past, err := connect(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer past.Conn().Close()
	registry := program.Registry()
	registry.MustRegister(broker.NewCollector(js.Conn(), past.Conn()))
	hub := replay.NewHub(js, replay.Options{
		Prefix: cfg.StreamPrefix, CacheBytes: cfg.cacheBytes, CacheDir: dir, CacheDiskBytes: cfg.cacheDiskBytes, CacheKept: cfg.CacheDir != "", Past: past, Native: edge.Native,
	}, replay.NewMetrics(registry), log)
	srv := edge.New(source{hub: hub}, edge.Options{
		WriteTimeout: cfg.writeTimeout, KeepAlive: cfg.keepaliveInterval, MaxClients: cfg.maxClients, MaxClientsPerAddress: cfg.maxPerAddress,
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}, edge.NewMetrics(registry), log)
	log.Info().Str("component", "edge").Str("remote", l.Addr().String()).Msg("listening")
	defer context.AfterFunc(ctx, func() {
		log.Info().Str("component", "edge").Msg("stopping, every stream ends between two chunks")
	})()
	// Streams read from the hub, so the hub stops after the server.
	hubCtx, stopHub := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHub()
	var g errgroup.Group
	g.Go(func() error { broker.Watch(hubCtx, js.Conn(), cfg.broker(), log); return nil })
	g.Go(func() error { watchStreams(hubCtx, js, cfg.StreamPrefix, log); return nil })
	g.Go(func() error { return hub.Run(hubCtx) })
	g.Go(func() error {
		defer stopHub()
		return srv.Run(ctx, l)
	})
	return g.Wait()
}

// connect returns a connection to the broker, also if that is away.
func connect(ctx context.Context, cfg *Config, log zerolog.Logger) (jetstream.JetStream, error) {
	nc, err := broker.Connect(ctx, cfg.broker(), log, nats.RetryOnFailedConnect(true))
	if err != nil {
		return nil, err
	}
	js, err := stream.JetStream(nc, cfg.NatsJSDomain)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return js, nil
}

// readyWithin is how long /readyz waits for the broker.
const readyWithin = 3 * time.Second
