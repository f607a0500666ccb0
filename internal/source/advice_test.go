package source_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"bridge/internal/source"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5/pgconn"
)

// Each error of a connection has an advice that helps.
func TestServer_Advice(t *testing.T) {
	t.Parallel()
	server := source.Server{URL: "postgres://u@h/app?schema=public"}
	refused := func(code, message string) error { return &pgconn.PgError{Code: code, Message: message} }
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("tls error: server refused TLS connection"), "set ssl = on"},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, "sslrootcert="},
		{refused("28000", `no pg_hba.conf entry for host "::1", user "u", database "app", no encryption`), "add sslmode=require to DATABASE_URL"},
		{refused("28000", `no pg_hba.conf entry for host "::1", user "u", database "app", SSL encryption`), "allow the role in pg_hba.conf"},
		{refused("28P01", "password authentication failed"), "correct the user and password in DATABASE_URL"},
		{refused("3D000", ""), "correct the database's name"},
		{refused("53300", ""), "raise max_connections"},
		{refused("57P03", ""), "wait until Postgres has started"},
		{refused("42704", `unrecognized configuration parameter "schema"`), "remove schema= from DATABASE_URL"},
		{refused("42704", `unrecognized configuration parameter "other"`), "remove the parameter from DATABASE_URL"},
		{refused("XX000", ""), "start Postgres, or correct host and port"},
		{&net.DNSError{}, "correct the host"},
		{context.DeadlineExceeded, "look for a firewall"},
		{errors.New("connection refused"), "start Postgres, or correct host and port"},
	} {
		if got := server.Advice(fmt.Errorf("failed to connect: %w", tt.err)); !strings.Contains(got, tt.want) {
			t.Errorf("%v: advice %q, want %q", tt.err, got, tt.want)
		}
	}
}

// What the log of a bridge says has the advice, too.
func TestPool_ErrorsOfConnectionsSayWhatToDo(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	url, _, _ := strings.Cut(testenv.Postgres(t), "?")
	pool, err := source.Open(source.Server{URL: url + "?sslmode=disable&pgbouncer=true"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	const want = "; to do: remove pgbouncer= from DATABASE_URL"
	if _, err := pool.Acquire(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if _, err := pool.Query(t.Context(), "SELECT 1"); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if _, err := pool.ConnectReplication(t.Context(), func(*pgconn.Config) {}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// An error of a connection has why it failed, and nothing of a try before it that would have done as well.
func TestConnect_SaysOnceWhyItFailed(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	t.Parallel()
	url, _, _ := strings.Cut(testenv.Postgres(t), "?")
	name := testenv.Conn(t, url+"?sslmode=disable").Config().Database
	for _, tt := range []struct{ url, want string }{
		{strings.Replace(url, name, "no_such_database", 1), `database "no_such_database" does not exist`},
		{url + "?sslmode=require", "server refused TLS connection"},
		{"postgres://u@127.0.0.1:1/app", "connection refused"},
	} {
		conn, err := source.Connect(t.Context(), source.Server{URL: tt.url})
		if err == nil {
			_ = conn.Close(t.Context())
			t.Fatalf("%s: connected", tt.url)
		}
		if got := err.Error(); strings.Count(got, tt.want) != 1 || strings.Contains(got, "\n") {
			t.Errorf("got %q, want %q once", got, tt.want)
		}
	}
}

// A server without TLS that goes away is to be started. That it has no TLS is not why the connection failed.
func TestPool_AdvisesOnWhyItFailed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for first := true; ; first = false {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if first { // it asks for TLS
				_, _ = io.ReadFull(conn, make([]byte, 8))
				_, _ = conn.Write([]byte("N"))
			}
			_ = conn.Close()
		}
	}()
	pool, err := source.Open(source.Server{URL: "postgres://u@" + l.Addr().String() + "/app"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Acquire(t.Context()); err == nil || !strings.Contains(err.Error(), "; to do: start Postgres") {
		t.Errorf("got %v, want to be told to start Postgres", err)
	}
}
