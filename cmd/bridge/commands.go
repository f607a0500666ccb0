package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"bridge/cmd/internal/program"
	"bridge/internal/broker"
	"bridge/internal/doctor"
	"bridge/internal/follow"
	"bridge/internal/publish"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// relations parses the arguments of a command: relations, with options as in
// BRIDGE_TABLES. A relation without options has those that BRIDGE_TABLES gives it.
func relations(cfg *Config, args []string) (relation.Specs, error) {
	configured, _ := relation.ParseSpecs(cfg.Tables) // check and the bridge report mistakes in it
	specs, err := relation.ParseArguments(args, configured)
	if err != nil {
		return relation.Specs{}, fmt.Errorf("%w: %w", program.ErrUsage, err)
	}
	return specs, nil
}

// oneRelation parses the only argument of a command.
func oneRelation(cfg *Config, args []string) (relation.Spec, error) {
	if len(args) != 1 {
		return relation.Spec{}, fmt.Errorf("%w: name one relation, for example users or sales.orders", program.ErrUsage)
	}
	specs, err := relations(cfg, args)
	if err != nil {
		return relation.Spec{}, err
	}
	if len(specs.List) != 1 || specs.All != nil {
		return relation.Spec{}, fmt.Errorf("%w: name one relation, not %q", program.ErrUsage, args[0])
	}
	return specs.List[0], nil
}

// connectOnce connects to the broker of a running bridge: the one at NATS_URL,
// or the server embedded in the bridge.
func connectOnce(ctx context.Context, cfg *Config) (jetstream.JetStream, error) {
	bc := cfg.broker()
	if bc.URL == "" {
		bc.URL = "nats://" + cfg.NatsListen
	}
	nc, err := broker.Connect(ctx, bc, zerolog.Nop())
	if err != nil {
		return nil, fmt.Errorf("%w; is the broker running, or the bridge that embeds it?", err)
	}
	js, err := stream.JetStream(nc, cfg.NatsJSDomain)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return js, nil
}

// found is a relation's stream and the connection to its broker.
type found struct {
	follow.Info
	js     jetstream.JetStream
	prefix string
}

// findArgument looks up the stream of the only argument of a command, which is a
// relation. The caller closes the connection.
func findArgument(ctx context.Context, cfg *Config, args []string) (*found, relation.Spec, error) {
	spec, err := oneRelation(cfg, args)
	if err != nil {
		return nil, relation.Spec{}, err
	}
	f, err := findStream(ctx, cfg, spec)
	return f, spec, err
}

// findStream looks up a relation's stream. The caller closes the connection.
func findStream(ctx context.Context, cfg *Config, spec relation.Spec) (*found, error) {
	js, err := connectOnce(ctx, cfg)
	if err != nil {
		return nil, err
	}
	f := &found{js: js, prefix: cfg.StreamPrefix}
	if err := f.look(ctx, spec.Name); err != nil {
		js.Conn().Close()
		return nil, err
	}
	return f, nil
}

func (f *found) look(ctx context.Context, rel relation.Name) error {
	name := stream.NewLayout(f.prefix, rel.Schema, rel.Table, false).Stream
	err := f.lookup(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		feed := relation.FeedOf(rel)
		if _, err := f.js.Stream(ctx, stream.NewLayout(f.prefix, feed.Schema, feed.Table, false).Stream); err == nil {
			return fmt.Errorf("no stream for %s, but there is one for its feed view: name %s", rel.Quoted(), feed.Quoted())
		}
		return fmt.Errorf("no stream for %s: is the relation in BRIDGE_TABLES, and is the bridge running?", rel.Quoted())
	}
	return err
}

func (f *found) lookup(ctx context.Context, name string) (err error) {
	f.Info, err = follow.Lookup(ctx, f.js, f.prefix, name)
	return err
}

// printSQL prints the SQL that prepares relations for capture.
func printSQL(ctx context.Context, cfg *Config, args []string, stdout io.Writer) error {
	opt := relation.SetupOptions{Name: cfg.Name}
	flags := flag.NewFlagSet("bridge sql", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&opt.Role, "role", "", "")
	flags.StringVar(&opt.As, "as", "", "")
	flags.BoolVar(&opt.NoTombstones, "no-tombstones", false, "")
	flags.BoolVar(&opt.NoNotify, "no-notify", false, "")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w; usage: bridge sql [-role NAME] [-as NAME] [-no-tombstones] [-no-notify] RELATION [RELATION …]", program.ErrUsage, err)
	}
	if flags.NArg() == 0 {
		return fmt.Errorf("%w: name the relations, for example users or sales.orders, or '*' for every table of schema public", program.ErrUsage)
	}
	named, err := relations(cfg, flags.Args())
	if err != nil {
		return err
	}
	var inv program.Invalid
	cfg.validateName(&inv)
	if cfg.validateDatabase(&inv); inv.Err() != nil {
		return inv.Err()
	}
	pool, err := source.Open(cfg.server(), 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	specs, err := named.Prepared(ctx, pool)
	if err != nil {
		return err
	}
	if len(specs) == 0 {
		return errors.New("schema public has no table that * stands for")
	}
	sql, err := relation.SetupSQL(ctx, pool, specs, opt)
	if errors.Is(err, relation.ErrOption) {
		return fmt.Errorf("%w: %w", program.ErrUsage, err)
	}
	if _, err := io.WriteString(stdout, sql); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return err
}

