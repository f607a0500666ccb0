// Package source holds the connections to Postgres that the captures of a
// process share. It sets them up so that every value has the text form that
// relation.Encoder reads.
package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// maxConns limits the connections that all relations of a process share.
	// Batches that read a whole relation leave spareConns of them to others.
	maxConns       = 10
	spareConns     = 2
	maxComparisons = 2
	connectTimeout = 10 * time.Second
	keepAlive      = 15 * time.Second
	// goneAfter is how long data that was sent may stay unacknowledged.
	goneAfter = 30 * time.Second
)

// Pool holds the connections to Postgres that the captures of a process share.
type Pool struct {
	pool *pgxpool.Pool
	// server is where the connections lead.
	server Server
	// connects counts all connections made. After a new one, Postgres may have
	// crashed, and lost transactions that were seen before.
	connects atomic.Int64
	// Loads holds one token for each batch that reads a whole relation, so that
	// some connections are always left for other relations (I10). The batch
	// sends before it begins, and receives after it has ended.
	Loads chan struct{}
	// Comparisons holds one token for each comparison of a stream with its
	// relation, in the same way: each takes tens of megabytes (I9).
	Comparisons chan struct{}
}

// Open returns a pool for that many relations, 0 if the number is not yet known.
// The pool connects when it is used.
func Open(server Server, relations int) (*Pool, error) {
	cfg, err := parse(server.URL)
	if err != nil {
		return nil, fmt.Errorf("parse DATABASE_URL: %w", err)
	}
	p := &Pool{server: server}
	cfg.MaxConns = maxConns
	if relations > 0 {
		cfg.MaxConns = int32(min(relations+spareConns, maxConns))
	}
	p.Loads = make(chan struct{}, cfg.MaxConns-spareConns)
	p.Comparisons = make(chan struct{}, maxComparisons)
	Configure(&cfg.ConnConfig.Config)
	cfg.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error { return server.login(&c.Config) }
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		src, err := relation.LoadSource(ctx, c)
		if err != nil {
			return err
		}
		if src.Version >= 170000 { // like statement_timeout below; older servers don't have it
			if _, err := c.Exec(ctx, "SET transaction_timeout = 0"); err != nil {
				return fmt.Errorf("set up a connection: %w", err)
			}
		}
		started, err := relation.QueryOne[string](ctx, c, "SELECT pg_postmaster_start_time()::text")
		if pg := (*pgconn.PgError)(nil); err != nil && !errors.As(err, &pg) { // else the role may not ask
			return fmt.Errorf("set up a connection: %w", err)
		}
		c.PgConn().CustomData()[connectionKey] = &Connection{Number: p.connects.Add(1), Source: src, Server: started, prepared: make(map[string]bool)}
		return nil
	}
	if p.pool, err = pgxpool.NewWithConfig(context.Background(), cfg); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	return p, nil
}

// noJIT is for all connections. Postgres compiles a statement that it expects to be
// expensive. It expects that of a look at the catalog, which has many parts and
// takes 20 ms. To compile them took another second of CPU.
const noJIT = "off"

// Configure gives a connection the settings that those of the pool have. The
// text form of values depends on them, and relation.Encoder relies on it.
func Configure(cfg *pgconn.Config) {
	for name, value := range map[string]string{
		"application_name": "lockstep bridge", "client_encoding": "UTF8",
		"TimeZone": "UTC", "DateStyle": "ISO, MDY", "IntervalStyle": "postgres",
		"bytea_output": "hex", "extra_float_digits": "1", "quote_all_identifiers": "off",
		"jit": noJIT,
		// A first load may take any time.
		"statement_timeout": "0",
		// Nothing waits long for a lock, because other relations need the connection
		// (I10). LOCK has NOWAIT, but functions that read the catalog have not, and
		// of a view LOCK does not lock everything: not materialized views and indexes.
		"lock_timeout": "100ms",
	} {
		cfg.RuntimeParams[name] = value
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	cfg.DialFunc = dial
}

// Connect makes a connection like those of the pool, which belongs to the caller. A
// connection taken out of the pool would do, but its next user would get a new one,
// and would have to assume that Postgres has crashed.
func (p *Pool) Connect(ctx context.Context) (*pgx.Conn, *Connection, error) {
	cfg := p.pool.Config()
	c := cfg.ConnConfig
	conn, err := (*pgx.Conn)(nil), cfg.BeforeConnect(ctx, c)
	if err == nil {
		conn, err = pgx.ConnectConfig(ctx, c)
	}
	if err == nil {
		if err = cfg.AfterConnect(ctx, conn); err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("connect to Postgres: %w", p.server.advised(err))
	}
	return conn, connectionOf(conn), nil
}

// Connection is what the pool knows about one of its connections.
type Connection struct {
	// Number counts the connections of the pool, from 1, in the order they were made.
	Number int64
	// Source is the server that the connection leads to. It was read when the
	// connection was made: the same name may lead to another server later.
	Source relation.Source
	// Server is when the server started, to the microsecond: connections with the
	// same lead to the same server, also where several have one name. It is "" if the
	// role may not ask.
	Server string
	// prepared has the names of its prepared statements.
	prepared map[string]bool
}

const connectionKey = "lockstep"

// ConnectionOf returns what the pool knows about a connection from Acquire.
func ConnectionOf(c *pgxpool.Conn) *Connection { return connectionOf(c.Conn()) }

func connectionOf(c *pgx.Conn) *Connection {
	conn, ok := c.PgConn().CustomData()[connectionKey].(*Connection)
	if !ok {
		panic("source: I7 violated: a connection that the pool did not make")
	}
	return conn
}

// Close waits for the connections in use, and closes all.
func (p *Pool) Close() { p.pool.Close() }

// Query implements relation.Querier.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := p.pool.Query(ctx, sql, args...)
	if err != nil {
		err = p.server.advised(err)
		return failedRows{rows, err}, err
	}
	return rows, nil
}

// Connects returns how many connections were made so far.
func (p *Pool) Connects() int64 { return p.connects.Load() }

// Acquire waits for a free connection and returns it. The caller releases it.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", p.server.advised(err))
	}
	return conn, nil
}

// IsChanged reports whether an error of Postgres means that the relation changed.
func IsChanged(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	// 0A000: cached plan must not change result type. Class 42: a column or
	// the relation is gone, or the right to read it. XX000: the relation was
	// dropped between planning and reading.
	return strings.HasPrefix(pg.Code, "42") || slices.Contains([]string{"0A000", "XX000", "26000"}, pg.Code)
}

// Of returns what a stream keeps about the origin of its rows: the server, the
// database, and the relation's OID. next is capture.Source.Next.
func Of(src relation.Source, rel *relation.Relation, next uint64) capture.Source {
	return capture.Source{System: src.SystemID, Timeline: src.Timeline, Database: src.Database, OID: rel.OID, Next: next}
}
