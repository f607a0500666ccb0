// Package source is the connections to Postgres that the captures of a process
// share, set up so that the text form of every value is the one that
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
	// maxConns bounds the connections that all relations of a process share;
	// spareConns of them are never taken by batches that read a whole relation.
	maxConns       = 10
	spareConns     = 2
	maxComparisons = 2
	connectTimeout = 10 * time.Second
	keepAlive      = 15 * time.Second
	// goneAfter is how long what was sent may stay without an acknowledgement.
	goneAfter = 30 * time.Second
)

// Pool is the connections to Postgres that the captures of a process share.
type Pool struct {
	pool *pgxpool.Pool
	// connects counts connections ever made: after a new one, Postgres may
	// have crashed and forgotten transactions since the last look.
	connects atomic.Int64
	// Loads holds one token for each batch that reads a whole relation, so
	// that some connections are always left for the others (I10): who begins
	// one sends, and receives when it has ended.
	Loads chan struct{}
	// Comparisons likewise holds one token for each comparison of a stream with
	// its relation: each takes tens of megabytes (I9).
	Comparisons chan struct{}
}

// Open returns a pool for the given number of relations, 0 where it is not
// yet known. It connects only when it is used.
func Open(url string, relations int) (*Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse DATABASE_URL: %w", err)
	}
	p := &Pool{}
	cfg.MaxConns = maxConns
	if relations > 0 {
		cfg.MaxConns = int32(min(relations+spareConns, maxConns))
	}
	p.Loads = make(chan struct{}, cfg.MaxConns-spareConns)
	p.Comparisons = make(chan struct{}, maxComparisons)
	Configure(&cfg.ConnConfig.Config)
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		src, err := relation.LoadSource(ctx, c)
		if err != nil {
			return err
		}
		if src.Version >= 170000 { // as statement_timeout below; older servers don't know it
			if _, err := c.Exec(ctx, "SET transaction_timeout = 0"); err != nil {
				return fmt.Errorf("set up a connection: %w", err)
			}
		}
		c.PgConn().CustomData()[connectionKey] = &Connection{Number: p.connects.Add(1), Source: src, prepared: make(map[string]bool)}
		return nil
	}
	if p.pool, err = pgxpool.NewWithConfig(context.Background(), cfg); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	return p, nil
}

// Configure sets a connection up as the pool's are, on which the encoder relies:
// the text form of values depends on its settings.
func Configure(cfg *pgconn.Config) {
	for name, value := range map[string]string{
		"application_name": "lockstep bridge", "client_encoding": "UTF8",
		"TimeZone": "UTC", "DateStyle": "ISO, MDY", "IntervalStyle": "postgres",
		"bytea_output": "hex", "extra_float_digits": "1", "quote_all_identifiers": "off",
		// A first load takes as long as it takes.
		"statement_timeout": "0",
		// Nothing is worth a wait, during which other relations lack a connection
		// (I10); but functions that look at the catalog can't be told so, nor a view
		// of which LOCK does not lock all: materialized views, indexes.
		"lock_timeout": "100ms",
	} {
		cfg.RuntimeParams[name] = value
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	cfg.DialFunc = dial
}

// Connection is what the pool knows of each of its connections.
type Connection struct {
	// Number counts connections from 1 on, in the order they were made.
	Number int64
	// Source is where it leads, as it was when it was made: a name may lead to
	// another server later.
	Source relation.Source
	// prepared are the names of its statements.
	prepared map[string]bool
}

const connectionKey = "lockstep"

// ConnectionOf returns what the pool knows of a connection that Acquire returned.
func ConnectionOf(c *pgxpool.Conn) *Connection {
	conn, ok := c.Conn().PgConn().CustomData()[connectionKey].(*Connection)
	if !ok {
		panic("source: I7 violated: a connection that the pool did not make")
	}
	return conn
}

// Close closes all connections; it waits for those in use.
func (p *Pool) Close() { p.pool.Close() }

// Query implements relation.Querier.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return p.pool.Query(ctx, sql, args...)
}

// Connects counts the connections made so far.
func (p *Pool) Connects() int64 { return p.connects.Load() }

// Acquire returns a connection, which the caller releases. It waits for one.
func (p *Pool) Acquire(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	return conn, nil
}

// IsChanged says whether an error of Postgres means that the relation changed.
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

// Of names a relation of a source as streams do.
func Of(src relation.Source, rel *relation.Relation) capture.Source {
	return capture.Source{System: src.SystemID, Timeline: src.Timeline, Database: src.Database, OID: rel.OID}
}
