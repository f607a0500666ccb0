package source

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"bridge/internal/redact"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// This file has every connection to Postgres that the programs make, so that
// no text of an error holds a piece of the password (see package redact).

// Check returns an error unless DATABASE_URL can be used, as far as that is
// known without a connection. Its text holds nothing of a password.
func (s Server) Check() error {
	_, err := parse(s.URL)
	return err
}

// CheckPassword returns an error unless DATABASE_PASSWORD_FILE is "" or names a
// file with a password. Its text holds nothing of a password.
func (s Server) CheckPassword() error {
	if s.PasswordFile == "" {
		return nil
	}
	_, err := readPassword(s.PasswordFile)
	return err
}

// Connect makes a connection of its own, with the settings of the server. The
// caller closes it.
func Connect(ctx context.Context, s Server) (*pgx.Conn, error) {
	cfg, err := parse(s.URL)
	if err == nil {
		err = s.login(&cfg.ConnConfig.Config)
	}
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.RuntimeParams["jit"] = noJIT
	conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	return conn, s.safe(err)
}

// ConnectReplication makes a connection that can read a replication slot. It
// has the settings of Configure, and what configure adds. The caller closes it.
func (p *Pool) ConnectReplication(ctx context.Context, configure func(*pgconn.Config)) (*pgconn.PgConn, error) {
	cfg, err := parse(p.server.URL)
	if err == nil {
		err = p.server.login(&cfg.ConnConfig.Config)
	}
	if err != nil {
		return nil, err
	}
	c := &cfg.ConnConfig.Config
	Configure(c)
	c.RuntimeParams["replication"] = "database"
	configure(c)
	conn, err := pgconn.ConnectConfig(ctx, c)
	return conn, p.server.advised(err)
}

// parse reads the connection string. It refuses a host that can't be one: with
// an @ in the password, what follows the @ is taken for the host.
func parse(url string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, unusable(err, url)
	}
	hosts := []string{cfg.ConnConfig.Host}
	for _, f := range cfg.ConnConfig.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, h := range hosts {
		if !strings.HasPrefix(h, "/") && strings.ContainsAny(h, "@#?&= '\"") {
			return nil, redact.Postgres.Error(redact.Public(errors.New("the host can't be one"), nil), url)
		}
	}
	return cfg, nil
}

// unusable is the error of a connection string that can't be read. pgx repeats
// the string in it, and hides only what it recognizes as the password.
func unusable(err error, url string) error {
	why := errors.New("it is not a libpq URL or DSN, or names a file that can't be read")
	if advice := redact.Postgres.Advice(url); advice != "" {
		return redact.Public(fmt.Errorf("%w; %s", why, advice), err)
	}
	// After the string comes what is wrong with it.
	if text := err.Error(); strings.Contains(text, "`: ") {
		why = errors.New(text[strings.LastIndex(text, "`: ")+len("`: "):])
	}
	return redact.Public(why, err)
}

// failedRows are the rows of a query that got no connection.
type failedRows struct {
	pgx.Rows
	err error
}

func (r failedRows) Err() error             { return r.err }
func (r failedRows) Scan(...any) error      { return r.err }
func (r failedRows) Values() ([]any, error) { return nil, r.err }
