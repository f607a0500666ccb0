package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/broker"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// logged is a log that a test may read while others write to it.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestConfig_ProblemsHidePasswords(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"":                                      "",
		"nats://a:4222":                         "",
		"a:4222, b:4222":                        "",
		"nats://u:secret@a:4222,tls://b:4222":   "",
		"nats://a:4222,":                        "server 2",
		"nats://u:secret@a:42x":                 "server 1",
		"nats://u:sec%ret@a":                    "server 1",
		"http://u:secret@a:4222":                `scheme "http"`,
		"nats://a:4222, nats://u:secret@a b:42": "server 2",
	} {
		var got string
		for _, p := range (broker.Config{URL: url}).Problems() {
			got += p.Field + ": " + p.Err.Error()
		}
		switch {
		case want == "" && got != "", want != "" && (!strings.Contains(got, want) || !strings.HasPrefix(got, "URL: ")):
			t.Errorf("%q: got %q, want %q in it", url, got, want)
		case strings.Contains(got, "sec"):
			t.Errorf("%q: the error tells the password: %s", url, got)
		}
	}
}

// Files that are missing or hold something else are reported before
// anything connects.
func TestConfig_ProblemsOfFiles(t *testing.T) {
	t.Parallel()
	const gone = "/nonexistent"
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		cfg  broker.Config
		want []string
	}{
		{broker.Config{Creds: gone}, []string{"Creds"}},
		{broker.Config{Creds: garbage}, []string{"Creds"}},
		{broker.Config{NKey: gone}, []string{"NKey"}},
		{broker.Config{NKey: garbage}, []string{"NKey"}},
		{broker.Config{CA: gone}, []string{"CA"}},
		{broker.Config{CA: garbage}, []string{"CA"}},
		{broker.Config{Cert: gone, Key: gone}, []string{"Cert"}},
		{broker.Config{Cert: garbage, Key: garbage}, []string{"Cert"}},
		{broker.Config{Cert: garbage}, []string{"Cert"}},
		{broker.Config{URL: "::", Creds: gone, NKey: gone, Key: garbage}, []string{"URL", "Creds", "NKey", "Key"}},
	} {
		var got []string
		for _, p := range tc.cfg.Problems() {
			got = append(got, p.Field)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%+v: problems of %v, want %v", tc.cfg, got, tc.want)
		}
	}
}

// A secret that stands where the path of its file belongs is told by no error.
func TestConfig_ProblemsHideSecretsInPlaceOfPaths(t *testing.T) {
	t.Parallel()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	pem := "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"
	for _, cfg := range []broker.Config{
		{NKey: string(seed)}, {Creds: string(seed) + "\n"}, {Creds: pem}, {CA: pem}, {Cert: "/cert.pem", Key: pem}, {Cert: pem, Key: "/key.pem"},
	} {
		problems := cfg.Problems()
		if text := fmt.Sprint(problems); len(problems) != 1 || strings.Contains(text, "secret") || strings.Contains(text, string(seed)) {
			t.Errorf("%+v: got %s", cfg, text)
		}
	}
}

// No spelling of a wrong NATS_URL shows its password, in no error and no line of the log.
func FuzzConnect_ShowsNoPassword(f *testing.F) {
	const canary = "Zq9canary"
	spellings := []string{
		"nats://u:%s@h:4222", "nats://%s@h", "tls://u:%s@h1,nats://h2", "u:%s@h", "nats://h1:4222,nats://u:%s@h2", "ws://u:%s@h/",
		"nats://u:%s@h1,nats://u:%[1]s@h2", "http://u:%s@h",
	}
	for i := range spellings {
		for _, p := range []string{
			"%s", "a@%s", "1#%s", "1/%s", "1?%s", "a%%%s", "a:%s", "1,%s", "1,%s,b", "1,nats://%s,b", "1,%s://b", "a,%s:4,b", "a b%s", "1/%s,", "[%s",
		} {
			f.Add(uint(i), fmt.Sprintf(p, canary))
		}
	}
	f.Fuzz(func(t *testing.T, spelling uint, password string) {
		if !strings.Contains(password, canary) {
			return
		}
		cfg := broker.Config{URL: fmt.Sprintf(spellings[spelling%uint(len(spellings))], password)}
		told := fmt.Sprint(cfg.Problems())
		var log logged
		nc, err := broker.Connect(t.Context(), cfg, zerolog.New(&log), nats.SetCustomDialer(refusing{}), nats.SkipHostLookup())
		if err == nil {
			nc.Close()
			t.Fatalf("%q: connected", cfg.URL)
		}
		told += err.Error()
		nc, err = broker.Connect(t.Context(), cfg, zerolog.New(&log), nats.SetCustomDialer(refusing{}), nats.SkipHostLookup(), nats.RetryOnFailedConnect(true),
			nats.MaxReconnects(1), nats.CustomReconnectDelay(func(int) time.Duration { return 0 }))
		if err == nil {
			testenv.Eventually(t, testenv.Patience(), func() error {
				if !nc.IsClosed() {
					return errors.New("still connecting")
				}
				return nil
			})
			told += log.String()
		} else {
			told += err.Error()
		}
		if strings.Contains(strings.ToLower(told), strings.ToLower(canary)) {
			t.Errorf("%q is told as: %s", cfg.URL, told)
		}
	})
}

