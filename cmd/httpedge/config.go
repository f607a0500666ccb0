package main

import (
	"io"
	"math"
	"syscall"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/stream"
)

const prefix = "HTTPEDGE"

// Config holds the settings of the edge. The exported fields are text, as the
// environment has them, so that Validate can report every bad one together.
type Config struct {
	NatsURL              string `envconfig:"NATS_URL" default:"nats://127.0.0.1:4222" desc:"NATS servers, comma-separated"`
	NatsCreds            string `envconfig:"NATS_CREDS" desc:"file with NATS credentials (JWT and seed)"`
	NatsNKey             string `envconfig:"NATS_NKEY" desc:"file with an NKey seed"`
	NatsCA               string `envconfig:"NATS_CA" desc:"file with the CA certificate of the NATS servers"`
	NatsCert             string `envconfig:"NATS_CERT" desc:"file with the client certificate"`
	NatsKey              string `envconfig:"NATS_KEY" desc:"file with the key of the client certificate"`
	NatsJSDomain         string `envconfig:"NATS_JS_DOMAIN" desc:"JetStream domain that has the streams, if not that of the NATS servers: for a leaf node or an imported account"`
	Listen               string `default:"127.0.0.1:8080" desc:"address for clients, and for /healthz, /readyz and /metrics"`
	CacheBytes           string `split_words:"true" default:"64MiB" desc:"memory for what clients read of all relations"`
	CacheDir             string `split_words:"true" desc:"folder for what does not fit into that memory, also after a restart; by default a private one among the temporary files"`
	CacheDiskBytes       string `split_words:"true" default:"4GiB" desc:"most bytes of the files there; 0: no cache on disk"`
	MaxClients           string `split_words:"true" default:"auto" desc:"most clients at a time; auto: as many as the limit of open files allows"`
	MaxClientsPerAddress string `split_words:"true" default:"0" desc:"most clients at a time from one address; 0: no limit"`
	WriteTimeout         string `split_words:"true" default:"30s" desc:"disconnect a client that reads nothing for this long"`
	KeepaliveInterval    string `split_words:"true" default:"10s" desc:"send a keep-alive chunk after this much silence"`
	StreamPrefix         string `split_words:"true" default:"lockstep" desc:"the same as BRIDGE_STREAM_PREFIX of the bridge"`
	LogLevel             string `envconfig:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`

	// Set by Validate.
	cacheBytes        int
	cacheDiskBytes    int64
	maxClients        int
	maxPerAddress     int
	writeTimeout      time.Duration
	keepaliveInterval time.Duration
}

// Validate parses every setting. Its error names each bad one and wraps
// program.ErrUsage.
func (c *Config) Validate() error { return c.invalid().Err() }

// invalid parses every setting, and returns what is wrong.
func (c *Config) invalid() (inv program.Invalid) {
	if c.NatsURL == "" {
		inv.Add("NATS_URL", "is empty; set it, for example to nats://127.0.0.1:4222")
	} else {
		inv.Broker(c.broker())
	}
	if err := program.CheckAddress(c.Listen); err != nil {
		inv.Add("HTTPEDGE_LISTEN", err.Error())
	}
	if err := stream.CheckDomain(c.NatsJSDomain); err != nil {
		inv.Add("NATS_JS_DOMAIN", err.Error())
	}
	if err := stream.CheckPrefix(c.StreamPrefix); err != nil {
		inv.Add("HTTPEDGE_STREAM_PREFIX", err.Error())
	}
	c.cacheBytes = int(inv.Bytes("HTTPEDGE_CACHE_BYTES", c.CacheBytes, 1<<20, 1<<40))
	c.cacheDiskBytes = inv.Bytes("HTTPEDGE_CACHE_DISK_BYTES", c.CacheDiskBytes, 0, 1<<50)
	if c.MaxClients == "auto" {
		c.maxClients = clientsFor(openFiles())
	} else {
		c.maxClients = inv.Count("HTTPEDGE_MAX_CLIENTS", c.MaxClients, 1, 10_000_000)
	}
	c.maxPerAddress = inv.Count("HTTPEDGE_MAX_CLIENTS_PER_ADDRESS", c.MaxClientsPerAddress, 0, 10_000_000)
	c.writeTimeout = inv.Duration("HTTPEDGE_WRITE_TIMEOUT", c.WriteTimeout, 100*time.Millisecond, time.Hour)
	c.keepaliveInterval = inv.Duration("HTTPEDGE_KEEPALIVE_INTERVAL", c.KeepaliveInterval, 100*time.Millisecond, time.Hour)
	if _, err := program.Logger(io.Discard, c.LogLevel); err != nil {
		inv.Add("LOG_LEVEL", err.Error())
	}
	return inv
}

// reserve is how many files are left for connections that are no clients: to the broker,
// and requests for /metrics and the like.
const reserve = 200

// clientsFor returns how many clients the edge takes where a process may open so many
// files.
func clientsFor(files uint64) int {
	return int(min(max(files, 2*reserve)-reserve, math.MaxInt32))
}

// openFiles returns how many files this process may have open. Go has raised that to the
// most that is allowed.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return limit.Cur
}

func (c *Config) broker() broker.Config {
	return broker.Config{
		URL: c.NatsURL, Creds: c.NatsCreds, NKey: c.NatsNKey, CA: c.NatsCA, Cert: c.NatsCert, Key: c.NatsKey, Name: "lockstep-httpedge",
	}
}
