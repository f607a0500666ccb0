// Package embedded runs a NATS server with JetStream inside the process, for
// users who have no NATS. The server keeps its files in one directory and locks
// it: two servers on the same files would destroy them. The package is separate
// from broker so that a program that only connects contains no server.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridge/internal/broker"
	"bridge/internal/dirlock"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// Config is the configuration of an embedded server.
type Config struct {
	// Name is the name of the server.
	Name string
	// Listen is the host:port for clients. Port 0 stands for any free port.
	Listen string
	// Dir is the directory for its streams.
	Dir string
	// MaxPayload is the largest message, in bytes. 0 is 8 MiB, the most that NATS recommends.
	MaxPayload int
}

const defaultMaxPayload = 8 << 20

// Server is a nats-server with JetStream in this process. Its methods must not be called concurrently.
type Server struct {
	// Static after construction.
	cfg Config
	log zerolog.Logger

	// Owned by Start and Shutdown.
	srv    *server.Server
	unlock func()
}

// New returns a server that is not yet started.
func New(cfg Config, log zerolog.Logger) *Server {
	return &Server{cfg: cfg, log: log.With().Str("component", "nats-server").Logger()}
}

// Start starts the server. It returns when the server has read its streams from disk and accepts clients. After an
// error no server runs.
func (s *Server) Start(ctx context.Context) error {
	opts, err := s.cfg.serverOptions()
	if err != nil {
		return err
	}
	if s.unlock, err = lockDir(s.cfg.Dir); err != nil {
		return err
	}
	if err := s.start(ctx, opts); err != nil {
		s.Shutdown()
		return err
	}
	s.log.Info().Str("remote", s.srv.Addr().String()).Msg("embedded nats-server started")
	return nil
}

func (s *Server) start(ctx context.Context, opts *server.Options) error {
	if err := checkFree(ctx, s.cfg.Listen); err != nil {
		return err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("start the embedded nats-server: %w", err)
	}
	s.srv = srv
	log := &serverLog{log: s.log}
	srv.SetLoggerV2(log, false, false, false)
	srv.Start()
	for !srv.ReadyForConnections(100 * time.Millisecond) {
		if err := log.fatal(); err != nil {
			return fmt.Errorf("start the embedded nats-server: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	// If JetStream could not start, the server logs that as fatal, and goes on without JetStream.
	if err := log.fatal(); err != nil {
		return fmt.Errorf("start the embedded nats-server: %w", err)
	}
	if host, _, _ := net.SplitHostPort(s.cfg.Listen); !loopback(host) {
		s.log.Warn().Str("remote", s.srv.Addr().String()).
			Msg("embedded nats-server accepts clients from other machines without a password")
	}
	return nil
}

// Connect connects inside the process, without the network. The connection works until Shutdown.
func (s *Server) Connect(ctx context.Context, log zerolog.Logger, more ...nats.Option) (*nats.Conn, error) {
	opts := append([]nats.Option{nats.InProcessServer(s.srv)}, more...)
	return broker.Connect(ctx, broker.Config{Name: s.cfg.Name}, log, opts...)
}

// ClientURL returns the URL at which other programs reach the server.
func (s *Server) ClientURL() string { return s.srv.ClientURL() }

// Shutdown stops the server and waits until it has stopped. Close all connections first, or they try to reconnect.
func (s *Server) Shutdown() {
	if s.srv != nil {
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
	}
	if s.unlock != nil {
		s.unlock()
		s.unlock = nil
	}
}

func (c Config) serverOptions() (*server.Options, error) {
	host, p, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("address %q of the embedded nats-server is not of the form host:port", c.Listen)
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address %q of the embedded nats-server has no port from 0 to 65535", c.Listen)
	}
	if c.Dir == "" {
		return nil, errors.New("the embedded nats-server has no directory for its files; set BRIDGE_NATS_DIR")
	}
	maxPayload := c.MaxPayload
	if maxPayload == 0 {
		maxPayload = defaultMaxPayload
	}
	o := &server.Options{
		ServerName:      c.Name,
		Host:            host,
		Port:            int(port),
		NoSigs:          true,
		MaxPayload:      int32(maxPayload),
		JetStream:       true,
		StoreDir:        c.Dir,
		SyncInterval:    time.Second, // limits what a power failure loses; the default is two minutes
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
	}
	if port == 0 {
		o.Port = server.RANDOM_PORT
	}
	return o, nil
}

// lockDir makes the directory and locks it for this process.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the embedded nats-server's directory: %w", err)
	}
	unlock, err = dirlock.Lock(dir)
	if errors.Is(err, dirlock.ErrLocked) {
		return nil, fmt.Errorf("directory %q is in use by another bridge with an embedded nats-server; stop that one, "+
			"set BRIDGE_NATS_DIR to another directory, or set NATS_URL to use its server", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the embedded nats-server's directory %q: %w", dir, err)
	}
	return unlock, nil
}

// checkFree returns an error that says what to do if the address is taken. The server itself would only log that.
func checkFree(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is in use by another program, perhaps a nats-server or another bridge; stop that "+
			"one, set BRIDGE_NATS_LISTEN to a free address, or set NATS_URL=nats://%s if it is the NATS server to use", addr, addr)
	}
	if err != nil {
		return fmt.Errorf("listen for clients of the embedded nats-server: %w", err)
	}
	return l.Close()
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// serverLog passes on the server's warnings and errors. It keeps the first fatal error: there the server expects its
// logger to end the process.
type serverLog struct {
	log zerolog.Logger

	mu    sync.Mutex
	first error // Guarded by mu.
}

func (l *serverLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

func (l *serverLog) Fatalf(format string, v ...any) {
	err := fmt.Errorf(format, v...)
	l.mu.Lock()
	if l.first == nil {
		l.first = err
	}
	l.mu.Unlock()
	l.log.Error().Err(err).Msg("embedded nats-server failed")
}

func (l *serverLog) Errorf(format string, v ...any) {
	l.log.Error().Err(fmt.Errorf(format, v...)).Msg("embedded nats-server reported an error")
}

// afterKill is what the server warns of for each stream, if it was killed: the files have more than its index, so it reads
// them as a whole. Nothing is lost, and nobody must look.
var afterKill = []string{
	"Stream state outdated, last block has additional entries, will rebuild",
	"Stream state outdated, found extra blocks, will rebuild",
	"Recovering stream state from index errored: prior state file",
}

func (l *serverLog) Warnf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	if slices.ContainsFunc(afterKill, func(s string) bool { return strings.Contains(text, s) }) {
		l.log.Debug().Str("reason", text).Msg("embedded nats-server reads the files of a stream again, as after a kill")
		return
	}
	l.log.Warn().Str("reason", text).Msg("embedded nats-server warned")
}

func (l *serverLog) Noticef(string, ...any) {}
func (l *serverLog) Debugf(string, ...any)  {}
func (l *serverLog) Tracef(string, ...any)  {}
