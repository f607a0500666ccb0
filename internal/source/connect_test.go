package source_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// canary is the piece of a password that no text may show.
const canary = "Zq9canary"

// spellings are the ways to write a password into DATABASE_URL, right ones and wrong ones. %s is the password.
var spellings = []string{
	"postgres://u:%s@h/db",
	"postgres://u:%s@h:5432/db?sslmode=disable",
	"postgres://u:%s@[::1]/db",
	"postgresql://:%s@h1,h2:5433/db",
	"postgres://h/db?user=u&password=%s",
	"postgres://h/db?password=%s&user=u&sslmode=disable",
	"postgres://h/db?pass%%77ord=%s&application_name=x",
	"postgres://h/db?PASSWORD=%s&user=u",
	"host=h user=u password=%s",
	"host=h user=u password=%s dbname=db sslmode=disable",
	"password = %s host=h",
	"PASSWORD=%s host=h",
	"password='%s' host=h",
	"host=h password = '%s'",
	"host=h sslpassword=%s user=u",
	"host=h user=u:%s",
	"host=h password %s",
	"host=h pwd=%s user=u",
	"postgress://u:%s@h/db?sslmode=disable",
	"POSTGRES://u:%s@h/db?sslmode=disable",
	" postgres://u:%s@h/db?sslmode=disable",
	`"postgres://u:%s@h/db?sslmode=disable"`,
	"jdbc:postgresql://h/db?user=u&password=%s",
	"u:%s@h",
}

// No spelling of a wrong DATABASE_URL shows its password: not where it can't be read, not where a piece of the password
// was taken for a host, and not where the server repeats everything that it was sent.
func FuzzConnect_ShowsNoPassword(f *testing.F) {
	for i := range spellings {
		for _, p := range []string{
			"%s", "a@%s", "a#%s", "1/%s", "a/%s", "1?%s", "a%%%s", "a:%s", "1,%s:2", "a %s", "a %s=x", "a user=%s", "a host=%s",
			"a' user='%s", "a'%s", "a&%s", "a&%s=x", "a&host=%s", "a&user=%s", "a=%s", `a\%s`, "a`: %s", "[%s", "a@b=%s", "a\t%s\v",
			"a dbname=db %s=x b", "?host=%s&x", "\x00%s",
		} {
			f.Add(uint(i), fmt.Sprintf(p, canary))
		}
	}
	f.Fuzz(func(t *testing.T, spelling uint, password string) {
		if !strings.Contains(password, canary) {
			return
		}
		url := fmt.Sprintf(spellings[spelling%uint(len(spellings))], password)
		shown := func(what string, err error) {
			if err != nil && strings.Contains(strings.ToLower(err.Error()), strings.ToLower(canary)) {
				t.Errorf("%s: %q is told as: %v", what, url, err)
			}
		}
		shown("check", source.Server{URL: url}.Check())
		pool, err := source.Open(source.Server{URL: url}, 1)
		if err != nil {
			shown("open", err)
			return
		}
		defer pool.Close()
		_, err = pool.ConnectReplication(t.Context(), func(c *pgconn.Config) {
			c.LookupFunc = func(_ context.Context, host string) ([]string, error) {
				return nil, &net.DNSError{Err: "no such host", Name: host}
			}
			c.DialFunc = func(_ context.Context, _, address string) (net.Conn, error) {
				return nil, fmt.Errorf("dial %s: refused", address)
			}
		})
		if err == nil {
			t.Fatalf("%q: connected to a host that does not exist", url)
		}
		shown("unknown host", err)
		_, err = pool.ConnectReplication(t.Context(), func(c *pgconn.Config) {
			c.TLSConfig = nil
			c.Fallbacks = nil
			c.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
			c.DialFunc = func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go echo(server)
				return client, nil
			}
		})
		if err == nil {
			t.Fatalf("%q: connected to a server that refuses everybody", url)
		}
		shown("refused", err)
	})
}

// echo is a server that refuses a connection, and repeats all that it was sent.
func echo(conn net.Conn) {
	defer conn.Close()
	backend := pgproto3.NewBackend(conn, conn)
	msg, err := backend.ReceiveStartupMessage()
	if err != nil {
		return
	}
	text := "refused"
	if m, ok := msg.(*pgproto3.StartupMessage); ok {
		text = fmt.Sprint(m.Parameters)
	}
	backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "42704", Message: text})
	_ = backend.Flush()
}

// No connection lets Postgres compile statements: to compile a look at the catalog takes a second of CPU.
func TestConnect_CompilesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	server := source.Server{URL: testenv.Postgres(t)}
	pool, err := source.Open(server, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	conn, err := source.Connect(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for _, q := range []relation.Querier{pool, conn} {
		if jit, err := relation.QueryOne[string](t.Context(), q, "SHOW jit"); err != nil || jit != "off" {
			t.Errorf("%T: jit is %q, %v", q, jit, err)
		}
	}
}

// Every connection to Postgres is made in this package, which knows how to tell its errors.
func TestConnect_NoOtherPackageConnects(t *testing.T) {
	t.Parallel()
	call := regexp.MustCompile(`\b(?:pgx|pgconn|pgxpool)\.(?:Connect|ConnectConfig|ParseConfig|New|NewWithConfig)\(`)
	aids := regexp.MustCompile(`^internal/(?:testenv|simtest|demo|e2e|source)/|^bench/`)
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && file != "../.." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir // copies of the code, made by other tools
		}
		if err != nil || filepath.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") {
			return err
		}
		rel, err := filepath.Rel("../..", file)
		if err != nil || aids.MatchString(rel) {
			return err
		}
		b, err := os.ReadFile(file)
		if m := call.Find(b); m != nil {
			return errors.Join(err, fmt.Errorf("%s calls %s…); connect by package source", rel, m))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Who makes a connection of its own leaves the pool its connections: for a poll, a new one may mean that Postgres has
// crashed.
func TestPool_ConnectLeavesThePoolItsConnections_I7(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	pool, err := source.Open(source.Server{URL: testenv.Postgres(t)}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	number := func() int64 {
		t.Helper()
		c, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
		return source.ConnectionOf(c).Number
	}
	first := number()
	own, about, err := pool.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close(context.WithoutCancel(t.Context())) }()
	if about.Number == first || about.Server == "" || own.PgConn().ParameterStatus("DateStyle") != "ISO, MDY" {
		t.Errorf("connection %d to a server started %q: want another one, set up as those of the pool", about.Number, about.Server)
	}
	if again := number(); again != first {
		t.Errorf("the pool gave connection %d, want %d still", again, first)
	}
}
