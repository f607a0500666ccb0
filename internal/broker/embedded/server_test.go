package embedded_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/internal/broker/embedded"
	"bridge/internal/testenv"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestServer_KeepsStreamsAndTakesClients(t *testing.T) {
	t.Parallel()
	cfg := embedded.Config{Name: "test", Listen: "127.0.0.1:0", Dir: filepath.Join(t.TempDir(), "a", "nats"), MaxPayload: 2 << 20}
	for round := range 2 {
		e, nc, js, stop := start(t, cfg, zerolog.Nop())
		var err error
		if round == 0 {
			_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
		} else {
			_, err = js.Stream(t.Context(), "S")
		}
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if nc.MaxPayload() != 2<<20 {
			t.Errorf("got a payload limit of %d", nc.MaxPayload())
		}
		out, err := nats.Connect(e.ClientURL())
		if err != nil {
			t.Fatal(err)
		}
		out.Close()
		stop()
	}
}

// A server that can't start says why, and what to do.
func TestServer_SaysWhatStandsInItsWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := embedded.New(embedded.Config{Listen: "127.0.0.1:0", Dir: dir}, zerolog.Nop())
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer first.Shutdown()
	taken := strings.TrimPrefix(first.ClientURL(), "nats://")
	for want, cfg := range map[string]embedded.Config{
		"BRIDGE_NATS_DIR":    {Listen: "127.0.0.1:0", Dir: dir},
		"BRIDGE_NATS_LISTEN": {Listen: taken, Dir: t.TempDir()},
		"host:port":          {Listen: "4222", Dir: t.TempDir()},
		"0 to 65535":         {Listen: "127.0.0.1:70000", Dir: t.TempDir()},
		"no directory":       {Listen: "127.0.0.1:0"},
		"mkdir":              {Listen: "127.0.0.1:0", Dir: "/dev/null/nats"},
	} {
		e := embedded.New(cfg, zerolog.Nop())
		if err := e.Start(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

// A bridge that was killed starts again without a warning: nothing is lost, and nobody must look.
func TestServer_WarnsOfNothingAfterAKill(t *testing.T) {
	t.Parallel()
	dir, killed := t.TempDir(), t.TempDir()
	publish := func(dir string, log zerolog.Logger, n int, then func()) {
		_, _, js, stop := start(t, embedded.Config{Listen: "127.0.0.1:0", Dir: dir}, log)
		defer stop()
		s, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.CachedInfo().State.Msgs; got != uint64(n) {
			t.Errorf("got %d messages, want %d", got, n)
		}
		if _, err := js.Publish(t.Context(), "s", []byte("x")); err != nil {
			t.Fatal(err)
		}
		then()
	}
	publish(dir, zerolog.Nop(), 0, func() {})
	publish(dir, zerolog.Nop(), 1, func() { // what a kill leaves here: files that are newer than their index
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	})
	var log bytes.Buffer
	publish(killed, zerolog.New(&log), 2, func() {})
	if got := log.String(); strings.Contains(got, `"warn"`) || !strings.Contains(got, "as after a kill") {
		t.Errorf("got %s", got)
	}
}

// start starts a server and connects to it.
func start(t *testing.T, cfg embedded.Config, log zerolog.Logger) (e *embedded.Server, nc *nats.Conn, js jetstream.JetStream, stop func()) {
	t.Helper()
	e = embedded.New(cfg, log)
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	nc, err := e.Connect(t.Context(), zerolog.Nop())
	if err == nil {
		js, err = jetstream.New(nc)
	}
	if err != nil {
		e.Shutdown()
		t.Fatal(err)
	}
	return e, nc, js, func() { nc.Close(); e.Shutdown() }
}

// 1001 consumers on one stream are refused by a server with default limits.
func TestServer_LiftsTheConsumerLimit(t *testing.T) {
	t.Parallel()
	if server.JSDefaultMaxConsumersPerStream != 1000 {
		t.Fatalf("the server's default limit is %d now; correct this test", server.JSDefaultMaxConsumersPerStream)
	}
	_, _, js, stop := start(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}, zerolog.Nop())
	defer stop()
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1001 {
		if _, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy}); err != nil {
			t.Fatalf("consumer %d: %v", i+1, err)
		}
	}
}
