package relation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"bridge/internal/report"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is a connection, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ErrNotFound is wrapped in the error of Load if the relation does not exist.
var ErrNotFound = errors.New("relation not found")

// Severity says what a Problem prevents.
type Severity = report.Severity

const (
	// SeverityError means that the relation can't be captured.
	SeverityError = report.Error
	// SeverityWarning means that it can, but changes may come late or be missed.
	SeverityWarning = report.Warning
)

// Problem is one thing that is wrong with a relation. It is an error, so that
// errors.As finds it in the error of Load.
type Problem struct {
	// Relation is the table or view to change: the one of the spec, or a table
	// below it.
	Relation Name
	Severity Severity
	// What says what is wrong. Do says what to do: the SQL to run, or the setting
	// to change.
	What, Do string

	// shape is true if the problem keeps the relation out of *.
	shape bool
	// ways are the alternatives in Do, nil if there are none.
	ways []string
	// identity is true if Do is one statement that gives the table a replica
	// identity, and does nothing else.
	identity bool
	err      error
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s: %s; to do: %s", p.Relation.Quoted(), p.What, p.Do)
}

// Unwrap returns ErrNotFound, ErrBreaksWrites or nil.
func (p *Problem) Unwrap() error { return p.err }

// Load looks the relation up in the catalog, all of it with one statement, and
// checks that it can be captured as the spec says. The problems that it returns are
// warnings.
//
// The error joins a *Problem for each reason why the relation can't be captured,
// and wraps ErrNotFound if it does not exist. If Postgres gave no answer, the
// error wraps that of the query.
//
// Load does not wait for locks. If another session has locked a view, or a table
// below it, IsLocked is true for the error. A locked table can be looked up.
func Load(ctx context.Context, q Querier, spec Spec) (*Relation, []Problem, error) {
	return LoadFor(ctx, q, spec, "")
}

// LoadFor is Load, and for a spec with capture=wal it also asks what becomes of
// the table's own writes in the bridge's publication, which has this name. Where
// Postgres refuses one, or would refuse it, the error wraps ErrBreaksWrites. Nobody
// may put the table into the publication then.
func LoadFor(ctx context.Context, q Querier, spec Spec, publication string) (*Relation, []Problem, error) {
	locked, err := lockedTable(ctx, q, spec.Name)
	if err != nil {
		return nil, nil, err
	}
	l, err := look(ctx, q, spec)
	if err != nil {
		return nil, nil, err
	}
	if publication != "" && l.spec.Capture == CaptureWAL {
		if err := l.lookPublications(ctx, q, publication); err != nil {
			return nil, nil, err
		}
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

// explainRows asks the planner for the number of rows. Here Postgres also checks
// what the catalog does not show of a view: the rights to the tables below it.
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
				"grant what is missing to the view's owner or, if the view has security_invoker, to "+l.self.Role)
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
	// WAL is the size of the WAL's pages and files.
	WAL WALPages
}

// WALPages is the size in bytes of the pages of a WAL, and of its files.
type WALPages struct{ Page, File uint64 }

// The headers of WAL pages. The first page of a file has the long one.
const (
	walPageHeader = 24
	walFileHeader = 40
)

// Start returns the start of the page if the position is just after the page's
// header, and else the position itself. Between the two there is no record.
func (w WALPages) Start(position uint64) uint64 {
	switch {
	case w.Page == 0 || w.File == 0:
	case position%w.File == walFileHeader:
		return position - walFileHeader
	case position%w.Page == walPageHeader && position%w.File != walPageHeader:
		return position - walPageHeader
	}
	return position
}

// Any role may execute these functions (checked on 15), unless EXECUTE was
// revoked. For a while after a promotion the last checkpoint is still of the old
// timeline, so the timeline of the WAL that is being written counts too. In
// recovery there is none to ask for, and CASE keeps the query from asking.
const sourceSQL = `
SELECT s.system_identifier,
       greatest(c.timeline_id, r.min_recovery_end_timeline, CASE WHEN pg_is_in_recovery() THEN 0
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END),
       current_database()::text, pg_is_in_recovery(), current_setting('server_version_num')::int,
       current_setting('wal_block_size')::int8, pg_size_bytes(current_setting('wal_segment_size'))
  FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r`

