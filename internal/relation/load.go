package relation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is a connection, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ErrNotFound is wrapped by Load's error where the relation does not exist.
var ErrNotFound = errors.New("relation not found")

// Severity says what a Problem prevents.
type Severity string

const (
	// SeverityError keeps the relation from being read.
	SeverityError Severity = "error"
	// SeverityWarning does not, but changes may be slow to come, or be missed.
	SeverityWarning Severity = "warning"
)

// Problem is one thing that is wrong with a relation. It is an error, so that
// errors.As finds it in what Load returns.
type Problem struct {
	// Relation is the table or view to change: that of the spec, or a table
	// below it.
	Relation Name
	Severity Severity
	// What is wrong; Do is the SQL to run or the setting to change.
	What, Do string

	// shape marks what keeps a relation from being one that * means.
	shape bool
	// ways are the alternatives in Do, nil if it has none.
	ways []string
	// identity is set where Do is a statement that gives the table a replica
	// identity, and nothing else.
	identity bool
	err      error
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s: %s; to do: %s", p.Relation.Quoted(), p.What, p.Do)
}

// Unwrap returns ErrNotFound or nil.
func (p *Problem) Unwrap() error { return p.err }

// Load looks the relation up in the catalog, all of it in one statement, and
// checks that it can be captured as the spec says. It does not wait for locks:
// where another session has locked a view, or what is below it, IsLocked is true
// of the error; a locked table can be looked at. The problems are warnings.
// The error joins a *Problem for everything that keeps the relation from being
// read, and wraps ErrNotFound where it does not exist; or it is that of the
// query, wrapped, where Postgres gave no answer.
func Load(ctx context.Context, q Querier, spec Spec) (*Relation, []Problem, error) {
	locked, err := lockedTable(ctx, q, spec.Name)
	if err != nil {
		return nil, nil, err
	}
	l, err := look(ctx, q, spec)
	if err != nil {
		return nil, nil, err
	}
	rel := l.check()
	if err := l.err(); err != nil {
		return nil, l.warnings(), err
	}
	// An estimate is not worth waiting for.
	if rel.Kind == 'v' || rel.EstimatedRows < 0 && !locked {
		if rel.EstimatedRows, err = explainRows(ctx, q, rel, l); err != nil {
			return nil, l.warnings(), err
		}
	}
	return rel, l.warnings(), nil
}

// explainRows asks the planner. Postgres checks here what the catalog does not
// tell of a view: rights to the tables below it.
func explainRows(ctx context.Context, q Querier, rel *Relation, l *looked) (int64, error) {
	var plan []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	raw, err := QueryOne[[]byte](ctx, q, "EXPLAIN (FORMAT JSON) SELECT * FROM "+rel.Name.SQL())
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		switch pg.Code {
		case "42501": // insufficient_privilege
			l.fail("Postgres refuses to read it: "+pg.Message,
				"grant what is missing to the view's owner, or, where the view has security_invoker, to "+l.self.Role)
			return 0, l.err()
		case "42P01": // undefined_table: dropped since
			return 0, fmt.Errorf("%s: %w", rel.Name.Quoted(), ErrNotFound)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("explain %s: %w", rel.Name.Quoted(), err)
	}
	if err := json.Unmarshal(raw, &plan); err != nil || len(plan) != 1 {
		return -1, nil //nolint:nilerr // an estimate is not worth failing for
	}
	return int64(plan[0].Plan.Rows), nil
}

// Source is the cluster and database that a connection reads from.
type Source struct {
	SystemID   uint64
	Timeline   uint32
	Database   string
	InRecovery bool
	// Version is server_version_num: 150018 for 15.18.
	Version int
}

// Any role may execute these functions (checked on 15), unless EXECUTE was
// revoked. The last checkpoint's timeline is the old one for a while after a
// promotion, so that of the WAL being written counts too; in recovery the
// latter cannot be asked for, and CASE keeps it from being asked.
const sourceSQL = `
SELECT s.system_identifier,
       greatest(c.timeline_id, r.min_recovery_end_timeline, CASE WHEN pg_is_in_recovery() THEN 0
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END),
       current_database()::text, pg_is_in_recovery(), current_setting('server_version_num')::int
  FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r`

