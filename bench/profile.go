package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	"bridge/internal/broker"
	"bridge/internal/health"
	"bridge/internal/poller"
	"bridge/internal/publish"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/stream"
	"bridge/internal/wal"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// profiledCommand makes this program a bridge that writes profiles. Its argument is
// the beginning of the files' names. It takes its configuration from the bridge's
// own environment variables.
const profiledCommand = "profiled-bridge"

// runProfiled captures until SIGTERM. It writes a CPU profile, a profile of
// allocations, and the runtime's counts.
func runProfiled(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: profiled-bridge FILE")
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(args[0]), 0o755); err != nil {
		return err
	}
	f, err := os.Create(args[0] + ".cpu")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	err = captureAll(ctx)
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	return writeMemory(args[0])
}

// writeMemory writes the profile of allocations and the runtime's counts.
func writeMemory(name string) error {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	numbers := fmt.Sprintf("allocations %d\nbytes allocated %d\ngarbage collections %d\nCPU share of garbage collection %.3f\n",
		stats.Mallocs, stats.TotalAlloc, stats.NumGC, stats.GCCPUFraction)
	if err := os.WriteFile(name+".numbers", []byte(numbers), 0o644); err != nil {
		return err
	}
	f, err := os.Create(name + ".allocs")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return pprof.Lookup("allocs").WriteTo(f, 0)
}

// captureAll joins the parts as cmd/bridge does.
func captureAll(ctx context.Context) error {
	log := zerolog.New(os.Stderr)
	specs, err := relation.ParseSpecs(os.Getenv("BRIDGE_TABLES"))
	if err != nil {
		return err
	}
	interval := 100 * time.Millisecond
	if text := os.Getenv("BRIDGE_POLL_INTERVAL"); text != "" {
		if interval, err = time.ParseDuration(text); err != nil {
			return err
		}
	}
	nc, err := broker.Connect(ctx, broker.Config{URL: os.Getenv("NATS_URL"), Name: "bench"}, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	pool, err := source.Open(source.Server{URL: os.Getenv("DATABASE_URL")}, len(specs.List))
	if err != nil {
		return err
	}
	defer pool.Close()
	listener, watcher := poller.NewListener(pool, log), poller.NewWatcher(pool, interval, log)
	published, captured := publish.NewMetrics(nil), health.NewMetrics(nil)
	fromWAL := wal.New(pool, wal.Options{
		Name: os.Getenv("BRIDGE_NAME"), HeartbeatInterval: 5 * time.Second,
	}, wal.NewMetrics(nil), log)
	leases, err := publish.NewLeases(js, publish.LeaseOptions{Prefix: stream.DefaultPrefix, Holder: "bench"})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = listener.Run(ctx) })
	wg.Go(func() { _ = leases.Run(ctx) })
	wg.Go(func() { _ = watcher.Run(ctx) })
	for _, spec := range specs.List {
		pub := publish.New(nc, js, publish.Options{
			Prefix: stream.DefaultPrefix, Schema: spec.Name.Schema, Table: spec.Name.Table, Leases: leases,
		}, published, log)
		wg.Go(func() { _ = pub.Run(ctx) })
		if spec.Capture == relation.CaptureWAL {
			fromWAL.Add(spec, pub, captured)
			continue
		}
		p := poller.New(pool, pub, poller.Options{Spec: spec, Interval: interval, HeartbeatInterval: 5 * time.Second, Watcher: watcher}, listener, captured, log)
		wg.Go(func() { _ = p.Run(ctx) })
	}
	wg.Go(func() { _ = fromWAL.Run(ctx) })
	<-ctx.Done()
	wg.Wait()
	return nil
}
