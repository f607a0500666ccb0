package main

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/broker/embedded"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/stream"

	"github.com/dustin/go-humanize"
)

const prefix = "BRIDGE"

// Config holds the settings of the bridge. The exported fields are text, as the
// environment has them, so that Validate can report every bad one together.
type Config struct {
	DatabaseURL          string `envconfig:"DATABASE_URL" desc:"Postgres to capture from: a libpq URL or DSN"`
	DatabasePasswordFile string `envconfig:"DATABASE_PASSWORD_FILE" desc:"file with the password for DATABASE_URL, and nothing else; read at every connection"`
	Tables               string `desc:"relations to capture, comma-separated; see below"`
	NatsURL              string `envconfig:"NATS_URL" desc:"NATS servers, comma-separated; empty: run an embedded JetStream server"`
	NatsListen           string `split_words:"true" default:"127.0.0.1:4222" desc:"address of the embedded server"`
	NatsDir              string `split_words:"true" default:"./data/nats" desc:"directory for the files of the embedded server"`
	NatsCreds            string `envconfig:"NATS_CREDS" desc:"file with NATS credentials (JWT and seed)"`
	NatsNKey             string `envconfig:"NATS_NKEY" desc:"file with an NKey seed"`
	NatsCA               string `envconfig:"NATS_CA" desc:"file with the CA certificate of the NATS servers"`
	NatsCert             string `envconfig:"NATS_CERT" desc:"file with the client certificate"`
	NatsKey              string `envconfig:"NATS_KEY" desc:"file with the key of the client certificate"`
	NatsJSDomain         string `envconfig:"NATS_JS_DOMAIN" desc:"JetStream domain that has the streams, if not that of the NATS servers: for a leaf node or an imported account"`
	PollInterval         string `split_words:"true" default:"100ms" desc:"how often an idle relation is polled"`
	HeartbeatInterval    string `split_words:"true" default:"5s" desc:"longest time between two heartbeats"`
	ReconcileInterval    string `split_words:"true" default:"24h" desc:"how often each stream is compared with its relation and repaired; 0: only by bridge reconcile"`
	Listen               string `default:"127.0.0.1:8081" desc:"address for /healthz, /readyz and /metrics"`
	StreamPrefix         string `split_words:"true" default:"lockstep" desc:"prefix of the names of streams and subjects"`
	StreamReplicas       string `split_words:"true" desc:"replicas of each stream, 1 to 5; empty: 3 if the broker has three servers, else 1, and never lowered"`
	Name                 string `default:"lockstep" desc:"name of the slot and the publication for capture=wal; different for each bridge of a Postgres server, the same for a bridge and its standbys"`
	SlotMaxLag           string `split_words:"true" default:"10GiB" desc:"WAL that Postgres may keep for the slot; with more, the bridge drops the slot and compares every relation with its stream; 0: no limit"`
	LogLevel             string `envconfig:"LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`

	// Set by Validate.
	specs             relation.Specs
	pollInterval      time.Duration
	heartbeatInterval time.Duration
	reconcileInterval time.Duration
	replicas          int
	slotMaxLag        int64
}

// Validate parses every setting. Its error names each bad one and wraps
// program.ErrUsage.
func (c *Config) Validate() error { return c.invalid().Err() }

// invalid is Validate, with the problems as a list.
func (c *Config) invalid() program.Invalid {
	var inv program.Invalid
	c.validateDatabase(&inv)
	var err error
	if c.Tables == "" {
		inv.Add("BRIDGE_TABLES", "is empty; name the relations to capture, for example users,orders(history=log), or * for every table that qualifies")
	} else if c.specs, err = relation.ParseSpecs(c.Tables); err != nil {
		inv.Add("BRIDGE_TABLES", err.Error())
	}
	c.pollInterval = inv.Duration("BRIDGE_POLL_INTERVAL", c.PollInterval, time.Millisecond, time.Minute)
	c.heartbeatInterval = inv.Duration("BRIDGE_HEARTBEAT_INTERVAL", c.HeartbeatInterval, 100*time.Millisecond, time.Minute)
	c.validateReconcile(&inv)
	if err := program.CheckAddress(c.Listen); err != nil {
		inv.Add("BRIDGE_LISTEN", err.Error())
	}
	if c.NatsURL != "" {
		inv.Broker(c.broker())
	} else {
		c.validateEmbedded(&inv)
	}
	if err := stream.CheckDomain(c.NatsJSDomain); err != nil {
		inv.Add("NATS_JS_DOMAIN", err.Error())
	}
	if err := stream.CheckPrefix(c.StreamPrefix); err != nil {
		inv.Add("BRIDGE_STREAM_PREFIX", err.Error())
	}
	for _, spec := range c.specs.List {
		if err := stream.NewLayout(c.StreamPrefix, spec.Name.Schema, spec.Name.Table, false).CheckTopic(spec.Republish); err != nil {
			inv.Add("BRIDGE_TABLES", fmt.Sprintf("%s: republish=%s: %v", spec.Name.Quoted(), spec.Republish, err))
		}
	}
	if c.StreamReplicas != "" {
		if c.replicas, err = strconv.Atoi(c.StreamReplicas); err != nil || c.replicas < 1 || c.replicas > 5 {
			inv.Add("BRIDGE_STREAM_REPLICAS", fmt.Sprintf("%q is not a number from 1 to 5", c.StreamReplicas))
		} else if c.replicas > 1 && c.NatsURL == "" {
			inv.Add("BRIDGE_STREAM_REPLICAS", "the embedded server can't replicate; name a cluster in NATS_URL, or set 1")
		}
	}
	c.validateName(&inv)
	if c.SlotMaxLag != "0" {
		n, err := humanize.ParseBytes(c.SlotMaxLag)
		if err != nil || n < minSlotMaxLag || n > math.MaxInt64 {
			inv.Add("BRIDGE_SLOT_MAX_LAG", fmt.Sprintf("%q is not a size of at least one WAL segment, 16MiB (without a unit it is bytes); use for example 10GiB, or 0 for no limit", c.SlotMaxLag))
		}
		c.slotMaxLag = int64(n)
	}
	if _, err := program.Logger(io.Discard, c.LogLevel); err != nil {
		inv.Add("LOG_LEVEL", err.Error())
	}
	return inv
}

