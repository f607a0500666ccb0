package wal

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bridge/internal/capture"
	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// read runs the look's query, in one snapshot.
func (s *session) read(ctx context.Context, f *feed, l *look) (result, error) {
	sql, params := f.lookSQL(l)
	var res result
	err := s.inSnapshot(ctx, f, func(conn *pgconn.PgConn, sn capture.Snapshot) error {
		res.snapshot = sn
		form, err := relation.NewForm(f.rel, f.types) // the feed's is not this goroutine's
		if err != nil {
			return err
		}
		rr := conn.ExecParams(ctx, sql, params, nil, nil, nil)
		for rr.NextRow() {
			switch full := res.bytes >= lookBytes; {
			case l.wanted == nil && (full || len(res.rows) == l.limit):
				res.more = true
				continue // what is left of the query's limit
			case full:
				res.left = append(res.left, relation.KeyName(f.keyOf(rr.Values())))
				continue
			}
			r, err := f.lookedRow(form, rr.Values())
			if err != nil {
				_, _ = rr.Close()
				return err
			}
			res.bytes += len(r.data)
			res.rows = append(res.rows, r)
		}
		_, err = rr.Close()
		return err
	})
	return res, err
}

func (f *feed) lookedRow(form *relation.Form, values [][]byte) (lookedRow, error) {
	var r lookedRow
	var err error
	var columns [][]byte
	values = form.Encodable(&columns, values)
	if f.rel.Txid >= 0 {
		if txid, err := form.Txid(values); err == nil { // the column may be the application's own
			r.txid = txid
		}
	}
	r.deleted = form.Deleted(values)
	if r.data, err = form.AppendData(nil, values); err != nil {
		return r, err
	}
	r.key = f.keyOf(values)
	return r, nil
}

// keyOf returns a copy of a row's key.
func (f *feed) keyOf(values [][]byte) [][]byte {
	key := make([][]byte, len(f.rel.Key))
	for n, i := range f.rel.Key {
		key[n] = append([]byte{}, values[i]...)
	}
	return key
}

// inSnapshot runs read in a transaction whose snapshot is taken behind a lock
// against changes of the relation's shape, for which it does not wait; see
// relation.LockSQL.
func (s *session) inSnapshot(ctx context.Context, f *feed, read func(*pgconn.PgConn, capture.Snapshot) error) error {
	conn, err := s.c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("look at the relation: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, relation.LockSQL(f.rel.Name)); err != nil {
		return changed(err)
	}
	sn, err := s.snapshot(ctx, tx, f)
	if err != nil {
		return err
	}
	return changed(read(conn.Conn().PgConn(), sn))
}

// snapshot takes the transaction's snapshot, and makes sure that the relation
// is the one that was loaded.
func (s *session) snapshot(ctx context.Context, tx pgx.Tx, f *feed) (capture.Snapshot, error) {
	var text string
	var oid int64
	var policies bool
	var timeline int64
	err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text, COALESCE(to_regclass($1)::oid, 0)::int8, COALESCE(row_security_active(to_regclass($1)::oid), false),
		('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int8`, f.rel.Name.SQL()).Scan(&text, &oid, &policies, &timeline)
	if err != nil {
		return capture.Snapshot{}, changed(err)
	}
	if uint32(oid) != f.rel.OID || policies != f.rel.Policies {
		return capture.Snapshot{}, fmt.Errorf("%w: it was dropped, or row level security was switched on or off", errChanged)
	}
	if uint32(timeline) != s.src.Timeline {
		return capture.Snapshot{}, fmt.Errorf("%w: the connection leads to another server or timeline", errChanged)
	}
	return capture.ParseSnapshot(text)
}

// changed turns what Postgres says of a relation that changed into errChanged.
func changed(err error) error {
	if source.IsChanged(err) {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	if err != nil && !errors.Is(err, errChanged) {
		return fmt.Errorf("look at the relation: %w", err)
	}
	return err
}

// writeMarker writes the look's marker into the WAL. It is a transaction of its
// own, so that it is flushed, and read, at once; and it is a watermark, too.
func (s *session) writeMarker(ctx context.Context, id string) error {
	err := s.toDisk(ctx, "SELECT pg_logical_emit_message(true, $1, pg_snapshot_xmin(pg_current_snapshot())::text || ' ' || $2)", s.prefix(), id)
	if err != nil {
		return fmt.Errorf("write a marker into the WAL: %w", err)
	}
	return nil
}

// toDisk runs a statement that writes into the WAL, and returns when that is on
// disk, whatever the role's settings are; no standby is waited for.
func (s *session) toDisk(ctx context.Context, sql string, args ...any) error {
	conn, err := s.c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = local"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
}

// lookSQL returns the look's query with its parameters.
func (f *feed) lookSQL(l *look) (sql string, params [][]byte) {
	ident := func(i int) string { return "r." + pgx.Identifier{f.rel.Columns[i].Name}.Sanitize() }
	keys := make([]string, len(f.rel.Key))
	for n, i := range f.rel.Key {
		keys[n] = ident(i)
	}
	key := strings.Join(keys, ", ")
	place := key // in the order of a load
	spelling := relation.SpellingSQL(f.rel, func(_, i int) string { return ident(i) })
	if spelling != "" {
		place += ", " + spelling
	}
	where := []string{f.condition()}
	switch {
	case l.wanted != nil:
		where = append(where, relation.KeysCondition(f.rel, key))
		params = relation.KeyArrays(func(yield func([][]byte) bool) {
			for _, sp := range l.wanted {
				if !yield(sp.key) {
					return
				}
			}
		}, len(f.rel.Key))
	case l.after != nil:
		param := func(n, i int) string {
			if spelling == "" {
				return "$" + strconv.Itoa(n+1)
			}
			return "$" + strconv.Itoa(n+1) + "::" + f.rel.Columns[i].Type // it stands in two places
		}
		var places []string
		for n, i := range f.rel.Key {
			places = append(places, param(n, i))
		}
		if spelling != "" {
			places = append(places, relation.SpellingSQL(f.rel, param))
		}
		where = append(where, "("+place+") > ("+strings.Join(places, ", ")+")")
		params = l.after
	}
	sql = f.selectSQL() + " WHERE " + strings.Join(where, " AND ")
	if l.wanted == nil {
		sql += " ORDER BY " + place + " LIMIT " + strconv.Itoa(l.limit+1)
	}
	return sql, params
}

// condition is what a row must meet to be published.
func (f *feed) condition() string {
	condition := f.filtered()
	if keyless := f.form.KeylessSQL(); keyless != "" {
		condition += " AND NOT (" + keyless + ")"
	}
	return condition
}

// filtered is the publication's condition.
func (f *feed) filtered() string {
	if f.filter == "" {
		return "true"
	}
	return "(" + f.filter + ")"
}

// selectSQL selects the relation's columns, and behind them those that only the
// server can turn into JSON.
func (f *feed) selectSQL() string {
	var list []string
	for _, c := range f.rel.Columns {
		list = append(list, "r."+pgx.Identifier{c.Name}.Sanitize())
	}
	for i, yes := range f.server {
		if yes {
			list = append(list, "to_json("+list[i]+")")
		}
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM " + f.rel.Name.SQL() + " r"
}
