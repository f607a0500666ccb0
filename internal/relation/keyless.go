package relation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A row is keyless if clients can't tell it by its key. They know a key only from
// its JSON. So a row is keyless if a column of its key is NULL, or is an array that
// does not begin with element 1: JSON does not show where an array begins. Keyless
// rows are counted, reported and left out. The others are published.

// beginsWith is how an array prints that does not begin with element 1.
var beginsWith = []byte("[")

// Keyless reports whether the row is keyless. values has the text of each column.
func (f *Form) Keyless(values [][]byte) bool {
	for n, i := range f.rel.Key {
		if v := values[i]; v == nil || f.arrays[n] && bytes.HasPrefix(v, beginsWith) {
			return true
		}
	}
	return false
}

// KeylessSQL returns the condition, in SQL, that a row r is keyless, and an empty
// string if no row can be.
func (f *Form) KeylessSQL() string {
	var any []string
	for n, i := range f.rel.Key {
		c := f.rel.Columns[i]
		if c.Nullable { // IS NULL would ask a composite for its attributes
			any = append(any, "r."+sqlIdent(c.Name)+" IS NOT DISTINCT FROM NULL")
		}
		if f.arrays[n] { // no LIKE, which not every collation allows
			any = append(any, "pg_catalog.ascii(r."+sqlIdent(c.Name)+"::text) = pg_catalog.ascii('[')")
		}
	}
	return strings.Join(any, " OR ")
}

// LeftOutSQL is KeylessSQL without rows that are marked as deleted: nobody misses
// those.
func (f *Form) LeftOutSQL() string {
	condition := f.KeylessSQL()
	if condition == "" || f.rel.Deleted < 0 {
		return condition
	}
	mark := f.rel.Columns[f.rel.Deleted]
	lives := " IS NULL"
	if mark.BaseOID == oidBool {
		lives = " IS NOT TRUE"
	}
	return "r." + sqlIdent(mark.Name) + lives + " AND (" + condition + ")"
}

// maxKeyless is how far CountKeyless counts.
const maxKeyless = 1000

// CountKeyless counts the rows that are left out and meet a condition, up to 1000.
func (f *Form) CountKeyless(ctx context.Context, q Querier, where string) (int64, error) {
	condition := f.LeftOutSQL()
	if condition == "" {
		return 0, nil
	}
	return QueryOne[int64](ctx, q, fmt.Sprintf("SELECT count(*) FROM (SELECT 1 FROM %s r WHERE %s AND (%s) LIMIT %d) n", f.rel.Name.SQL(), where, condition, maxKeyless))
}

// keyArrays says of each column of the key whether it is an array. It refuses types
// with an array inside another value.
func keyArrays(rel *Relation, types Types) ([]bool, error) {
	arrays := make([]bool, len(rel.Key))
	for n, i := range rel.Key {
		oid := rel.Columns[i].TypeOID
		for types[oid].Kind == TypeDomain {
			oid = types[oid].Elem
		}
		if t := types[oid]; t.Kind == TypeArray {
			arrays[n], oid = true, t.Elem
		}
		if types.hasArray(oid) {
			return nil, fmt.Errorf("key column %s: its type has arrays inside other values, and clients could not tell all such keys apart; name another key, or cast this column to text in a view", rel.Columns[i].Name)
		}
	}
	return arrays, nil
}

// hasArray reports whether the JSON of the type may have an array.
func (t Types) hasArray(oid uint32) bool {
	switch u := t[oid]; u.Kind {
	case TypeArray:
		return true
	case TypeDomain:
		return t.hasArray(u.Elem)
	case TypeComposite:
		for _, a := range u.Attributes {
			if t.hasArray(a.TypeOID) {
				return true
			}
		}
	}
	return false
}

// SharedKey returns a problem if two rows of a view have the same key, nil if none
// have. It asks only if no index forbids that. It gives up after two seconds, or if
// the view can't be read, and then returns nil.
func SharedKey(ctx context.Context, db interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}, rel *Relation,
) (*Problem, error) {
	if rel.Unique || rel.Kind != 'v' { // of a table, Load has told
		return nil, nil
	}
	columns, given := make([]string, len(rel.Key)), make([]string, len(rel.Key))
	for n, i := range rel.Key {
		columns[n] = sqlIdent(rel.Columns[i].Name)
		given[n] = columns[n] + " IS DISTINCT FROM NULL"
	}
	key := strings.Join(columns, ", ")
	groups := key
	if spelling := SpellingSQL(rel, func(n, _ int) string { return columns[n] }); spelling != "" {
		groups += ", " + spelling
	}
	var shared bool
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '2s'"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s WHERE %s GROUP BY %s HAVING count(*) > 1)",
			rel.Name.SQL(), strings.Join(given, " AND "), groups)).Scan(&shared)
	})
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return nil, nil
	}
	if err != nil || !shared {
		return nil, err
	}
	return &Problem{
		Relation: rel.Name, Severity: SeverityWarning, What: "its key " + key + " is not unique: of two rows with the same key, only one is kept",
		Do: "in BRIDGE_TABLES, name a key that no two rows share",
	}, nil
}
