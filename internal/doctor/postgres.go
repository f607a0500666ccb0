package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/stream"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// minPostgres is the oldest major version that the tests run on. Older ones are
// refused.
const minPostgres = 150000

// badDecoding are releases that tell the transactions that run of each other's
// changes of tables and publications again and again, until a message about them is
// too large. The next release of each mends it.
var badDecoding = []int{150013, 160009, 170005}

func (r *run) postgres(ctx context.Context) {
	if r.cfg.DatabaseURL == "" {
		return
	}
	server := source.Server{URL: r.cfg.DatabaseURL, PasswordFile: r.cfg.DatabasePasswordFile}
	if server.Check() != nil || server.CheckPassword() != nil {
		return // the caller's problems say so
	}
	conn, err := source.Connect(ctx, server)
	if err != nil {
		r.fail(AreaPostgres, "DATABASE_URL", "no connection: "+oneLine(err), server.Advice(err))
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if r.source, err = relation.LoadSource(ctx, conn); err != nil {
		r.fail(AreaPostgres, "", oneLine(err), "look at the log of Postgres; the bridge keeps what it asks here in each stream, so as not to continue it from another cluster")
	}
	if err := r.server(ctx, conn); err != nil {
		r.fail(AreaPostgres, "", "a query failed: "+oneLine(err), "look at the log of Postgres")
		return
	}
	if v := r.source.Version; v != 0 && v < minPostgres {
		return // it lacks what the other checks ask for
	}
	if err := r.relations(ctx, conn); err != nil {
		r.fail(AreaPostgres, "", "a query failed: "+oneLine(err), "look at the log of Postgres")
	}
}

const serverSQL = `
SELECT current_setting('server_version'), current_setting('server_encoding'), current_user::text, current_database()::text,
       current_setting('fsync')::bool,
       (SELECT count(*) FROM pg_catalog.pg_prepared_xacts WHERE prepared < now() - interval '5 minutes'),
       coalesce((SELECT string_agg(gid, ', ' ORDER BY prepared) FROM pg_catalog.pg_prepared_xacts WHERE prepared < now() - interval '5 minutes'), ''),
       coalesce((SELECT string_agg(format('pid %s (%s, since %s)', pid, application_name, date_trunc('second', xact_start)), ', ' ORDER BY xact_start)
          FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start < now() - interval '5 minutes'), '')`

// server checks what is true of the whole server.
func (r *run) server(ctx context.Context, conn *pgx.Conn) error {
	var pg Postgres
	var encoding, prepared, writers string
	var preparedCount int
	var fsync bool
	err := conn.QueryRow(ctx, serverSQL).Scan(&pg.Version, &encoding, &pg.Role, &pg.Database, &fsync, &preparedCount, &prepared, &writers)
	if err != nil {
		return err
	}
	pg.SystemID, pg.Timeline, pg.Standby = strconv.FormatUint(r.source.SystemID, 10), r.source.Timeline, r.source.InRecovery
	r.Postgres = &pg
	r.version(r.source.Version, pg.Version)
	if pg.Standby {
		r.warn(AreaPostgres, "", "Postgres is a standby: rows come with its delay, some of them twice, and no NOTIFY wakes the bridge",
			"if the delay matters, name the primary in DATABASE_URL")
	}
	if encoding != "UTF8" {
		r.warn(AreaPostgres, "", fmt.Sprintf("the encoding of the database is %s: text that is not UTF-8 can't be published", encoding), "move to a database with ENCODING 'UTF8'")
	}
	if !fsync {
		r.warn(AreaPostgres, "", "fsync is off: a crash of its machine may destroy the database. It also takes transaction IDs back that clients hold as positions; they would miss rows in silence",
			"ALTER SYSTEM SET fsync = on, then SELECT pg_reload_conf()")
	}
	if preparedCount > 0 {
		r.warn(AreaPostgres, "", "prepared transactions are more than 5 minutes old: "+prepared+". Until they end, no client's position moves past them",
			"end each with COMMIT PREPARED or ROLLBACK PREPARED, in its database")
	}
	if writers != "" {
		r.warn(AreaPostgres, "", "transactions that have written are more than 5 minutes old: "+writers+". Until they end, no client's position moves past them",
			"end them, or limit them by idle_in_transaction_session_timeout")
	}
	return nil
}

// version checks the server's version: as a number, 0 if unknown, and as text.
func (r *run) version(v int, text string) {
	wal := r.cfg.Specs.ReadsWAL()
	switch {
	case v != 0 && v < minPostgres:
		r.fail(AreaPostgres, "", fmt.Sprintf("Postgres %s is too old", text), fmt.Sprintf("upgrade it to %d or later", minPostgres/10000))
	case wal && slices.Contains(badDecoding, v):
		r.warn(AreaPostgres, "", fmt.Sprintf("Postgres %s has a fault in reading the WAL: after many changes of tables or publications it may fail with \"invalid memory alloc request size\", and capture=wal stops", text),
			fmt.Sprintf("upgrade it to %d.%d or later", v/10000, v%10000+1))
	}
}

// relations checks each relation. What a relation lacks is a problem in the
// report; an error means that Postgres could not be asked.
func (r *run) relations(ctx context.Context, conn *pgx.Conn) error {
	specs, skipped, err := r.cfg.Specs.Resolve(ctx, conn)
	if err != nil {
		return err
	}
	for _, p := range skipped {
		r.relationProblem(&p)
	}
	if len(specs) == 0 && r.cfg.Specs.All != nil {
		r.fail(AreaRelation, "BRIDGE_TABLES", "no relation of schema public qualifies for *", "prepare one: bridge sql TABLE, or all: bridge sql '*'")
	}
	if err := r.wal(ctx, conn, specs); err != nil {
		return err
	}
	captured := make([]relation.Name, len(specs))
	for i, spec := range specs {
		captured[i] = spec.Name
	}
	for _, spec := range specs {
		log := spec.History == relation.HistoryLog
		entry := Relation{
			Name: spec.Name.Quoted(), History: string(spec.History), Rows: -1, spec: spec,
			Stream: stream.NewLayout(r.cfg.Prefix, spec.Name.Schema, spec.Name.Table, log).Stream,
		}
		rel, warnings, err := relation.LoadFor(ctx, conn, spec, r.cfg.Name)
		if errors.Is(err, relation.ErrNotFound) {
			err = relation.NotFound(ctx, conn, spec.Name, captured)
		}
		problems, err := split(err)
		if err != nil {
			return err
		}
		for _, p := range problems {
			r.relationProblem(p)
		}
		for _, p := range warnings {
			r.relationProblem(&p)
		}
		if rel != nil {
			entry.OK, entry.estimate = true, rel.EstimatedRows
			if log && spec.Capture == relation.CaptureWAL {
				entry.OldRows = map[bool]string{true: "full", false: "key"}[rel.OldRows]
			}
			if rel.Analyzed {
				entry.Rows = rel.EstimatedRows
			}
			for _, i := range rel.Key {
				entry.Key = append(entry.Key, rel.Columns[i].Name)
			}
			if err := r.stamps(ctx, conn, rel, spec); err != nil {
				return err
			}
			if err := r.key(ctx, conn, rel); err != nil {
				return err
			}
		}
		r.Relations = append(r.Relations, entry)
	}
	return nil
}

func (r *run) relationProblem(p *relation.Problem) {
	r.Problems = append(r.Problems, Problem{Severity: p.Severity, Area: AreaRelation, Subject: p.Relation.Quoted(), What: p.What, Do: p.Do})
}

// split takes apart the problems that Load joined. An error that is not made of
// problems is returned as it is.
func split(joined error) (problems []*relation.Problem, err error) {
	if joined == nil {
		return nil, nil
	}
	list := []error{joined}
	if many, ok := joined.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only what Load itself joined
		list = many.Unwrap()
	}
	for _, e := range list {
		var p *relation.Problem
		if !errors.As(e, &p) {
			return nil, joined
		}
		problems = append(problems, p)
	}
	return problems, nil
}

