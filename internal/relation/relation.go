// Package relation says what a relation is: which columns a table or view
// has, which of them hold its transaction ID, its key and its deleted mark,
// what a pg_snapshot means, and how a row's text form becomes JSON. Both
// captures use it; it knows nothing of streams or HTTP.
package relation

import "github.com/jackc/pgx/v5"

// Name names a table or view.
type Name struct {
	Schema, Table string
}

// String returns the name as users write it on the wire and in logs: without
// the schema where that is public.
func (n Name) String() string {
	if n.Schema == "public" {
		return n.Table
	}
	return n.Schema + "." + n.Table
}

// SQL returns the name quoted for use in a statement.
func (n Name) SQL() string {
	return pgx.Identifier{n.Schema, n.Table}.Sanitize()
}

// Relation is a table or view as it was when it was last looked at in the
// catalog. It is not changed after Load returned it.
type Relation struct {
	Name Name
	// OID is that of pg_class; a relation dropped and made again has another.
	OID uint32
	// Kind is pg_class.relkind: r table, p partitioned table, v view.
	Kind byte
	// Columns are those of SELECT *, in its order.
	Columns []Column
	// Key holds the places in Columns of the key's columns, in key order.
	Key []int
	// Txid is the place in Columns of the txid column.
	Txid int
	// Deleted is the place in Columns of the deleted column, -1 for none.
	Deleted int
	// Sources are the tables whose changes show in the relation: itself for
	// a table, every base table for a view.
	Sources []Name
}

// Column is one column of a relation.
type Column struct {
	Name string
	// Type is the type as format_type prints it, for people and consumers.
	Type string
	// TypeOID is pg_attribute.atttypid.
	TypeOID uint32
	// Dims is the number of declared array dimensions, 0 for a scalar.
	Dims int
	// Nullable is false only where the catalog promises NOT NULL.
	Nullable bool
}
