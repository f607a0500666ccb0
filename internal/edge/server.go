package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Options are a server's; zero values have the defaults named.
type Options struct {
	// WriteTimeout is how long a write to a client may take before it is cut;
	// 30 s.
	WriteTimeout time.Duration
	// KeepAlive is the silence after which a client gets an empty chunk; 10 s.
	KeepAlive time.Duration
	// Metrics is what GET /metrics shows.
	Metrics http.Handler
}

const (
	readHeaderTimeout = 5 * time.Second
	// readTimeout also bounds the wait for a body that was announced; none is
	// ever read.
	readTimeout = 10 * time.Second
	// maxHeaderBytes is the limit of a request's head; net/http allows 4096
	// bytes more than it is told.
	maxHeaderBytes = 16<<10 - 4096
	// drainTimeout bounds the wait for requests that are being answered.
	drainTimeout = 4 * time.Second
)

// Server serves streams to clients.
type Server struct {
	// Static after construction.
	src     Source
	opt     Options
	log     zerolog.Logger
	metrics *Metrics
	// drain ends when the server stops; every stream then ends between two chunks. stop
	// ends it, and drainBegun is when that was; it is read only after.
	drain      context.Context
	stop       context.CancelFunc
	drainBegun time.Time

	streams sync.WaitGroup
}

// New returns a server.
func New(src Source, opt Options, m *Metrics, log zerolog.Logger) *Server {
	if opt.WriteTimeout == 0 {
		opt.WriteTimeout = 30 * time.Second
	}
	if opt.KeepAlive == 0 {
		opt.KeepAlive = 10 * time.Second
	}
	s := &Server{src: src, opt: opt, metrics: m, log: log.With().Str("component", "edge").Logger()}
	s.drain, s.stop = context.WithCancel(context.Background())
	return s
}

// Run serves on l until ctx ends; then it takes no more clients, ends every
// stream between two chunks and returns, within 5 s. It is called once.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaderBytes,
		// What net/http says of malformed requests is clients' noise.
		ErrorLog: stdlog.New(io.Discard, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		s.beginDrain()
		s.streams.Wait()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.beginDrain()
	drainCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := srv.Shutdown(drainCtx)
	if err != nil {
		_ = srv.Close()
	}
	<-served
	s.streams.Wait()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop: %w", err)
	}
	return ctx.Err()
}

func (s *Server) beginDrain() {
	s.drainBegun = time.Now()
	s.stop()
}

// ServeHTTP implements http.Handler. It cleans no path and redirects nothing:
// a redirect ends old clients for good.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.refuse(w, r, &Refusal{Code: MethodNotAllowed, Message: "only GET and HEAD are allowed"})
		return
	}
	if r.URL.Path == "/" {
		s.list(w, r)
		return
	}
	name, since, ok := split(r)
	if !ok {
		s.refuse(w, r, unknown())
		return
	}
	// These names are reserved: lockstep.ParseRelation takes none of them for a relation's.
	switch {
	case name == "healthz" && len(since) == 0:
		_, _ = w.Write([]byte("ok\n"))
	case name == "readyz" && len(since) == 0:
		s.readyz(w, r)
	case name == "metrics" && len(since) == 0:
		s.opt.Metrics.ServeHTTP(w, r)
	default:
		s.stream(w, r, name, since)
	}
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if err := s.src.Ready(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n"))
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	doc, err := s.src.List(r.Context())
	if err != nil {
		s.refuse(w, r, asRefusal(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(doc)
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, refusal *Refusal) {
	s.metrics.refusals.WithLabelValues(string(refusal.Code)).Inc()
	level := zerolog.DebugLevel
	if refusal.Code == Internal {
		level = zerolog.ErrorLevel
	}
	s.log.WithLevel(level).Err(refusal).Str("remote", r.RemoteAddr).Msg("request refused")
	refusal.write(w)
}
