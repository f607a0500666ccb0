package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/replay"
	"bridge/internal/report"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// checkWithin bounds the checks of the broker.
const checkWithin = 15 * time.Second

// checked is what check found.
type checked struct {
	OK        bool              `json:"ok"`
	Problems  report.Problems   `json:"problems"`
	Broker    *checkedBroker    `json:"broker,omitempty"`
	Relations []checkedRelation `json:"relations"`
}

type checkedBroker struct {
	Version string `json:"version"`
	Address string `json:"address"`
}

type checkedRelation struct {
	// Name is that of requests.
	Name    string `json:"name"`
	Stream  string `json:"stream"`
	History string `json:"history"`
	// Live is whether its bridge sends heartbeats. HeartbeatAge is how many
	// seconds old the last one is, absent where there is none yet.
	Live         bool   `json:"live"`
	HeartbeatAge *int64 `json:"heartbeat_age,omitempty"`
}

// check examines the settings, the address and the broker, and prints every
// problem.
func check(ctx context.Context, cfg *Config, warnings, args []string, stdout io.Writer) error {
	asJSON := len(args) == 1 && args[0] == "--json"
	if len(args) > 0 && !asJSON {
		return fmt.Errorf("%w: usage: httpedge check [--json]", program.ErrUsage)
	}
	c := &checked{Problems: report.Problems{}, Relations: []checkedRelation{}}
	wrong := map[string]bool{}
	for _, p := range cfg.invalid() {
		wrong[p.Variable] = true
		c.Problems.Fail(report.Config, p.Variable, p.Problem, "correct the setting; see httpedge --help")
	}
	for _, w := range warnings {
		c.Problems.Warn(report.Config, "environment", w, "remove the variable, or correct its name")
	}
	if !wrong["HTTPEDGE_LISTEN"] {
		c.address(ctx, cfg.Listen)
	}
	if !wrong["HTTPEDGE_STREAM_PREFIX"] && !slices.ContainsFunc(slices.Collect(maps.Keys(wrong)), func(v string) bool { return strings.HasPrefix(v, "NATS_") }) {
		c.broker(ctx, cfg)
	}
	c.OK = c.Problems.OK()
	var err error
	if asJSON {
		err = report.JSON(stdout, c)
	} else {
		_, err = io.WriteString(stdout, c.text())
	}
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if !c.OK {
		return fmt.Errorf("%w: correct the errors above", program.ErrUsage)
	}
	return nil
}

// address checks that the edge can listen, or that one does already.
func (c *checked) address(ctx context.Context, address string) {
	l, err := net.Listen("tcp", address)
	if err == nil {
		l.Close() //nolint:errcheck // it took no connection
		return
	}
	if !edgeRunsAt(ctx, address) {
		c.Problems.Fail(report.Config, "HTTPEDGE_LISTEN", "the edge can't listen, and no edge runs there: "+err.Error(),
			"stop the program that uses the address, or set HTTPEDGE_LISTEN to another")
	}
}

// edgeRunsAt tells an edge from other programs by a metric.
func edgeRunsAt(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return err == nil && strings.Contains(string(text), "lockstep_edge_clients")
}

// broker checks the broker and what it has for the edge.
func (c *checked) broker(ctx context.Context, cfg *Config) {
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	nc, err := broker.Connect(ctx, cfg.broker(), zerolog.Nop())
	if err != nil {
		c.Problems.Fail(report.Broker, "NATS_URL", err.Error(), broker.Advice(err))
		return
	}
	defer nc.Close()
	c.Broker = &checkedBroker{Version: nc.ConnectedServerVersion(), Address: nc.ConnectedAddr()}
	if err := broker.CheckServer(nc); err != nil {
		c.Problems.Fail(report.Broker, "", err.Error(), "upgrade every nats-server of the cluster")
	}
	js, err := stream.JetStream(nc, cfg.NatsJSDomain)
	if err != nil {
		c.Problems.Fail(report.Broker, "", err.Error(), "check the connection's settings")
		return
	}
	if _, what, do := broker.JetStream(ctx, js); what != "" {
		c.Problems.Fail(report.Broker, "", what, do)
		return
	}
	// A hub that does not run can list.
	hub := replay.NewHub(js, replay.Options{Prefix: cfg.StreamPrefix}, replay.NewMetrics(nil), zerolog.Nop())
	relations, err := hub.List(ctx)
	if err != nil {
		c.Problems.Fail(report.Broker, "", err.Error(), "give the user the rights that docs/operations.md lists; start the servers that hold the streams")
		return
	}
	for _, r := range relations {
		c.relation(cfg.StreamPrefix, r)
	}
	if len(relations) > 0 {
		return
	}
	do := startTheBridge
	if others := otherPrefixes(ctx, js); len(others) > 0 {
		do = "set HTTPEDGE_STREAM_PREFIX to the prefix of a bridge that has streams there: " + strings.Join(others, ", ")
	}
	c.Problems.Fail(report.Broker, "HTTPEDGE_STREAM_PREFIX", noStream(cfg.StreamPrefix), do)
}

func (c *checked) relation(prefix string, r replay.Listed) {
	out := checkedRelation{
		Name: lockstep.RelationName(r.Schema, r.Table), History: "latest",
		Stream: stream.NewLayout(prefix, r.Schema, r.Table, r.Log).Stream,
	}
	if r.Log {
		out.History = "log"
	}
	age, err := live(r)
	if out.Live = err == nil; !out.Live {
		c.Problems.Warn(report.Relation, out.Name, err.Error(), "see what the bridge's log and its /readyz say of the relation; is it still in BRIDGE_TABLES?")
	}
	if r.Heartbeat != nil {
		seconds := int64(age / time.Second)
		out.HeartbeatAge = &seconds
	}
	c.Relations = append(c.Relations, out)
}

// otherPrefixes returns the prefixes that the broker has streams of.
func otherPrefixes(ctx context.Context, js jetstream.JetStream) []string {
	prefixes := map[string]bool{}
	for info := range js.ListStreams(ctx).Info() {
		if _, err := stream.ReadMeta(info.Config); err == nil {
			prefix, _, _ := strings.Cut(info.Config.Name, "-")
			prefixes[strings.ToLower(prefix)] = true
		}
	}
	return slices.Sorted(maps.Keys(prefixes))
}

// text returns what was found, for people.
func (c *checked) text() string {
	var b strings.Builder
	if c.Broker != nil {
		fmt.Fprintf(&b, "nats-server %s at %s\n", c.Broker.Version, c.Broker.Address)
	}
	for _, r := range c.Relations {
		fmt.Fprintf(&b, "%-5s %s ← %s, history %s", report.Mark(r.Live), r.Name, r.Stream, r.History)
		if r.HeartbeatAge != nil {
			fmt.Fprintf(&b, ", last heartbeat %s ago", time.Duration(*r.HeartbeatAge)*time.Second)
		}
		b.WriteByte('\n')
	}
	return b.String() + c.Problems.Text()
}
