package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Patience is how long a test waits for something that must come, where users are promised no time: one minute, and two
// with the race detector. A healthy test needs a fraction of it, so that a busy machine fails none. Who waits for tests to
// fail names less in LOCKSTEP_TEST_PATIENCE, as make mutants does.
func Patience() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("LOCKSTEP_TEST_PATIENCE")); err == nil {
		return d
	}
	if raceEnabled {
		return 2 * time.Minute
	}
	return time.Minute
}

// Eventually calls cond every 10 ms until it returns nil. After timeout it fails the test with cond's last error. Only
// the test's own goroutine may call it.
func Eventually(t testing.TB, timeout time.Duration, cond func() error) {
	t.Helper()
	if err := poll(timeout, cond); err != nil {
		t.Fatalf("not within %v: %v", timeout, err)
	}
}

// errEnded is what a condition returns to poll if waiting longer is useless.
var errEnded = errors.New("the server has ended")

// poll calls cond until it returns nil. After timeout, or after errEnded, it returns cond's error.
func poll(timeout time.Duration, cond func() error) error {
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil || errors.Is(err, errEnded) || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

// Exec opens a connection and runs the statements one by one, each in its own transaction.
func Exec(t testing.TB, url string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connect to the test database: %v", err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			t.Fatalf("run %q: %v", s, err)
		}
	}
}

// Conn opens a connection, which is closed when the test ends.
func Conn(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connect to the test database: %v", err)
	}
	if _, err := conn.Exec(ctx, "SET jit = off"); err != nil { // as on the bridge's connections: compiling the catalog's queries takes a second
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// NATSConn connects to a NATS server. The connection reconnects for ever, and is closed when the test ends.
func NATSConn(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0),
	}, opts...)
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatalf("connect to the test broker: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// JetStream is NATSConn, and returns the JetStream of the connection.
func JetStream(t testing.TB, url string, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(NATSConn(t, url, opts...))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Main is a package's TestMain. It runs the tests, and then fails if goroutines of this module are left. It checks this
// once for the whole package, because tests run in parallel and a goroutine does not show which test started it.
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := poll(5*time.Second, leaked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked reports goroutines, other than the caller and this package's own, that run code of this module or of its
// clients.
func leaked() error {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for i, g := range strings.Split(string(buf), "\n\n") {
		ours := strings.Contains(g, "bridge/") || strings.Contains(g, "nats-io/") || strings.Contains(g, "jackc/")
		if i > 0 && ours && !strings.Contains(g, "bridge/internal/testenv.") {
			left = append(left, g)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%d goroutines are left after the tests:\n\n%s", len(left), strings.Join(left, "\n\n"))
	}
	return nil
}