// refusing is a network on which every dial fails with an error that repeats the address.
type refusing struct{}

func (refusing) Dial(_, address string) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: refused", address)
}

func TestConnect_ErrorsNameTheServerAndNoSecret(t *testing.T) {
	t.Parallel()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	_, err = broker.Connect(t.Context(), broker.Config{URL: "nats://user:secret@" + addr}, zerolog.Nop())
	if err == nil || !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "secret") || !errors.Is(err, nats.ErrNoServers) {
		t.Errorf("got %v", err)
	}
	for _, cfg := range []broker.Config{
		{URL: addr, NKey: "/nonexistent"},
		{URL: addr, CA: "/nonexistent"},
		{URL: addr, Cert: "/nonexistent", Key: "/nonexistent"},
	} {
		if _, err := broker.Connect(t.Context(), cfg, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
			t.Errorf("%+v: got %v, want the file named", cfg, err)
		}
	}
}

// A server that accepts a connection and then says nothing must not delay a process that is told to stop.
func TestConnect_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err = broker.Connect(ctx, broker.Config{URL: l.Addr().String()}, zerolog.Nop(), nats.Timeout(time.Minute))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 10*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
}

// While the connection is lost, no message may be kept for later: the writer's epoch ends with the connection (I6).
func TestConnect_RidesOutARestart(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	s := testenv.NATSProcess(t)
	var log logged
	cfg := broker.Config{Name: "test", URL: strings.Replace(s.URL(), "nats://", "nats://user:secret@", 1)}
	nc, err := broker.Connect(t.Context(), cfg, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := broker.CheckServer(nc); err != nil {
		t.Errorf("check of the server this module is built with: %v", err)
	}
	s.Kill()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if nc.IsConnected() {
			return errors.New("still connected")
		}
		return nil
	})
	if err := nc.Publish("x", nil); err == nil {
		t.Error("a message was kept while the broker was away")
	}
	if err := broker.CheckServer(nc); err == nil {
		t.Error("a server that is away passed the check")
	}
	s.Start()
	testenv.Eventually(t, testenv.Patience(), func() error { return nc.Publish("x", nil) })
	testenv.Eventually(t, testenv.Patience(), func() error {
		for _, want := range []string{"broker connected", "broker connection lost", "broker connection restored"} {
			if strings.Count(log.String(), want) != 1 {
				return errors.New(want + " is not logged once:\n" + log.String())
			}
		}
		return nil
	})
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log tells the password:\n%s", log.String())
	}
	want := "# HELP lockstep_broker_reconnects_total How often a connection to the broker was lost and came back.\n" +
		"# TYPE lockstep_broker_reconnects_total counter\nlockstep_broker_reconnects_total 1\n"
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(broker.NewCollector(nc))
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "lockstep_broker_reconnects_total"); err != nil {
		t.Error(err)
	}
}

func TestCheckServer_Versions(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"2.14.5": false, "2.14.6": false, "2.15.0": false, "2.15.0-RC.1": false, "3.0.0": false, "v2.15.2": false,
		"2.14.4": true, "2.14.5-RC.2": true, "2.9.25": true, "1.99.99": true, "": true, "2.14": true, "new": true,
	} {
		if got := broker.Older(version); got != old {
			t.Errorf("%q: got older %v, want %v", version, got, old)
		}
	}
}
