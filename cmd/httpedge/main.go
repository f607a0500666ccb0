// Httpedge serves lockstep streams to HTTP clients from NATS JetStream.
// `httpedge --help` says how to use it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"bridge/cmd/internal/program"

	"github.com/rs/zerolog"
)

func main() {
	zerolog.ErrorFieldName = "err"
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(program.ExitCode(os.Stderr, "httpedge", run(ctx, os.Args[1:], os.Stdout, os.Stderr)))
}

// run is the whole program, except for signals and the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "-h", "--help", "help":
		printHelp(stdout)
		return nil
	case "-version", "--version", "version":
		_, err := fmt.Fprintln(stdout, program.Version("httpedge"))
		return err
	}
	var cfg Config
	warnings, err := program.Settings(prefix, &cfg)
	if err != nil {
		return err
	}
	switch command {
	case "":
		return httpedge(ctx, &cfg, warnings, stderr)
	case "healthcheck":
		return program.Healthcheck(ctx, cfg.Listen, stdout)
	}
	return fmt.Errorf("%w: there is no command %q; see httpedge --help", program.ErrUsage, command)
}

func printHelp(w io.Writer) {
	_, _ = io.WriteString(w, `httpedge serves the streams that the bridge fills to HTTP clients. A client sends
the last transaction ID that it has seen. It gets everything since then, and new
rows as they come.

Usage:
  httpedge               run
  httpedge healthcheck   ask the running edge whether it is ready
  httpedge --version

Requests:
  GET /                  the relations, as JSON
  GET /RELATION          every row, then what changes; RELATION is table or schema.table
  GET /RELATION?since=N  what changed since transaction N, then what changes
  ... &follow=0          the answer ends when the client has the current state; a row
                         may come in several versions, the last one counts
  ... &format=flat       the older dialect: columns at the top level

Settings, from the environment:
`)
	program.PrintSettings(w, prefix, &Config{})
	_, _ = io.WriteString(w, `
Examples:
  NATS_URL=nats://nats.internal:4222 HTTPEDGE_LISTEN=0.0.0.0:8080 httpedge
  curl -sN 'http://127.0.0.1:8080/users?since=551033'
`)
}
