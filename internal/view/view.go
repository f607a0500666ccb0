// Package view reads what the query of a view says: from the query tree that
// Postgres keeps in pg_rewrite.ev_action. [Read] finds two things.
//
// One is whether a row of the view can change or vanish without a new transaction
// ID. Polling can't see that. A row of GROUP BY, for example, changes when a row
// below it is deleted, and max(txid) stays as it is.
//
// The other is which columns change although no row does. Some of them are the
// protocol's own: the oldest lockstep views show current_xmin and since.
//
// The package asks nothing of Postgres, and imports the standard library alone. It
// takes the trees of all versions: what it does not know it passes over.
package view

import (
	"fmt"
	"slices"
)

// Catalog is what the catalog says of the view and of all that is below it.
type Catalog struct {
	// Relations are tables and views by OID, the view itself among them.
	Relations map[uint32]Relation
	// Functions are the functions that the queries call.
	Functions map[uint32]Function
}

// Relation is a table or view.
type Relation struct {
	// Query is pg_rewrite.ev_action of a view, empty for all else.
	Query string
	// Marks is true for a table that marks deleted rows, and so keeps them.
	Marks bool
	// Key has the numbers of the columns of a table's key.
	Key []int
}

// Function is a function.
type Function struct {
	Name string
	// Builtin is true for those of pg_catalog.
	Builtin bool
	// Volatile is true if provolatile is v.
	Volatile bool
	Args     int
}

// Findings is what Read found.
type Findings struct {
	// Constructs are what lets rows change or vanish without a new transaction ID,
	// in the words of SQL.
	Constructs []string
	// Protocol has the names of the columns that are the protocol's own: the xmin of
	// the current snapshot, or the least of that and of the txid.
	Protocol []string
	// Moving has the functions that give another result each time: those that the
	// other columns call, by column, and those of conditions.
	Moving     []Moving
	Conditions []string
}

// Moving is a column whose value changes although no row does.
type Moving struct {
	Column    string
	Functions []string
}

// Read reads the query of a view. txid is the name of its column of transaction
// IDs.
func Read(c Catalog, oid uint32, txid string) (Findings, error) {
	r := &reader{catalog: c, queries: map[uint32]*query{}}
	q, err := r.view(oid)
	if err != nil {
		return Findings{}, err
	}
	r.rows(q)
	r.columns(q, txid)
	return r.found, r.err
}

type reader struct {
	catalog Catalog
	// queries has the views that were parsed.
	queries map[uint32]*query
	found   Findings
	err     error
	// hits counts calls of construct, steps those of below.
	hits, steps int
}

// query is a query with what it is in.
type query struct {
	*node
	// id is the same for two queries only if they are the same part of the same
	// view.
	id string
	// outer is the query around a subquery.
	outer *query
}

func (r *reader) view(oid uint32) (*query, error) {
	if q := r.queries[oid]; q != nil {
		return q, nil
	}
	tree, err := parseTree(r.catalog.Relations[oid].Query)
	if err != nil {
		return nil, err
	}
	list, _ := tree.([]any)
	if len(list) != 1 {
		return nil, errTree
	}
	n, _ := list[0].(*node)
	if n == nil || n.label != "QUERY" {
		return nil, errTree
	}
	q := &query{node: n, id: fmt.Sprint(oid)}
	r.queries[oid] = q
	return q, nil
}

// construct notes a construct, once.
func (r *reader) construct(name string) {
	r.hits++
	note(&r.found.Constructs, name)
}

func note(list *[]string, name string) {
	if !slices.Contains(*list, name) {
		*list = append(*list, name)
	}
}

// Kinds of range table entries and of set operations, as the trees of all versions
// have them.
const (
	rteRelation = 0
	rteSubquery = 1
	rteJoin     = 2
	rteFunction = 3
	rteTable    = 4
	rteCTE      = 6
	rteGroup    = 9

	setUnion = 1
)

// entry returns an entry of the query's range table, nil if there is none.
func (q *query) entry(n int) *node {
	list := q.list("rtable")
	if n < 1 || n > len(list) {
		return nil
	}
	e, _ := list[n-1].(*node)
	return e
}

// maxSteps bounds the work for views that read other views several times each.
const maxSteps = 200_000

// below returns the query of an entry: of a subquery, a view or a WITH query. It
// is nil for all else.
func (r *reader) below(q *query, n int) *query {
	if r.steps++; r.steps > maxSteps {
		r.err = errTree
		return nil
	}
	e := q.entry(n)
	if e == nil {
		return nil
	}
	switch e.number("rtekind") {
	case rteSubquery:
		if sub := e.child("subquery"); sub != nil {
			return &query{node: sub, id: fmt.Sprintf("%s/%d", q.id, n), outer: q}
		}
	case rteRelation:
		oid := uint32(max(e.number("relid"), 0))
		if r.catalog.Relations[oid].Query == "" {
			return nil
		}
		v, err := r.view(oid)
		if err != nil {
			r.err = err
			return nil
		}
		// The same view may be there twice: its rows are not the same rows.
		return &query{node: v.node, id: fmt.Sprintf("%s/%d", q.id, n)}
	case rteCTE:
		return with(q, e, n)
	}
	return nil
}

// with returns the WITH query that an entry names. One that names itself has none.
func with(q *query, e *node, n int) *query {
	if e.has("self_reference") {
		return nil
	}
	at := q
	for range max(e.number("ctelevelsup"), 0) {
		if at = at.outer; at == nil {
			return nil
		}
	}
	for _, v := range at.list("cteList") {
		cte, _ := v.(*node)
		if cte == nil || cte.text("ctename") != e.text("ctename") || cte.child("ctequery") == nil {
			continue
		}
		return &query{node: cte.child("ctequery"), id: fmt.Sprintf("%s/%d", q.id, n), outer: at}
	}
	return nil
}

// walk calls each for a value and all nodes in it, until each returns false for a
// node: then not for those in it.
func walk(v any, each func(*node) bool) {
	switch v := v.(type) {
	case []any:
		for _, c := range v {
			walk(c, each)
		}
	case *node:
		if v != nil && each(v) {
			for _, c := range v.fields {
				walk(c, each)
			}
		}
	}
}
