package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/health"
	"bridge/internal/relation"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// ops is the bridge's own listener: /healthz, /readyz and /metrics.
type ops struct {
	// Static after construction.
	listener  net.Listener
	log       zerolog.Logger
	registry  *prometheus.Registry
	heartbeat time.Duration

	mu sync.Mutex
	// Guarded by mu.
	waiting  string
	broker   *nats.Conn
	captured []captured
}

// captured is a relation and its capture.
type captured struct {
	name relation.Name
	by   interface{ Status() health.Status }
}

// newOps listens before it returns, so that an address in use is an error at the
// start.
func newOps(cfg *Config, log zerolog.Logger) (*ops, error) {
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on BRIDGE_LISTEN: %w", err)
	}
	o := &ops{
		listener: l, log: log.With().Str("component", "ops").Logger(), registry: program.Registry(),
		heartbeat: cfg.heartbeatInterval, waiting: "starting",
	}
	return o, nil
}

// run serves until ctx ends.
func (o *ops) run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("/readyz", o.readyz)
	mux.Handle("/metrics", promhttp.HandlerFor(o.registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	o.log.Info().Str("remote", o.listener.Addr().String()).Msg("listening")
	if err := srv.Serve(o.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", o.listener.Addr(), err)
	}
	return ctx.Err()
}

func (o *ops) setWaiting(reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = reason
}

func (o *ops) setBroker(nc *nats.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broker = nc
}

// show ends the waiting: from now on the bridge is ready if all the relations are.
func (o *ops) show(all []captured) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.captured, o.waiting = all, ""
}

// readiness is the body of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Reason says what the whole bridge waits for.
	Reason    string                       `json:"reason,omitempty"`
	Relations map[string]relationReadiness `json:"relations,omitempty"`
}

type relationReadiness struct {
	Ready  bool   `json:"ready"`
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
}

func (o *ops) readyz(w http.ResponseWriter, _ *http.Request) {
	r := o.readiness(time.Now())
	w.Header().Set("Content-Type", "application/json")
	if !r.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(r)
}

func (o *ops) readiness(now time.Time) readiness {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := readiness{Ready: o.waiting == "", Reason: o.waiting, Relations: map[string]relationReadiness{}}
	if r.Ready && o.broker != nil && !o.broker.IsConnected() {
		r.Ready, r.Reason = false, "no connection to the broker"
	}
	for _, c := range o.captured {
		rr := o.relationReadiness(c.by.Status(), now)
		r.Ready = r.Ready && rr.Ready
		r.Relations[c.name.String()] = rr
	}
	return r
}

func (o *ops) relationReadiness(s health.Status, now time.Time) relationReadiness {
	rr := relationReadiness{State: string(s.State)}
	switch {
	case s.Err != nil:
		rr.Reason = s.Err.Error()
	case s.State == health.StateStandby:
		rr.Ready, rr.Reason = true, cmp.Or(s.Note, "another bridge captures it")
	case s.State == health.StateFirstLoad:
		rr.Reason = fmt.Sprintf("reading the whole relation: %d of about %d rows", s.LoadDone, s.LoadRows)
	case s.Heartbeat.IsZero():
		rr.Reason = cmp.Or(s.Note, "no heartbeat yet")
	case now.Sub(s.Heartbeat) > 3*o.heartbeat:
		rr.Reason = fmt.Sprintf("the last heartbeat is %s old", now.Sub(s.Heartbeat).Round(time.Second))
		if s.Note != "" {
			rr.Reason += "; " + s.Note
		}
	default:
		rr.Ready = true
	}
	return rr
}