// minSlotMaxLag is one WAL segment. Postgres may keep that much for any slot, so
// a lower limit would drop the slot again and again.
const minSlotMaxLag = 16 << 20

// slotName matches the names that Postgres accepts for a replication slot.
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// maxReconcileInterval refuses an interval that looks as if reconcile were on,
// but in fact never ends.
const maxReconcileInterval = 366 * 24 * time.Hour

func (c *Config) validateReconcile(inv *program.Invalid) {
	if c.ReconcileInterval == "0" {
		c.reconcileInterval = 0
		return
	}
	var err error
	c.reconcileInterval, err = relation.ParseDuration(c.ReconcileInterval)
	if err != nil || c.reconcileInterval > maxReconcileInterval {
		inv.Add("BRIDGE_RECONCILE_INTERVAL", fmt.Sprintf("%q is neither 0 nor a duration from 1s to 366d, such as 24h or 7d", c.ReconcileInterval))
	}
}

// validateEmbedded checks the settings of the embedded server, and refuses those
// that are for an external one only.
func (c *Config) validateEmbedded(inv *program.Invalid) {
	if err := program.CheckAddress(c.NatsListen); err != nil {
		inv.Add("BRIDGE_NATS_LISTEN", err.Error())
	}
	for variable, value := range map[string]string{
		"NATS_CREDS": c.NatsCreds, "NATS_NKEY": c.NatsNKey, "NATS_CA": c.NatsCA, "NATS_CERT": c.NatsCert, "NATS_KEY": c.NatsKey,
		"NATS_JS_DOMAIN": c.NatsJSDomain,
	} {
		if value != "" {
			inv.Add(variable, "is only for a server named by NATS_URL, which is empty; set NATS_URL, or remove this")
		}
	}
}

func (c *Config) validateName(inv *program.Invalid) {
	if !slotName.MatchString(c.Name) {
		inv.Add("BRIDGE_NAME", fmt.Sprintf("%q can't name a replication slot; use 1 to 63 characters of a-z, 0-9 and _", c.Name))
	}
}

// validateDatabase never repeats the value: it may hold a password.
func (c *Config) validateDatabase(inv *program.Invalid) {
	if c.DatabaseURL == "" {
		inv.Add("DATABASE_URL", "is empty; for example postgres://lockstep@localhost:5432/app")
		return
	}
	if err := c.server().Check(); err != nil {
		inv.Add("DATABASE_URL", err.Error())
	}
	if err := c.server().CheckPassword(); err != nil {
		inv.Add("DATABASE_PASSWORD_FILE", strings.TrimPrefix(err.Error(), "DATABASE_PASSWORD_FILE: "))
	}
}

func (c *Config) server() source.Server {
	return source.Server{URL: c.DatabaseURL, PasswordFile: c.DatabasePasswordFile}
}

func (c *Config) broker() broker.Config {
	return broker.Config{
		URL: c.NatsURL, Creds: c.NatsCreds, NKey: c.NatsNKey, CA: c.NatsCA, Cert: c.NatsCert, Key: c.NatsKey,
		Name: "lockstep-bridge",
	}
}

func (c *Config) embedded() embedded.Config {
	return embedded.Config{Name: "lockstep-bridge", Listen: c.NatsListen, Dir: c.NatsDir}
}