// stamps looks for rows with transaction IDs that this cluster has not given
// out yet, such as those of a restored dump. Without an index it gives up soon. It
// proposes to overwrite them only in columns that nobody else sets.
func (r *run) stamps(ctx context.Context, conn *pgx.Conn, rel *relation.Relation, spec relation.Spec) error {
	if rel.Txid < 0 {
		return nil
	}
	col := pgx.Identifier{rel.Columns[rel.Txid].Name}.Sanitize()
	next := "txid_snapshot_xmax(txid_current_snapshot())"
	if rel.Columns[rel.Txid].IsXID8() {
		next = "pg_snapshot_xmax(pg_current_snapshot())"
	}
	do := "see whether the column is the application's own, and what this says: " + relation.SetupCommand(spec)
	if len(rel.Stamped) > 0 {
		do = "give these rows a new ID:"
		for _, c := range rel.Stamped {
			from := next
			if c.Now == "pg_current_xact_id()" {
				from = "pg_snapshot_xmax(pg_current_snapshot())"
			}
			do += fmt.Sprintf(" UPDATE %s SET %s = %s WHERE %[2]s >= %s;", c.Table.SQL(), pgx.Identifier{c.Column}.Sanitize(), c.Now, from)
		}
	}
	ahead, err := exists(ctx, conn, fmt.Sprintf("SELECT FROM %s WHERE %s >= %s", rel.Name.SQL(), col, next))
	if ahead {
		r.warn(AreaRelation, rel.Name.Quoted(), "it holds transaction IDs that this cluster has not given out yet, as a restored dump does: a change that keeps such an ID is missed", do)
	}
	return err
}

// key looks for rows that clients can't tell by their key. What no constraint
// promises of a view, it looks at, too: that no two rows have the same key.
func (r *run) key(ctx context.Context, conn *pgx.Conn, rel *relation.Relation) error {
	types, err := relation.LoadTypes(ctx, conn, rel.Columns)
	if err != nil {
		return err
	}
	form, err := relation.NewForm(rel, types)
	if err != nil {
		r.fail(AreaRelation, rel.Name.Quoted(), err.Error(), "name another key in BRIDGE_TABLES")
		return nil
	}
	if condition := form.LeftOutSQL(); condition != "" {
		keyless, err := exists(ctx, conn, fmt.Sprintf("SELECT FROM %s r WHERE %s", rel.Name.SQL(), condition))
		if err != nil {
			return err
		}
		if keyless {
			r.warn(AreaRelation, rel.Name.Quoted(), "rows are not published, because a column of their key is NULL, or is an array that does not begin with element 1",
				"correct these rows, or name another key in BRIDGE_TABLES: SELECT * FROM "+rel.Name.SQL()+" r WHERE "+condition)
		}
	}
	shared, err := relation.SharedKey(ctx, conn, rel)
	if shared != nil {
		r.relationProblem(shared)
	}
	return err
}

// exists reports whether a query returns a row. A query that takes long or fails
// in Postgres, for example in a view's own expression, counts as one without
// rows: the other checks go on.
func exists(ctx context.Context, conn *pgx.Conn, query string) (yes bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '2s'"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT EXISTS ("+query+")").Scan(&yes)
	})
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return false, nil
	}
	return yes, err
}

// oneLine returns the text of an error on one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
