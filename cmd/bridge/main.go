// Bridge captures Postgres tables and views and publishes every changed row to
// NATS JetStream. `bridge --help` says how to use it.
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

// run is the whole program, except for signals and the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "-h", "--help", "help":
		return printHelp(stdout, args)
	case "-version", "--version", "version":
		_, err := fmt.Fprintln(stdout, program.Version("bridge"))
		return err
	}
	if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return printHelp(stdout, []string{name})
	}
	var cfg Config
	warnings, err := program.Settings(prefix, &cfg)
	if err != nil {
		return err
	}
	switch name {
	case "":
		return bridge(ctx, &cfg, warnings, stderr)
	case "check":
		return check(ctx, &cfg, warnings, args, stdout)
	case "sql":
		return printSQL(ctx, &cfg, args, stdout)
	case "tail":
		return tail(ctx, &cfg, args, stdout, stderr)
	case "reconcile":
		return askReconcile(ctx, &cfg, args, stdout, stderr)
	case "adopt":
		return adopt(ctx, &cfg, args, stdout, stderr)
	case "remove":
		return remove(ctx, &cfg, args, os.Stdin, stdout)
	case "healthcheck":
		return program.Healthcheck(ctx, cfg.Listen, args, stdout)
	}
	return unknown(name)
}

func unknown(command string) error {
	return fmt.Errorf("%w: there is no command %q; see bridge --help", program.ErrUsage, command)
}
