// Package embedded runs a JetStream server inside the process where there is
// no other, with its files in one directory, which it locks: two servers on
// the same files would destroy them. It is a package of its own so that a
// program that only connects does not have a server in it.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"bridge/internal/broker"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// Config is an embedded server's.
type Config struct {
	// Name of the server.
	Name string
	// Listen is the host:port on which it takes clients; port 0 is a free one.
	Listen string
	// Dir keeps its streams.
	Dir string
	// MaxPayload is the largest message in bytes; 0 is 8 MiB, the most that NATS advises.
	MaxPayload int
}

const defaultMaxPayload = 8 << 20

// Server is a nats-server with JetStream in this process. Start, Connect and Shutdown are called one after another.
type Server struct {
	// Static after construction.
	cfg Config
	log zerolog.Logger

	// Owned by Start and Shutdown.
	srv  *server.Server
	lock *os.File
}

// New makes a server that has yet to be started.
func New(cfg Config, log zerolog.Logger) *Server {
	return &Server{cfg: cfg, log: log.With().Str("component", "nats-server").Logger()}
}

// Start starts the server and returns when it takes clients, which is after it has read its streams from disk. After
// an error nothing runs.
func (s *Server) Start(ctx context.Context) error {
	opts, err := s.cfg.serverOptions()
	if err != nil {
		return err
	}
	if s.lock, err = lockDir(s.cfg.Dir); err != nil {
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
	// JetStream that could not begin is reported this way, and the server goes on without it.
	if err := log.fatal(); err != nil {
		return fmt.Errorf("start the embedded nats-server: %w", err)
	}
	if host, _, _ := net.SplitHostPort(s.cfg.Listen); !loopback(host) {
		s.log.Warn().Str("remote", s.srv.Addr().String()).
			Msg("embedded nats-server takes clients from other machines without a password")
	}
	return nil
}

// Connect connects within the process. The connection works as long as the server, and is no load to a network.
func (s *Server) Connect(ctx context.Context, log zerolog.Logger, more ...nats.Option) (*nats.Conn, error) {
	opts := append([]nats.Option{nats.InProcessServer(s.srv)}, more...)
	return broker.Connect(ctx, broker.Config{Name: s.cfg.Name}, log, opts...)
}

// ClientURL is where other programs reach the server.
func (s *Server) ClientURL() string { return s.srv.ClientURL() }

// Shutdown ends the server and waits for its end. Close the connections first, or they will try to come back.
func (s *Server) Shutdown() {
	if s.srv != nil {
		s.srv.Shutdown()
		s.srv.WaitForShutdown()
	}
	if s.lock != nil {
		s.lock.Close() // which unlocks
		s.lock = nil
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
		return nil, errors.New("the embedded nats-server has no directory for its files")
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
		SyncInterval:    time.Second, // bounds what a loss of power takes; the default is two minutes
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
	}
	if port == 0 {
		o.Port = server.RANDOM_PORT
	}
	return o, nil
}

// lockDir makes the directory and takes it for this process. The lock ends with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the embedded nats-server's directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the embedded nats-server's directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("directory %q is in use by another bridge with an embedded nats-server; stop that one, "+
				"set BRIDGE_NATS_DIR to another directory, or set NATS_URL to use its server", dir)
		}
		return nil, fmt.Errorf("lock the embedded nats-server's directory %q: %w", dir, err)
	}
	return f, nil
}

// checkFree tells before the server starts, in words, that its address can't be had; the server itself would log it.
func checkFree(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is in use by another program, perhaps a nats-server or another bridge; stop that "+
			"one, set BRIDGE_NATS_LISTEN to a free address, or set NATS_URL=nats://%s if it is the NATS server to use", addr, addr)
	}
	if err != nil {
		return fmt.Errorf("take clients of the embedded nats-server: %w", err)
	}
	return l.Close()
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// serverLog passes the server's lines on from warnings up, and keeps the first fatal one, after which the server
// expects its logger to end the process.
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

func (l *serverLog) Warnf(format string, v ...any) {
	l.log.Warn().Str("reason", fmt.Sprintf(format, v...)).Msg("embedded nats-server warned")
}

func (l *serverLog) Noticef(string, ...any) {}
func (l *serverLog) Debugf(string, ...any)  {}
func (l *serverLog) Tracef(string, ...any)  {}
