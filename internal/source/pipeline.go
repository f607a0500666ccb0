package source

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// maxPrepared bounds the statements of a connection: those of relations as
// they were before are of no more use, but the server keeps them.
const maxPrepared = 1000

// Statement is one of those that travel together, with its parameters in text
// form.
type Statement struct {
	SQL    string
	Params [][]byte
	// Shape changes with the relation that is read, so that a plan that Postgres
	// refuses is never asked for again; 0 for a statement that all relations share.
	Shape uint64
}

// Pipeline is statements that travel in one round trip. It belongs to one
// goroutine, which takes their results in order.
type Pipeline struct {
	pl *pgconn.Pipeline
	// prepared are the connection's statements, preparing those on their way.
	prepared  map[string]bool
	preparing []string
}

// Send sends the statements. What the connection does not have is prepared, each
// right before it is executed: Postgres locks a statement's relations to prepare
// it, which never waits behind a LOCK … NOWAIT of them. The caller closes the
// pipeline.
func Send(ctx context.Context, conn *pgxpool.Conn, statements ...Statement) (*Pipeline, error) {
	prepared := ConnectionOf(conn).prepared
	if len(prepared) >= maxPrepared {
		clear(prepared)
		if err := conn.Conn().DeallocateAll(ctx); err != nil {
			return nil, fmt.Errorf("forget prepared statements: %w", err)
		}
	}
	p := &Pipeline{pl: conn.Conn().PgConn().StartPipeline(ctx), prepared: prepared}
	for _, s := range statements {
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.SQL))
		name := "lockstep_" + strconv.FormatUint(s.Shape, 36) + "_" + strconv.FormatUint(h.Sum64(), 36)
		if !prepared[name] {
			p.pl.SendDeallocate(name) // a pipeline may have been left before it said that it had prepared it
			p.pl.SendPrepare(name, s.SQL, nil)
			p.preparing = append(p.preparing, name)
		}
		p.pl.SendQueryPrepared(name, s.Params, nil, nil)
	}
	if err := p.pl.Sync(); err != nil {
		_ = p.pl.Close() // the connection is gone, which the error says
		return nil, err
	}
	return p, nil
}

// Next returns the next statement's result reader.
func (p *Pipeline) Next() (*pgconn.ResultReader, error) {
	for {
		res, err := p.pl.GetResults()
		if err != nil {
			return nil, err
		}
		switch res := res.(type) {
		case *pgconn.ResultReader:
			return res, nil
		case *pgconn.StatementDescription:
			p.prepared[p.preparing[0]] = true
			p.preparing = p.preparing[1:]
		case *pgconn.CloseComplete:
		default:
			return nil, fmt.Errorf("unexpected result %T in a pipeline", res)
		}
	}
}

// Skip reads a result that has no rows.
func (p *Pipeline) Skip() error {
	rr, err := p.Next()
	if err != nil {
		return err
	}
	_, err = rr.Close()
	return err
}

// Close reads what is left, unless the context has ended, which closes the
// connection.
func (p *Pipeline) Close() error { return p.pl.Close() }