// LoadSource asks which cluster, timeline and database q reads from. If the role
// may not ask, the error says what to GRANT.
func LoadSource(ctx context.Context, q Querier) (Source, error) {
	rows, err := q.Query(ctx, sourceSQL)
	if err != nil {
		return Source{}, sourceError(err)
	}
	src, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (Source, error) {
		var s Source
		var system, timeline, page, file int64 // unsigned in Postgres
		err := row.Scan(&system, &timeline, &s.Database, &s.InRecovery, &s.Version, &page, &file)
		s.SystemID, s.Timeline, s.WAL = uint64(system), uint32(timeline), WALPages{uint64(page), uint64(file)}
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

// QueryOne returns the value of a query that has one row with one column.
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
                WHERE a.attrelid = c.oid AND a.attname = $1 AND a.attnum > 0 AND NOT a.attisdropped),
       EXISTS (SELECT FROM pg_catalog.pg_depend d
                WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'),
       c.relkind::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
 ORDER BY c.relname`

// candidate is a relation of schema public that * may stand for.
type candidate struct {
	Name string
	// HasTxid is true if it has the column of transaction IDs.
	HasTxid bool
	// OfExtension is true if an extension made it.
	OfExtension bool
	Kind        string
}

// candidates lists the relations of schema public.
func (s Specs) candidates(ctx context.Context, q Querier) ([]candidate, error) {
	rows, err := q.Query(ctx, publicSQL, s.All.Txid)
	if err != nil {
		return nil, fmt.Errorf("list schema public: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
	if err != nil {
		return nil, fmt.Errorf("list schema public: %w", err)
	}
	return list, nil
}

// names reports whether an entry of its own has or leaves out the relation.
func (s Specs) names(n Name) bool {
	return slices.Contains(s.Except, n) || slices.ContainsFunc(s.List, func(spec Spec) bool { return spec.Name == n })
}

// Prepared returns the relations that a set-up is for: those that are named, then
// every table of schema public that * stands for, or could once it is set up.
func (s Specs) Prepared(ctx context.Context, q Querier) ([]Spec, error) {
	specs := slices.Clone(s.List)
	if s.All == nil {
		return specs, nil
	}
	candidates, err := s.candidates(ctx, q)
	if err != nil {
		return nil, err
	}
	for _, c := range candidates {
		n := Name{Schema: defaultSchema, Table: c.Name}
		if (c.Kind == "r" || c.Kind == "p") && !c.OfExtension && !s.names(n) {
			specs = append(specs, s.All.of(n))
		}
	}
	return specs, nil
}

// Resolve returns the relations that are named, then those that * stands for: the
// tables of schema public with a usable txid column and a key, or with
// capture=wal those that are fit for a publication. The problems, all warnings,
// say why other relations of schema public are left out. A view, for example, has
// no key unless BRIDGE_TABLES names it. Resolve does not check rights: a relation
// that qualifies and can't be read is an error of Load.
func (s Specs) Resolve(ctx context.Context, q Querier) ([]Spec, []Problem, error) {
	specs := slices.Clone(s.List)
	if s.All == nil {
		return specs, nil, nil
	}
	candidates, err := s.candidates(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	var skipped []Problem
	skip := func(n Name, what, do string) {
		skipped = append(skipped, Problem{Relation: n, Severity: SeverityWarning, What: "left out of *: " + what, Do: do})
	}
	for _, n := range s.Except {
		if n.Schema != defaultSchema || !slices.ContainsFunc(candidates, func(c candidate) bool { return c.Name == n.Table }) {
			skip(n, "there is no such relation in schema public", "remove -"+n.Quoted()+" from BRIDGE_TABLES")
		}
	}
	for _, c := range candidates {
		n := Name{Schema: defaultSchema, Table: c.Name}
		spec := s.All.of(n)
		switch {
		case s.names(n):
			continue
		case c.OfExtension:
			skip(n, "it belongs to an extension", "name it in BRIDGE_TABLES, if you want it")
			continue
		case spec.Capture == CapturePoll && !c.HasTxid && slices.Contains([]string{"r", "p", "v"}, c.Kind):
			skip(n, "it has no column "+quoteIdent(spec.Txid), "run the SQL that this prints: "+SetupCommand(spec))
			continue
		}
		l, err := look(ctx, q, spec)
		if errors.Is(err, ErrNotFound) {
			continue // dropped since
		}
		if IsLocked(err) { // it must not keep the others from being captured
			if c.Kind == "v" {
				skip(n, "another session has locked it, or a table below it, and a view needs a named key", "name it in BRIDGE_TABLES, with its key")
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
