package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

// Logger returns the program's logger. It writes JSON, or readable lines if w is
// a terminal. level is debug, info, warn or error.
func Logger(w io.Writer, level string) (zerolog.Logger, error) {
	lvl, err := zerolog.ParseLevel(strings.ToLower(level))
	if err != nil || lvl < zerolog.DebugLevel || lvl > zerolog.ErrorLevel {
		return zerolog.Nop(), fmt.Errorf("%q is not a log level; use debug, info, warn or error", level)
	}
	if f, ok := w.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05.000"}
	}
	return zerolog.New(w).Level(lvl).With().Timestamp().Logger(), nil
}

// These are variables of zerolog's for the whole process. Its own time has whole
// seconds, which the time on a terminal is made of, and its durations have no unit.
func init() {
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	zerolog.DurationFieldFormat = zerolog.DurationFormatString
}

// ExitCode prints the error that ended a program and returns its exit status: 0
// without an error or after a cancelled context, 2 for ErrUsage, else 1.
func ExitCode(stderr io.Writer, name string, err error) int {
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	_, _ = fmt.Fprintf(stderr, "%s: %v\n", name, err)
	if errors.Is(err, ErrUsage) {
		return 2
	}
	return 1
}

// CheckAddress returns an error unless address is a host:port to listen on.
func CheckAddress(address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if _, err := net.ResolveTCPAddr("tcp", address); err != nil {
		return fmt.Errorf("%q is not host:port: the host or the port is unknown", address)
	}
	return nil
}

// Healthcheck asks the program that listens on address whether it runs, or with
// the argument --ready whether it is ready. If it is not, Healthcheck prints its
// answer and returns an error.
//
// Health is not readiness: an engine may end a container that is not healthy, and
// a first load that began again and again would never end.
func Healthcheck(ctx context.Context, address string, args []string, out io.Writer) error {
	path := "/healthz"
	switch {
	case len(args) == 1 && args[0] == "--ready":
		path = "/readyz"
	case len(args) > 0:
		return fmt.Errorf("%w: healthcheck takes nothing but --ready", ErrUsage)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: %q is not host:port", ErrUsage, address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask for health (is the program running?): %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	_, _ = io.Copy(out, io.LimitReader(resp.Body, 64<<10))
	return fmt.Errorf("%s: status %d", path, resp.StatusCode)
}
