package source

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// maxPrepared limits the prepared statements of a connection. When a relation
// changes, its old statements are of no use, but the server keeps them.
const maxPrepared = 1000

// Statement is one statement of a pipeline, with its parameters in text form.
type Statement struct {
	SQL    string
	Params [][]byte
	// Shape changes when the relation that is read changes, so that a plan that
	// Postgres refuses is not used again. It is 0 for a statement that all
	// relations share.
	Shape uint64
}

// Pipeline is a list of statements that travel in one round trip. It belongs to
// one goroutine, which takes the results in order.
type Pipeline struct {
	pl *pgconn.Pipeline
	// prepared has the names of the connection's prepared statements. preparing
	// has those that were sent, and not yet confirmed.
	prepared  map[string]bool
	preparing []string
}

// Send sends the statements. It prepares those that the connection does not have,
// each right before it is executed. To prepare a statement, Postgres locks its
// relations; after a LOCK … NOWAIT of them, that never waits. The caller closes the
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
			p.pl.SendDeallocate(name) // an earlier pipeline may have prepared it, and ended before it knew
			p.pl.SendPrepare(name, s.SQL, nil)
			p.preparing = append(p.preparing, name)
		}
		p.pl.SendQueryPrepared(name, s.Params, nil, nil)
	}
	if err := p.pl.Sync(); err != nil {
		_ = p.pl.Close() // err says that the connection is lost
		return nil, err
	}
	return p, nil
}

// Next returns the result of the next statement.
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

// Close reads the remaining results. If the context has ended, the connection is
// closed instead.
func (p *Pipeline) Close() error { return p.pl.Close() }