// adopt begins a new incarnation of a relation's stream, if its rows came from
// another database.
func adopt(ctx context.Context, cfg *Config, args []string, stdout, stderr io.Writer) error {
	spec, err := oneRelation(cfg, args)
	if err != nil {
		return err
	}
	var inv program.Invalid
	if cfg.validateDatabase(&inv); inv.Err() != nil {
		return inv.Err()
	}
	f, err := findStream(ctx, cfg, spec)
	if err != nil {
		return err
	}
	defer f.js.Conn().Close()
	log, err := program.Logger(stderr, cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("%w: LOG_LEVEL: %w", program.ErrUsage, err)
	}
	pool, err := source.Open(cfg.server(), 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	rel, _, err := relation.Load(ctx, pool, spec)
	if err != nil {
		return err
	}
	src, err := relation.LoadSource(ctx, pool)
	if err != nil {
		return err
	}
	if f.Meta.Source.System == src.SystemID && f.Meta.Source.Database == src.Database {
		_, err := fmt.Fprintf(stdout, "nothing to adopt: stream %s already belongs to this database\n", f.Layout.Stream)
		return err
	}
	p := publish.New(f.js.Conn(), f.js, publish.Options{
		Prefix: cfg.StreamPrefix, Schema: spec.Name.Schema, Table: spec.Name.Table, Log: spec.History == relation.HistoryLog,
		Settings: stream.Settings{MaxAge: spec.MaxAge, MaxBytes: spec.MaxBytes, Republish: spec.Republish},
	}, publish.NewMetrics(nil), log)
	if err := p.Adopt(ctx, source.Of(src, rel, 0)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "the stream of %s starts over with the rows of database %q of system %d; a running bridge continues by itself\n", spec.Name.Quoted(), src.Database, src.SystemID)
	return err
}

// check examines settings, Postgres and broker, and prints every problem.
func check(ctx context.Context, cfg *Config, warnings, args []string, stdout io.Writer) error {
	asJSON := len(args) == 1 && args[0] == "--json"
	if len(args) > 0 && !asJSON {
		return fmt.Errorf("%w: usage: bridge check [--json]", program.ErrUsage)
	}
	invalid := cfg.invalid()
	dc := doctor.Config{
		DatabaseURL: cfg.DatabaseURL, DatabasePasswordFile: cfg.DatabasePasswordFile, Specs: cfg.specs, Prefix: cfg.StreamPrefix, Replicas: cfg.replicas, Name: cfg.Name, MaxLag: cfg.slotMaxLag,
		Connect: func(ctx context.Context) (jetstream.JetStream, error) { return connectOnce(ctx, cfg) },
	}
	dc.Orphans = func(ctx context.Context, js jetstream.JetStream, src relation.Source, own []relation.Name) ([]relation.Name, error) {
		return orphans(ctx, js.Conn(), js, cfg.StreamPrefix, src, own)
	}
	if cfg.NatsURL == "" {
		dc.Embedded = &doctor.Embedded{Listen: cfg.NatsListen, Dir: cfg.NatsDir}
	}
	for _, p := range invalid {
		dc.Invalid = append(dc.Invalid, doctor.Problem{
			Severity: relation.SeverityError, Area: doctor.AreaConfig, Subject: p.Variable, What: p.Problem, Do: "correct the setting; see bridge --help",
		})
	}
	for _, w := range warnings {
		dc.Invalid = append(dc.Invalid, doctor.Problem{
			Severity: relation.SeverityWarning, Area: doctor.AreaConfig, Subject: "environment", What: w, Do: "remove the variable, or correct its name",
		})
	}
	report := doctor.Run(ctx, dc)
	print := report.Text
	if asJSON {
		print = report.JSON
	}
	if err := print(stdout); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if !report.OK() {
		return fmt.Errorf("%w: correct the errors above", program.ErrUsage)
	}
	return nil
}
