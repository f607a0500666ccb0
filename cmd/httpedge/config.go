package main

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/stream"
)

const prefix = "HTTPEDGE"

// Config is the edge's settings as the environment has them. Every field is
// text, so that Validate reports all that is wrong at once.
type Config struct {
	NatsURL           string `envconfig:"NATS_URL" default:"nats://127.0.0.1:4222" desc:"broker; several servers are separated by commas"`
	NatsCreds         string `envconfig:"NATS_CREDS" desc:"file with NATS credentials (JWT and seed)"`
	NatsNKey          string `envconfig:"NATS_NKEY" desc:"file with an NKey seed"`
	NatsCA            string `envconfig:"NATS_CA" desc:"file with the certificate authority of the broker"`
	NatsCert          string `envconfig:"NATS_CERT" desc:"file with the client's certificate"`
	NatsKey           string `envconfig:"NATS_KEY" desc:"file with the client's key"`
	Listen            string `default:"127.0.0.1:8080" desc:"where clients connect; also /healthz, /readyz and /metrics"`
	CacheBytes        string `split_words:"true" default:"67108864" desc:"memory for the newest rows of each relation, in bytes"`
	WriteTimeout      string `split_words:"true" default:"30s" desc:"a client that takes nothing for so long is cut"`
	KeepaliveInterval string `split_words:"true" default:"10s" desc:"silence after which a client gets an empty chunk"`
	StreamPrefix      string `split_words:"true" default:"lockstep" desc:"the bridge's BRIDGE_STREAM_PREFIX"`
	LogLevel          string `envconfig:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`

	// What Validate made of them.
	cacheBytes        int
	writeTimeout      time.Duration
	keepaliveInterval time.Duration
}

// Validate reads the text of every setting. Its error names each bad one, and
// wraps program.ErrUsage.
func (c *Config) Validate() error {
	var inv program.Invalid
	if c.NatsURL == "" {
		inv.Add("NATS_URL", "is empty; for example nats://127.0.0.1:4222")
	} else {
		inv.Broker(c.broker())
	}
	if err := program.CheckAddress(c.Listen); err != nil {
		inv.Add("HTTPEDGE_LISTEN", err.Error())
	}
	if err := stream.CheckPrefix(c.StreamPrefix); err != nil {
		inv.Add("HTTPEDGE_STREAM_PREFIX", err.Error())
	}
	const least, most = 1 << 20, 1 << 40
	n, err := strconv.Atoi(c.CacheBytes)
	if err != nil || n < least || n > most {
		inv.Add("HTTPEDGE_CACHE_BYTES", fmt.Sprintf("%q is not a number from %d to %d", c.CacheBytes, least, most))
	}
	c.cacheBytes = n
	c.writeTimeout = inv.Duration("HTTPEDGE_WRITE_TIMEOUT", c.WriteTimeout, 100*time.Millisecond, time.Hour)
	c.keepaliveInterval = inv.Duration("HTTPEDGE_KEEPALIVE_INTERVAL", c.KeepaliveInterval, 100*time.Millisecond, time.Hour)
	if _, err := program.Logger(io.Discard, c.LogLevel); err != nil {
		inv.Add("LOG_LEVEL", err.Error())
	}
	return inv.Err()
}

func (c *Config) broker() broker.Config {
	return broker.Config{
		URL: c.NatsURL, Creds: c.NatsCreds, NKey: c.NatsNKey, CA: c.NatsCA, Cert: c.NatsCert, Key: c.NatsKey, Name: "lockstep-httpedge",
	}
}
