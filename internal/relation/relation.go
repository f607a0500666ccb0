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

// NotifyChannel is where the triggers that SetupSQL makes send the payload of
// the table that changed: Name.Payload of one of a relation's Sources.
const NotifyChannel = "lockstep"

// Payload returns the name as the triggers send it.
func (n Name) Payload() string { return n.Schema + "." + n.Table }

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
	// Txid is the place in Columns of the txid column, -1 for none, which only a
	// relation that is captured from the WAL may have.
	Txid int
	// Deleted is the place in Columns of the deleted column, -1 for none.
	Deleted int
	// Deferrable is set where two rows may have one key until their transaction
	// ends.
	Deferrable bool
	// Leaves are a partitioned table's partitions and their files.
	Leaves []string
	// Sources are the tables whose changes show in the relation: itself for
	// a table, every base table for a view. Tables that a view reads inside
	// of functions are not among them.
	Sources []Name
	// Definition identifies a view's query, and those of the views below it; a
	// row that comes with another query has its old txid. Empty for a table.
	Definition string
	// Policies is set where row level security holds for the bridge's role.
	Policies bool
	// EstimatedRows is what Postgres' planner expects, -1 if unknown.
	EstimatedRows int64
}

// Column is one column of a relation.
type Column struct {
	// Num is pg_attribute.attnum; a column dropped and made again has another.
	Num  int
	Name string
	// Type is the type as format_type prints it, for people and consumers.
	Type string
	// TypeOID is pg_attribute.atttypid.
	TypeOID uint32
	// BaseOID is the type under a domain, or else TypeOID. Postgres' row
	// descriptions name this one.
	BaseOID uint32
	// Dims is the number of declared array dimensions, 0 for a scalar.
	Dims int
	// Generated is set where the column is computed from others.
	Generated bool
	// Nullable is false only where the catalog promises NOT NULL.
	Nullable bool
}

func sqlIdent(name string) string { return pgx.Identifier{name}.Sanitize() }
