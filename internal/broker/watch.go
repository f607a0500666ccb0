package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// patience is how long a connection may be missing before Watch says so: a broker that restarts is back by then.
const patience = 3 * time.Second

// Watch logs while there is no connection: where it should lead, why there is none, and what to do. It does so after
// patience and then once a minute, until ctx ends. To learn why, it makes an attempt of its own, because a nats.Conn
// tells nobody that its login was refused again.
func Watch(ctx context.Context, nc *nats.Conn, cfg Config, log zerolog.Logger) {
	tick := time.NewTicker(patience / 3)
	defer tick.Stop()
	connected, told := time.Now(), time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if nc.IsConnected() {
			connected, told = time.Now(), time.Time{}
			continue
		}
		if time.Since(connected) < patience || time.Since(told) < repeatLog {
			continue
		}
		attempt, err := Connect(ctx, cfg, zerolog.Nop())
		if err == nil { // the connection will be there soon, too
			attempt.Close()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		told = time.Now()
		log.Warn().Str("component", "broker").Err(fmt.Errorf("%w; to do: %s", err, Advice(err))).Msg("broker still not connected")
	}
}

// Advice says what to do about an error of Connect.
func Advice(err error) string {
	var dns *net.DNSError
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return "correct NATS_CREDS, NATS_NKEY, or the user and password in NATS_URL"
	case errors.As(err, &dns):
		return "correct the host in NATS_URL"
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return "use tls:// in NATS_URL if the server has TLS, else nats://; set NATS_CA if your own CA signed its certificate"
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return "look for a firewall between here and the server, or a paused server"
	}
	return "start nats-server with -js, or correct NATS_URL; a bridge without NATS_URL runs a server of its own"
}

// JetStream asks for the JetStream of the connection's account. If it can't be used, what says why, and do says what
// to do; else both are empty.
func JetStream(ctx context.Context, js jetstream.JetStream) (info *jetstream.AccountInfo, what, do string) {
	info, err := js.AccountInfo(ctx)
	domain := js.Options().Domain
	switch {
	case domain != "" && errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		return nil, fmt.Sprintf("no server answers for the JetStream domain %q", domain),
			"correct NATS_JS_DOMAIN, or remove it if the server itself has the streams; check that the leaf node, or the import, is there"
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		return nil, "the server runs without JetStream", "start it with -js, or with jetstream {} in its configuration"
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return nil, "the account has no JetStream", "enable jetstream for the account"
	case err != nil:
		return nil, "JetStream does not answer: " + err.Error(),
			"give the user the rights that docs/operations.md lists; check that the cluster has a meta leader"
	}
	return info, "", ""
}
