// Package relation knows what the bridge must know about a relation, a table or
// a view in Postgres. [ParseSpecs] parses BRIDGE_TABLES. [Load] looks a relation
// up in the catalog: its columns, and which of them hold the transaction ID, the
// key and the deleted mark; and it says what keeps the relation from being
// captured. [SetupSQL] writes the SQL that prepares one. [Form] and [Encoder] turn
// the text form of a row into JSON.
//
// Both captures use this package. It knows nothing about streams or HTTP.
package relation

import (
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
)

// Name names a table or view.
type Name struct {
	Schema, Table string
}

// String returns the name that the relation has in requests of clients, and so in
// logs and /readyz: lockstep.RelationName. For BRIDGE_TABLES and the command line
// it is Quoted.
func (n Name) String() string { return lockstep.RelationName(n.Schema, n.Table) }

// Qualified returns the name with its schema, for metrics.
func (n Name) Qualified() string { return lockstep.QualifiedName(n.Schema, n.Table) }

// SQL returns the name quoted for use in a statement.
func (n Name) SQL() string {
	return pgx.Identifier{n.Schema, n.Table}.Sanitize()
}

// NotifyChannel is the channel that the triggers of SetupSQL notify. The payload
// is Name.Payload of the table that changed.
const NotifyChannel = "lockstep"

// Payload returns the name as the triggers of SetupSQL send it. Two tables with
// dots in their names may share one; then each wakes the other's poller, too.
func (n Name) Payload() string { return n.Schema + "." + n.Table }

// Relation is a table or view as Load found it in the catalog. It does not
// change after Load has returned it.
type Relation struct {
	Name Name
	// OID is pg_class.oid. A relation that was dropped and made again has another.
	OID uint32
	// Kind is pg_class.relkind: r table, p partitioned table, v view.
	Kind byte
	// Columns are the columns of SELECT *, in that order.
	Columns []Column
	// Key holds the places of the key's columns in Columns, in key order.
	Key []int
	// Txid is the place of the txid column in Columns, -1 if there is none. Only a
	// relation with capture=wal may have none.
	Txid int
	// Stamped has the columns that the transaction IDs come from: the txid column, or
	// those of the tables below a view. It is empty unless all of them are known to
	// hold nothing else: others must not be overwritten.
	Stamped []Stamped
	// Deleted is the place of the deleted column in Columns, -1 if there is none.
	Deleted int
	// Unique is true if the catalog promises that no two rows have the same key.
	Unique bool
	// Deferrable is true if two rows may have the same key until their
	// transaction ends.
	Deferrable bool
	// OldRows is true if the WAL has rows as they were before a change, with all
	// columns (REPLICA IDENTITY FULL). Else it has the columns of the key, if they
	// change, and lacks large values that an UPDATE leaves alone.
	OldRows bool
	// Leaves are the partitions that hold the rows of a partitioned table, with
	// their files.
	Leaves []string
	// Sources are the tables whose changes show in the relation: for a table the
	// table itself, for a view every table below it. Tables that a view reads
	// inside functions are missing.
	Sources []Name
	// Definition identifies the query of a view and of the views below it. With
	// another query, a row may change and keep its txid. It is empty for a table.
	Definition string
	// Policies is true if row level security applies to the bridge's role.
	Policies bool
	// EstimatedRows is how many rows Postgres' planner expects, -1 if unknown. Analyzed
	// is true if Postgres has counted all that this comes from; else the planner
	// guesses from the size of files, and is far off for small ones.
	EstimatedRows int64
	Analyzed      bool
}

// Stamped is a column that a trigger sets to the ID of the transaction.
type Stamped struct {
	Table  Name
	Column string
	// Now is the expression, in SQL, for the ID of the transaction that runs.
	Now string
}

// Column is one column of a relation.
type Column struct {
	// Num is pg_attribute.attnum. A column that was dropped and made again has
	// another.
	Num  int
	Name string
	// Type is the type as format_type prints it, for people and consumers.
	Type string
	// TypeOID is pg_attribute.atttypid.
	TypeOID uint32
	// BaseOID is the type under a domain, else TypeOID. The row descriptions of
	// Postgres have this one.
	BaseOID uint32
	// Dims is the number of declared array dimensions, 0 for a scalar.
	Dims int
	// Generated is true if the column is computed from other columns.
	Generated bool
	// Coarse is true if Postgres calls values of the column equal that it prints
	// differently, such as 1.0 and 1.00.
	Coarse bool
	// Protocol is true for a column of a view that is the protocol's own, as the
	// oldest lockstep views have them: the xmin of the current snapshot, or the least
	// of that and of the txid. It changes with every transaction, and is no data.
	Protocol bool
	// Nullable is false only if the catalog promises NOT NULL.
	Nullable bool
}

// IsXID8 reports whether the column is of type xid8, or of a domain over it.
func (c Column) IsXID8() bool { return c.BaseOID == oidXID8 }

func sqlIdent(name string) string { return pgx.Identifier{name}.Sanitize() }
