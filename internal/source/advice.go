package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"bridge/internal/redact"

	"github.com/jackc/pgx/v5/pgconn"
)

// refusedTLS is the text of pgx if the server has no TLS. The error has no type.
const refusedTLS = "server refused TLS connection"

// Advice says what to do about an error of Connect. It holds nothing of a
// password.
func (s Server) Advice(err error) string {
	if advice := redact.Postgres.Advice(s.URL); advice != "" {
		return "in DATABASE_URL, " + advice
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		if advice := s.refusalAdvice(pg); advice != "" {
			return advice
		}
	}
	var dns *net.DNSError
	var parse *pgconn.ParseConfigError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &parse):
		return "correct DATABASE_URL, for example postgres://lockstep@localhost:5432/app"
	case strings.Contains(err.Error(), refusedTLS):
		return "set ssl = on and a certificate in postgresql.conf; or, if nobody can listen on the way to the server, sslmode=disable in DATABASE_URL"
	case errors.As(err, &certificate):
		return "name the certificate of the server's CA by sslrootcert= in DATABASE_URL, and the host by the name that the certificate has"
	case errors.As(err, &dns):
		return "correct the host in DATABASE_URL"
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return "look for a firewall between here and the server, or a paused server"
	}
	return "start Postgres, or correct host and port in DATABASE_URL"
}

// refusalAdvice says what to do about a connection that Postgres refused, or "".
func (s Server) refusalAdvice(pg *pgconn.PgError) string {
	switch {
	case strings.HasPrefix(pg.Code, "28") && (strings.Contains(pg.Message, "no encryption") || strings.Contains(pg.Message, "SSL off")):
		return "add sslmode=require to DATABASE_URL, if pg_hba.conf takes the role only with TLS (hostssl); or allow the role in pg_hba.conf"
	case strings.HasPrefix(pg.Code, "28") && s.PasswordFile != "":
		return "correct the user in DATABASE_URL or the password in the file, or allow the role in pg_hba.conf"
	case strings.HasPrefix(pg.Code, "28"):
		return "correct the user and password in DATABASE_URL, or allow the role in pg_hba.conf"
	case pg.Code == "3D000":
		return "correct the database's name in DATABASE_URL"
	case pg.Code == "42501":
		return "GRANT CONNECT ON DATABASE … TO the role"
	case pg.Code == "53300":
		return "raise max_connections, or close other connections: the bridge needs a few"
	case strings.HasPrefix(pg.Code, "57P"):
		return "wait until Postgres has started; a running bridge tries again by itself"
	case pg.Code == "42704":
		return "remove " + s.unknownParameter(pg.Message) + " from DATABASE_URL: it belongs to another library, and Postgres has no such setting"
	}
	return ""
}

// unknownParameter names the parameter of the connection string that Postgres
// does not know.
func (s Server) unknownParameter(message string) string {
	if cfg, err := pgconn.ParseConfig(s.URL); err == nil {
		for name := range cfg.RuntimeParams {
			if strings.Contains(message, `"`+name+`"`) {
				return name + "="
			}
		}
	}
	return "the parameter"
}

// advised is safe for errors that a running bridge logs: with what to do.
func (s Server) advised(err error) error {
	told := s.safe(err)
	if told == nil || !isConnect(err) || redact.Postgres.Advice(s.URL) != "" {
		return told // safe says it where the string can be read in several ways
	}
	return fmt.Errorf("%w; to do: %s", told, s.Advice(told))
}

// isConnect reports whether a connection could not be made.
func isConnect(err error) bool {
	var connect *pgconn.ConnectError
	var parse *pgconn.ParseConfigError
	return errors.As(err, &connect) || errors.As(err, &parse)
}
