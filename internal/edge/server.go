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
	"sync/atomic"
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
	// MaxClients bounds the clients that are served at a time, MaxClientsPerAddress those
	// of one address; no bounds.
	MaxClients, MaxClientsPerAddress int
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
	// pingAfter is the silence after which a client with HTTP/2 is asked whether it is there,
	// pingTimeout how long it may take to answer.
	pingAfter, pingTimeout = 10 * time.Second, 10 * time.Second
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
	places  *places
	// drain ends when the server begins to stop. Then the batches end, one after the other,
	// so that not all clients come back at the same time.
	drain   context.Context
	stop    context.CancelFunc
	batches [drainBatches]batch

	streams sync.WaitGroup
	// served counts clients.
	served atomic.Uint64
}

// drainBatches is in how many parts clients are told to come back.
const drainBatches = 10

// drainPause is how long the next part waits, if there are more than fewClients.
const (
	drainPause = 100 * time.Millisecond
	fewClients = 500
)

// batch is a part of the clients. When done ends, each of its streams ends between two
// chunks. end ends it, and begun is when that was; it is read only after.
type batch struct {
	done  context.Context
	end   context.CancelFunc
	begun time.Time
}

// ends says whether the streams of the batch end.
func (b *batch) ends() bool { return b.done.Err() != nil }

// New returns a server.
func New(src Source, opt Options, m *Metrics, log zerolog.Logger) *Server {
	if opt.WriteTimeout == 0 {
		opt.WriteTimeout = 30 * time.Second
	}
	if opt.KeepAlive == 0 {
		opt.KeepAlive = 10 * time.Second
	}
	s := &Server{
		src: src, opt: opt, metrics: m, log: log.With().Str("component", "edge").Logger(), places: newPlaces(opt.MaxClients, opt.MaxClientsPerAddress),
	}
	s.drain, s.stop = context.WithCancel(context.Background())
	for i := range s.batches {
		s.batches[i].done, s.batches[i].end = context.WithCancel(context.Background())
	}
	return s
}

// Run serves on l until ctx ends; then it takes no more clients, ends every
// stream between two chunks and returns, within 5 s. It is called once.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaderBytes,
		Protocols: protocols(), HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		// What net/http says of malformed requests is clients' noise.
		ErrorLog: stdlog.New(io.Discard, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(&listener{Listener: l, log: s.log}) }()
	select {
	case err := <-served:
		s.beginDrain()
		s.streams.Wait()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	go s.beginDrain()
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

// protocols returns what clients may speak: HTTP/2 also without TLS, if they know that the
// server does (RFC 9113, section 3.3).
func protocols() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return &p
}

// beginDrain ends all streams.
func (s *Server) beginDrain() {
	s.stop()
	pause := drainPause
	if s.places.count() <= fewClients {
		pause = 0
	}
	for i := range s.batches {
		b := &s.batches[i]
		b.begun = time.Now()
		b.end()
		time.Sleep(pause)
	}
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
