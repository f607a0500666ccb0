package poller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A probe asks, without a poll, whether a relation that rests has rows that its
// last batch does not have. It costs a tenth of a poll. The answer only decides
// when the relation is polled again, and no position comes from it: a relation
// whose probes find nothing is still polled when its heartbeat is due, if a
// transaction has ended since its last poll.
type probe struct {
	sql string

	// The rest belongs to the Watcher's looks. usable is the prober on whose connection
	// the probe has a plan that only reads an index, under this name. refused is when
	// the plan was found to read more, or when the probe failed.
	usable  *prober
	name    string
	refused time.Time
}

const (
	// maxFound is the number of rows that a probe reads. If none of so many is new,
	// the relation is polled.
	maxFound = 50
	// maxProbes limits the probes of one look. Other relations are polled.
	maxProbes = 1000
	// groupSize is the number of probes that share a transaction and its end. That saves
	// Postgres a third of the time.
	groupSize = 50
	// maxPlans limits the probes that one look plans. Each takes Postgres a millisecond.
	maxPlans = 20
	// maxScans limits the index scans of one probe: a table may have a thousand
	// partitions.
	maxScans = 8
	// refusedFor is how long a probe that was refused is not planned again. By then
	// there may be an index, or enough rows for Postgres to use it.
	refusedFor = time.Minute
	// lockNotAvailable is the SQLSTATE of a lock_timeout.
	lockNotAvailable = "55P03"
)

// probeSettings are for the Watcher's connection. A probe is planned once, and then
// reads an index or is refused. For a lock it waits so short a time that it can't
// take part in a deadlock with the application.
const probeSettings = `SET plan_cache_mode = force_generic_plan; SET max_parallel_workers_per_gather = 0;
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off;
SET lock_timeout = '10ms'`

// prober runs probes on the Watcher's connection. It belongs to the Watcher's looks.
type prober struct{ conn *pgx.Conn }

// newProber sets up the connection.
func newProber(ctx context.Context, conn *pgx.Conn) (*prober, error) {
	if _, err := conn.Exec(ctx, probeSettings); err != nil {
		return nil, fmt.Errorf("set up probes: %w", err)
	}
	return &prober{conn}, nil
}

// ask probes relations in one round trip, and returns those that have no row that P
// does not show. An error means that the connection can't be used any more.
func (p *prober) ask(ctx context.Context, relations []*resting) (unchanged []*resting, err error) {
	ready, err := p.prepare(ctx, relations)
	if err != nil || len(ready) == 0 {
		return nil, err
	}
	pl := p.conn.PgConn().StartPipeline(ctx)
	for group := range slices.Chunk(ready, groupSize) {
		for _, r := range group {
			pl.SendQueryPrepared(r.probe.name, [][]byte{xid(r.last.look.snapshot.Xmin)}, nil, nil)
		}
		pl.SendPipelineSync()
	}
	err = pl.Flush()
	for group := range slices.Chunk(ready, groupSize) {
		if err == nil {
			unchanged, err = readGroup(pl, group, unchanged)
		}
	}
	if err = errors.Join(err, pl.Close()); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	return unchanged, nil
}

// prepare returns the relations whose probes can be used. It plans a few of those
// that are new.
func (p *prober) prepare(ctx context.Context, relations []*resting) (ready []*resting, err error) {
	plans := 0
	for _, r := range relations {
		pr := r.probe
		if time.Since(pr.refused) < refusedFor {
			continue
		}
		if pr.usable != p {
			if plans++; plans > maxPlans {
				continue
			}
			if err := pr.take(p.plan(ctx, pr)); err != nil {
				return nil, fmt.Errorf("plan a probe: %w", err)
			}
		}
		if pr.usable == p {
			ready = append(ready, r)
		}
	}
	return ready, nil
}

// plan looks at the plan of a probe, and prepares it or refuses it.
func (p *prober) plan(ctx context.Context, pr *probe) error {
	res := p.conn.PgConn().ExecParams(ctx, "EXPLAIN (FORMAT JSON) "+pr.sql, [][]byte{[]byte("3")}, nil, nil, nil).Read()
	if res.Err != nil {
		return res.Err
	}
	var explained []struct{ Plan plan }
	if err := json.Unmarshal(res.Rows[0][0], &explained); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	if scans, ok := explained[0].Plan.indexScans(); !ok || scans > maxScans {
		pr.refused = time.Now()
		return nil
	}
	sd, err := p.conn.Prepare(ctx, pr.sql, pr.sql) // named after its text; again, it costs nothing
	if err != nil {
		return err
	}
	pr.usable, pr.name = p, sd.Name
	return nil
}

// take returns nil if an error is Postgres' answer. Then the probe is not used for a
// while, unless the relation is only locked.
func (p *probe) take(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	if pg.Code != lockNotAvailable {
		p.usable, p.refused = nil, time.Now()
	}
	return nil
}

// plan is a node of a plan, as EXPLAIN prints it.
type plan struct {
	Node  string `json:"Node Type"`
	Cond  string `json:"Index Cond"`
	Plans []plan
}

// indexScans counts the index scans below a node. It returns false if the cost of
// anything may depend on more than the rows from $1 on.
func (p plan) indexScans() (int, bool) {
	sum := 0
	switch p.Node {
	case "Index Scan", "Index Only Scan":
		return 1, strings.Contains(p.Cond, "pg_current_snapshot")
	case "Nested Loop": // the feed view looks up each deleted key in the table
		inner := p.Plans[1]
		for inner.Node == "Memoize" {
			inner = inner.Plans[0]
		}
		if inner.Node != "Index Scan" && inner.Node != "Index Only Scan" || inner.Cond == "" {
			return 0, false
		}
		sum, p.Plans = 1, p.Plans[:1]
	case "Limit", "Append", "Merge Append", "Subquery Scan", "Result":
	default:
		return 0, false
	}
	for _, below := range p.Plans {
		n, ok := below.indexScans()
		if !ok {
			return 0, false
		}
		sum += n
	}
	return sum, true
}

// readGroup reads the answers up to a Sync, and appends the relations that have no
// row that P does not show. After an error of Postgres the rest of the group has no
// answer.
func readGroup(pl *pgconn.Pipeline, group, unchanged []*resting) ([]*resting, error) {
	for _, r := range group {
		found, err := readFound(pl)
		if err != nil {
			if err = r.probe.take(err); err != nil {
				return nil, err
			}
			break
		}
		seen := r.last.look.snapshot.Visible
		if len(found) < maxFound && !slices.ContainsFunc(found, func(txid uint64) bool { return !seen(txid) }) {
			unchanged = append(unchanged, r)
		}
	}
	res, err := pl.GetResults()
	if _, ok := res.(*pgconn.PipelineSync); !ok {
		return nil, errors.Join(err, fmt.Errorf("unexpected result %T in a pipeline", res))
	}
	return unchanged, err
}

// readFound reads the rows of a probe: their transaction IDs.
func readFound(pl *pgconn.Pipeline) ([]uint64, error) {
	res, err := pl.GetResults()
	if err != nil {
		return nil, err
	}
	rr, ok := res.(*pgconn.ResultReader)
	if !ok {
		return nil, fmt.Errorf("unexpected result %T in a pipeline", res)
	}
	var found []uint64
	for rr.NextRow() {
		txid, err := strconv.ParseUint(string(rr.Values()[0]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("transaction ID of a row: %w", err)
		}
		found = append(found, txid)
	}
	_, err = rr.Close()
	return found, err
}
