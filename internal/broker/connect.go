package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
)

const (
	// connectTimeout bounds the attempt at one server: TCP, TLS and the handshake.
	connectTimeout = 5 * time.Second
	// pingInterval, twice, is how long a server may be silent before the connection is given up: one that is paused,
	// or behind a broken network, ends no connection by itself.
	pingInterval = 5 * time.Second
	// maxDelay caps the pause between two passes over the servers.
	maxDelay = 2 * time.Second
	// repeatLog is how often a state that lasts is logged again.
	repeatLog = time.Minute
)

// Config says where NATS is. Files are named by their paths.
type Config struct {
	// Name of the connection, which the server shows to its operator.
	Name string

	// URL lists servers, separated by commas; a user and a password or a token may stand before an @.
	URL string
	// Creds is a credentials file (a JWT and its key), NKey a file with the seed of an NKey. At most one of them.
	Creds, NKey string
	// CA is a file of certificates to trust instead of the system's; Cert and Key are those of the client.
	CA, Cert, Key string
}

// Problem is a mistake in one field of a Config.
type Problem struct {
	Field string
	Err   error
}

// Problems reports every mistake that can be seen without a connection; it opens the files.
func (c Config) Problems() []Problem {
	var found []Problem
	add := func(field string, err error) {
		if err != nil {
			found = append(found, Problem{field, err})
		}
	}
	_, err := c.servers()
	add("URL", err)
	if c.Creds != "" {
		add("Creds", credentials(c.Creds))
	}
	switch {
	case c.NKey != "" && c.Creds != "":
		add("NKey", errors.New("is given, and a credentials file, too; use one"))
	case c.NKey != "":
		_, err := nats.NkeyOptionFromSeed(c.NKey)
		add("NKey", err)
	}
	if c.CA != "" {
		add("CA", certificates(c.CA))
	}
	switch {
	case c.Cert != "" && c.Key != "":
		_, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		add("Cert", err)
	case c.Cert != "":
		add("Cert", errors.New("is given without its key"))
	case c.Key != "":
		add("Key", errors.New("is given without its certificate"))
	}
	return found
}

func credentials(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if _, err := nkeys.ParseDecoratedNKey(text); err != nil {
		return fmt.Errorf("%s holds no JWT and seed, as nsc writes them", file)
	}
	return nil
}

func certificates(file string) error {
	pem, err := os.ReadFile(file)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		err = fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return err
}

// servers returns host:port of each server, for people.
func (c Config) servers() (string, error) {
	var hosts []string
	for i, s := range strings.Split(c.URL, ",") {
		s = strings.TrimSpace(s)
		if s == "" && c.URL == "" {
			break
		}
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		// The parser's error is not passed on: it repeats the URL with its password.
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Hostname() == "" || strings.Contains(u.Hostname(), ":") && net.ParseIP(u.Hostname()) == nil:
			return "", fmt.Errorf("NATS URL: server %d is not of the form nats://host:port", i+1)
		case u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss":
			return "", fmt.Errorf("NATS URL: server %d has the scheme %q; known are nats, tls, ws and wss", i+1, u.Scheme)
		}
		hosts = append(hosts, u.Host)
	}
	return strings.Join(hosts, ","), nil
}

// Connect connects to one of the servers, or fails when each has failed once or ctx ends; the caller retries. A
// connection that is lost later comes back by itself, for ever. With the option nats.RetryOnFailedConnect(true) the
// connection is returned although no server answers yet. Options override those that Connect sets.
func Connect(ctx context.Context, cfg Config, log zerolog.Logger, more ...nats.Option) (*nats.Conn, error) {
	hosts, err := cfg.servers()
	if err != nil {
		return nil, err
	}
	opts, err := cfg.options(log)
	if err != nil {
		return nil, err
	}
	nc, err := dial(ctx, cfg.URL, append(opts, more...))
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", hosts, err)
	}
	return nc, nil
}

// dial is nats.Connect, which knows no context. If ctx ends first, the attempt goes on for at most connectTimeout for
// each server and its result is closed.
func dial(ctx context.Context, servers string, opts []nats.Option) (*nats.Conn, error) {
	type result struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan result, 1) // one result is sent by the attempt, which never waits for a reader
	go func() {
		nc, err := nats.Connect(servers, opts...)
		done <- result{nc, err}
	}()
	select {
	case r := <-done:
		return r.nc, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.nc != nil {
				r.nc.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func (c Config) options(log zerolog.Logger) ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name(c.Name),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // a refused login is retried like anything else: the server's users may be mended
		nats.ReconnectBufSize(-1),   // publishing while disconnected fails at once
		nats.CustomReconnectDelay(delay),
	}
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if c.NKey != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("read NKey file %q: %w", c.NKey, err)
		}
		opts = append(opts, nkey)
	}
	if c.CA != "" {
		opts = append(opts, nats.RootCAs(c.CA))
	}
	if c.Cert != "" {
		opts = append(opts, nats.ClientCert(c.Cert, c.Key))
	}
	return append(opts, logging(log.With().Str("component", "broker").Logger())...), nil
}

// delay is the pause before the next pass over the servers: exponential, jittered, capped.
func delay(attempts int) time.Duration {
	d := 50 * time.Millisecond << min(attempts, 10)
	d = min(d, maxDelay)
	return d/2 + rand.N(d/2)
}

// logging are the handlers that log what becomes of the connection.
func logging(log zerolog.Logger) []nats.Option {
	var away, faults throttle
	return []nats.Option{
		nats.ConnectHandler(func(nc *nats.Conn) {
			log.Info().Str("remote", nc.ConnectedAddr()).Msg("broker connected")
		}),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if nc.IsClosed() {
				return
			}
			away.ready() // the first line about it is this one
			log.Warn().Err(err).Msg("broker connection lost")
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if away.ready() {
				log.Warn().Err(err).Msg("broker still away")
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info().Str("remote", nc.ConnectedAddr()).Msg("broker connection restored")
		}),
		nats.ClosedHandler(func(nc *nats.Conn) {
			if err := nc.LastError(); err != nil {
				log.Warn().Err(err).Msg("broker connection closed")
				return
			}
			log.Debug().Msg("broker connection closed")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if !faults.ready() {
				return
			}
			line := log.Warn().Err(err)
			if sub != nil {
				line = line.Str("subject", sub.Subject)
			}
			line.Msg("broker reported an error")
		}),
	}
}

// throttle lets one through each repeatLog.
type throttle struct {
	mu   sync.Mutex
	last time.Time // Guarded by mu.
}

func (t *throttle) ready() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.last.IsZero() && time.Since(t.last) < repeatLog {
		return false
	}
	t.last = time.Now()
	return true
}