// LoadSource asks which cluster, timeline and database q reads from. Its error
// says what to GRANT where the role may not ask.
func LoadSource(ctx context.Context, q Querier) (Source, error) {
	rows, err := q.Query(ctx, sourceSQL)
	if err != nil {
		return Source{}, sourceError(err)
	}
	src, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (Source, error) {
		var s Source
		var system, timeline int64 // both unsigned in Postgres
		err := row.Scan(&system, &timeline, &s.Database, &s.InRecovery, &s.Version)
		s.SystemID, s.Timeline = uint64(system), uint32(timeline)
		return s, err
	})
	if err != nil {
		return Source{}, sourceError(err)
	}
	return src, nil
}

func sourceError(err error) error {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("read the system identifier: %s; to do, as a superuser: "+
			"GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint(), pg_control_recovery(), "+
			"pg_walfile_name(pg_lsn), pg_current_wal_insert_lsn() TO the bridge's role: %w", pg.Message, err)
	}
	return fmt.Errorf("read the system identifier: %w", err)
}

// QueryOne returns the only value of a query that has one.
func QueryOne[T any](ctx context.Context, q Querier, sql string, args ...any) (T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
}

const publicSQL = `
SELECT c.relname::text,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'txid' AND a.attnum > 0 AND NOT a.attisdropped),
       c.relkind = 'v'
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
 ORDER BY c.relname`

// Resolve returns the named relations, then those that * means: tables of
// schema public with a usable txid column and key. The problems, all warnings,
// say why the others of schema public are not among them; views, for one,
// have no key until they are named. Rights are left to Load: a relation that
// qualifies but can't be read is an error there, not left out here.
func (s Specs) Resolve(ctx context.Context, q Querier) ([]Spec, []Problem, error) {
	specs := slices.Clone(s.List)
	if !s.All {
		return specs, nil, nil
	}
	rows, err := q.Query(ctx, publicSQL)
	if err != nil {
		return nil, nil, fmt.Errorf("list schema public: %w", err)
	}
	type candidate struct {
		Name    string
		HasTxid bool
		View    bool
	}
	candidates, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
	if err != nil {
		return nil, nil, fmt.Errorf("list schema public: %w", err)
	}
	var skipped []Problem
	skip := func(n Name, what, do string) {
		skipped = append(skipped, Problem{Relation: n, Severity: SeverityWarning, What: "not among *: " + what, Do: do})
	}
	for _, n := range s.Except {
		if n.Schema != defaultSchema || !slices.ContainsFunc(candidates, func(c candidate) bool { return c.Name == n.Table }) {
			skip(n, "there is no such relation in schema public", "remove -"+n.Quoted()+" from BRIDGE_TABLES")
		}
	}
	for _, c := range candidates {
		n := Name{Schema: defaultSchema, Table: c.Name}
		if slices.Contains(s.Except, n) || slices.ContainsFunc(s.List, func(spec Spec) bool { return spec.Name == n }) {
			continue
		}
		if !c.HasTxid {
			skip(n, "it has no column txid", "run what this prints: bridge sql "+shellWord(n.Quoted()))
			continue
		}
		spec := NewSpec(n)
		l, err := look(ctx, q, spec)
		if errors.Is(err, ErrNotFound) {
			continue // dropped since
		}
		if IsLocked(err) { // one must not keep the others
			if c.View {
				skip(n, "another session has locked it, or what is below it, and a view has no key until it is named", "name it in BRIDGE_TABLES, with its key")
			} else {
				specs = append(specs, spec)
			}
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		l.check()
		i := slices.IndexFunc(l.problems, func(p *Problem) bool { return p.shape })
		if i >= 0 {
			skip(n, l.problems[i].What, l.problems[i].Do)
			continue
		}
		specs = append(specs, spec)
	}
	return specs, skipped, nil
}
