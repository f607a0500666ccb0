// The bridge captures Postgres tables and views and publishes every changed
// row to NATS JetStream. `bridge --help` says how to use it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"bridge/cmd/internal/program"

	"github.com/rs/zerolog"
)

func main() {
	zerolog.ErrorFieldName = "err"
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(program.ExitCode(os.Stderr, "bridge", run(ctx, os.Args[1:], os.Stdout, os.Stderr)))
}

// run is the whole program but for signals and the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "-h", "--help", "help":
		printHelp(stdout)
		return nil
	case "-version", "--version", "version":
		_, err := fmt.Fprintln(stdout, program.Version("bridge"))
		return err
	}
	if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		printHelp(stdout)
		return nil
	}
	var cfg Config
	warnings, err := program.Settings(prefix, &cfg)
	if err != nil {
		return err
	}
	switch command {
	case "":
		return bridge(ctx, &cfg, warnings, stderr)
	case "check":
		return check(ctx, &cfg, warnings, args, stdout)
	case "sql":
		return printSQL(ctx, &cfg, args, stdout)
	case "tail":
		return tail(ctx, &cfg, args, stdout)
	case "reconcile":
		return askReconcile(ctx, &cfg, args, stdout, stderr)
	case "adopt":
		return adopt(ctx, &cfg, args, stdout, stderr)
	case "healthcheck":
		return program.Healthcheck(ctx, cfg.Listen, stdout)
	}
	return fmt.Errorf("%w: there is no command %q; see bridge --help", program.ErrUsage, command)
}

func printHelp(w io.Writer) {
	_, _ = io.WriteString(w, `bridge captures Postgres tables and views and publishes every changed row, with
heartbeats, to NATS JetStream: one stream per relation.

Usage:
  bridge                  run
  bridge check [--json]   verify the settings, Postgres and the broker; every problem at once
  bridge sql RELATION     print the SQL that prepares a table or view for capture;
                          -no-tombstones and -no-notify leave those parts out,
                          -role NAME is the role that the bridge logs in as (lockstep)
  bridge tail RELATION    subscribe and print a relation's rows
  bridge reconcile RELATION
                          have the running bridge compare a relation with its stream and
                          repair what differs: rows that were hard-deleted, for one
  bridge adopt RELATION   begin a stream anew whose rows came from another database
  bridge healthcheck      ask the running bridge whether it is ready
  bridge --version

Settings, all from the environment:
`)
	program.PrintSettings(w, prefix, &Config{})
	_, _ = io.WriteString(w, `
BRIDGE_TABLES lists relations: name or schema.name, in double quotes where SQL
would need them, each with options in parentheses:
  key=a+b        the key's columns (a view must name them)
  txid=column    the column with the transaction ID (default txid)
  deleted=column a boolean, or a timestamp that is not null, that marks a deleted row
  tombstones=30d how long deleted rows stay in the stream (default: for ever)
  history=log    keep every version, bounded by max_age=24h and max_bytes=10GiB
  capture=wal    read the write-ahead log instead of polling: hard deletes, nothing
                 to add to the table; needs wal_level=logical (bridge sql says all)
  actions=a+b    with capture=wal: of insert, update, delete, truncate, only these
* is every relation of schema public that qualifies; -name takes one out.

Examples:
  DATABASE_URL=postgres://localhost/app BRIDGE_TABLES=users bridge
  BRIDGE_TABLES='users,public.domains_feed(key=name),audit(history=log;max_age=24h)' bridge check
  bridge sql orders | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
  bridge sql 'orders(capture=wal)' | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
`)
}
