// Httpedge serves lockstep streams to HTTP clients from NATS JetStream.
// `httpedge --help` says how to use it.
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
	os.Exit(program.ExitCode(os.Stderr, "httpedge", run(ctx, os.Args[1:], os.Stdout, os.Stderr)))
}

// run is the whole program, except for signals and the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "-h", "--help", "help":
		return printHelp(stdout, args)
	case "-version", "--version", "version":
		_, err := fmt.Fprintln(stdout, program.Version("httpedge"))
		return err
	}
	if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return printHelp(stdout, []string{command})
	}
	var cfg Config
	warnings, err := program.Settings(prefix, &cfg)
	if err != nil {
		return err
	}
	switch command {
	case "":
		return httpedge(ctx, &cfg, warnings, stderr)
	case "check":
		return check(ctx, &cfg, warnings, args, stdout)
	case "healthcheck":
		return program.Healthcheck(ctx, cfg.Listen, args, stdout)
	}
	return unknown(command)
}

func unknown(command string) error {
	return fmt.Errorf("%w: there is no command %q; see httpedge --help", program.ErrUsage, command)
}
