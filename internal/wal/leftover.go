package wal

import (
	"context"
	"fmt"
	"strings"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
)

// Leftover is what Postgres keeps for a relation that was read from the WAL.
type Leftover struct {
	// Name is that of publication and slot.
	Name string
	// Published says that the publication names the table, and Others that there
	// are other tables in it.
	Published, Others bool
	// Ours says that a bridge, or the script of bridge sql, made the publication.
	// May says that the role may change it.
	Ours, May bool
	// Slot says that there is a slot of a bridge of this database. Reader is the
	// process that reads it, 0 for none.
	Slot   bool
	Reader int64

	table relation.Name
}

const leftoverSQL = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE r.prpubid = p.oid AND n.nspname = $2 AND c.relname = $3),
       EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1 AND (schemaname, tablename) <> ($2, $3)),
       COALESCE(obj_description(p.oid, 'pg_publication'), '') = ANY ($4), pg_has_role(p.pubowner, 'USAGE'),
       s.slot_name IS NOT NULL, COALESCE(s.active_pid, 0)::int8
  FROM pg_catalog.pg_publication p
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1 AND s.plugin = 'pgoutput' AND s.database = current_database()
 WHERE p.pubname = $1`

// FindLeftover looks for what Postgres keeps for the relation in publication and
// slot of the name.
func FindLeftover(ctx context.Context, q relation.Querier, name string, rel relation.Name) (Leftover, error) {
	l := Leftover{Name: name, table: rel}
	rows, err := q.Query(ctx, leftoverSQL, name, rel.Schema, rel.Table, []string{ours, relation.MarkPublication})
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&l.Published, &l.Others, &l.Ours, &l.May, &l.Slot, &l.Reader}, func() error { return nil })
	}
	if err != nil {
		return Leftover{}, fmt.Errorf("look up publication and slot: %w", err)
	}
	return l, nil
}

// Last says that the relation is the only one of its publication, so that slot
// and publication serve nothing without it.
func (l Leftover) Last() bool { return l.Published && !l.Others }

// Statements returns the SQL that removes the leftover, for its owner.
func (l Leftover) Statements() (list []string) {
	name := pgx.Identifier{l.Name}.Sanitize()
	switch {
	case !l.Published:
	case l.Others:
		list = append(list, "ALTER PUBLICATION "+name+" DROP TABLE "+l.table.SQL())
	default:
		if l.Slot {
			list = append(list, "SELECT pg_drop_replication_slot('"+strings.ReplaceAll(l.Name, "'", "''")+"')")
		}
		list = append(list, "DROP PUBLICATION "+name)
	}
	return list
}

// Foreign returns why a bridge does not remove the leftover, "" if it does.
func (l Leftover) Foreign() string {
	switch {
	case !l.Published:
	case !l.Ours:
		return "publication " + l.Name + " was not made by the bridge"
	case !l.May:
		return "publication " + l.Name + " belongs to another role"
	case l.Last() && l.Reader != 0:
		return fmt.Sprintf("slot %s is read by the session with PID %d", l.Name, l.Reader)
	}
	return ""
}
