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

	"bridge/internal/redact"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
)

const (
	// connectTimeout limits the attempt to connect to one server: TCP, TLS and the handshake.
	connectTimeout = 5 * time.Second
	// pingInterval is how often the client pings the server. When two pings have no answer, it gives the connection
	// up: a server that is paused, or cut off by the network, does not end its connections.
	pingInterval = 5 * time.Second
	// maxDelay limits the pause between two rounds over the servers.
	maxDelay = 2 * time.Second
	// repeatLog is how often a state that lasts is logged again.
	repeatLog = time.Minute
)

// Config says how to connect to NATS. Files are given by their paths.
type Config struct {
	// Name is the name of the connection. The server shows it to its operator.
	Name string

	// URL lists servers, comma-separated. A user and password, or a token, may stand before an @.
	URL string
	// Creds is a credentials file (a JWT and its seed), NKey a file with the seed of an NKey. At most one is set.
	Creds, NKey string
	// CA is a file of CA certificates that replace the system's. Cert and Key are the client certificate and its key.
	CA, Cert, Key string
}

// Problem is a mistake in one field of a Config.
type Problem struct {
	Field string
	Err   error
}

// Problems reports every mistake that it can find without a connection. It reads the files.
func (c Config) Problems() []Problem {
	var found []Problem
	add := func(field string, err error) {
		if err != nil {
			found = append(found, Problem{field, err})
		}
	}
	_, err := c.servers()
	add("URL", err)
	for _, f := range []struct {
		field string
		value *string
	}{{"Creds", &c.Creds}, {"NKey", &c.NKey}, {"CA", &c.CA}, {"Cert", &c.Cert}, {"Key", &c.Key}} {
		if isContent(*f.value) { // no error may repeat it
			add(f.field, errors.New("holds the content of a file; set it to the path of the file"))
			*f.value = ""
		}
	}
	if n := len(found); n > 0 && found[n-1].Field != "URL" {
		return found
	}
	if c.Creds != "" {
		add("Creds", credentials(c.Creds))
	}
	switch {
	case c.NKey != "" && c.Creds != "":
		add("NKey", errors.New("is set together with a credentials file; set only one of them"))
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
		add("Cert", errors.New("is set without its key; set both"))
	case c.Key != "":
		add("Key", errors.New("is set without its certificate; set both"))
	}
	return found
}

// isContent is true for what stands in a file of keys or certificates.
func isContent(value string) bool {
	_, err := nkeys.FromSeed([]byte(strings.TrimSpace(value)))
	return err == nil || strings.ContainsAny(value, "\n\r") || strings.Contains(value, "-----BEGIN")
}

func credentials(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if _, err := nkeys.ParseDecoratedNKey(text); err != nil {
		return fmt.Errorf("%s does not hold a JWT and a seed, as nsc writes them", file)
	}
	return nil
}

func certificates(file string) error {
	pem, err := os.ReadFile(file)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		err = fmt.Errorf("%s holds no PEM certificate", file)
	}
	return err
}

// servers checks the URL, and returns " at " and host:port of each server for messages. It returns "" where a host may be a piece of
// a password.
func (c Config) servers() (string, error) {
	var hosts []string
	advice := redact.NATS.Advice(c.URL)
	if advice != "" {
		advice = "; " + advice
	}
	for i, s := range strings.Split(c.URL, ",") {
		s = strings.TrimSpace(s)
		if s == "" && c.URL == "" {
			break
		}
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		// The parser's error is not returned: it repeats the URL with its password.
		u, err := url.Parse(s)
		switch {
		case err != nil || u.Hostname() == "" || strings.Contains(u.Hostname(), ":") && net.ParseIP(u.Hostname()) == nil,
			strings.Contains(u.Path+u.RawQuery+u.Fragment, "@"):
			return "", fmt.Errorf("NATS URL: server %d is not of the form nats://host:port%s", i+1, advice)
		case u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss" && i > 0 && advice != "":
			return "", fmt.Errorf("NATS URL: server %d has another scheme than nats, tls, ws or wss%s", i+1, advice)
		case u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss":
			return "", fmt.Errorf("NATS URL: server %d has the scheme %q; use nats, tls, ws or wss", i+1, u.Scheme)
		}
		hosts = append(hosts, u.Host)
	}
	if advice != "" {
		return "", nil
	}
	return " at " + strings.Join(hosts, ","), nil
}

// Connect connects to one of the servers. It fails when it has tried each server once, or when ctx ends; the caller
// retries. A connection that is lost later reconnects by itself, without end. With nats.RetryOnFailedConnect(true)
// Connect returns a connection also if no server answers yet. The options in more override those that Connect sets.
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
		return nil, fmt.Errorf("connect to NATS%s: %w", hosts, cfg.safe(err))
	}
	return nc, nil
}

// safe is an error of the connection with a text that holds nothing of a password.
func (c Config) safe(err error) error {
	if redact.NATS.Advice(c.URL) == "" {
		return err
	}
	for _, known := range []error{
		nats.ErrNoServers, nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired,
		nats.ErrSecureConnRequired, nats.ErrSecureConnWanted, nats.ErrTimeout, nats.ErrStaleConnection,
	} {
		if errors.Is(err, known) {
			err = redact.Public(known, err)
			break
		}
	}
	return redact.NATS.Error(err, c.URL)
}

// dial is nats.Connect with a context. If ctx ends first, the attempt goes on in the background, for at most
// connectTimeout a server, and a connection that it makes is closed.
func dial(ctx context.Context, servers string, opts []nats.Option) (*nats.Conn, error) {
	type result struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan result, 1) // the attempt sends one result, and does not wait for a reader
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
		nats.IgnoreAuthErrorAbort(), // retry a refused login, too: somebody may correct the server's users
		nats.ReconnectBufSize(-1),   // publishing while disconnected fails immediately
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
	return append(opts, c.logging(log.With().Str("component", "broker").Logger())...), nil
}

// delay returns the pause before the next round over the servers: exponential, jittered, capped.
func delay(attempts int) time.Duration {
	d := 50 * time.Millisecond << min(attempts, 10)
	d = min(d, maxDelay)
	return d/2 + rand.N(d/2)
}

// logging returns the handlers that log each change of the connection's state. Watch logs that it does not change.
func (c Config) logging(log zerolog.Logger) []nats.Option {
	var faults throttle
	return []nats.Option{
		nats.ConnectHandler(func(nc *nats.Conn) {
			log.Info().Str("remote", nc.ConnectedAddr()).Msg("broker connected")
		}),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if nc.IsClosed() {
				return
			}
			log.Warn().Err(c.safe(err)).Msg("broker connection lost")
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info().Str("remote", nc.ConnectedAddr()).Msg("broker connection restored")
		}),
		nats.ClosedHandler(func(nc *nats.Conn) {
			if err := nc.LastError(); err != nil {
				log.Warn().Err(c.safe(err)).Msg("broker connection closed")
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

// throttle allows one line per repeatLog.
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
