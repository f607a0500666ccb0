package view

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// xmin stands for the xmin of the current snapshot among the texts of expr.
const xmin = "xmin"

// columns looks at what the columns of the view are.
func (r *reader) columns(q *query, txid string) {
	names := q.names()
	var of []string
	for n, name := range names {
		if name == txid {
			of = r.column(q, n)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		name := names[n]
		if name != txid && isProtocol(r.column(q, n), of) {
			r.found.Protocol = append(r.found.Protocol, name)
			continue
		}
		var calls []string
		r.movingColumn(q, n, &calls, 0)
		if len(calls) > 0 {
			r.found.Moving = append(r.found.Moving, Moving{Column: name, Functions: calls})
		}
	}
}

// names returns the names of the query's columns by their numbers.
func (q *query) names() map[int]string {
	names := map[int]string{}
	for _, v := range q.list("targetList") {
		if t, _ := v.(*node); t != nil && !t.has("resjunk") {
			names[t.number("resno")] = t.text("resname")
		}
	}
	return names
}

// target returns the expression of the nth column, nil if there is none.
func (q *query) target(n int) *node {
	for _, v := range q.list("targetList") {
		if t, _ := v.(*node); t != nil && t.number("resno") == n {
			return t.child("expr")
		}
	}
	return nil
}

// isProtocol reports whether a column is the xmin of the snapshot, or the least of
// that and of the txid: in each branch of a UNION that does not have NULL there.
func isProtocol(column, txid []string) bool {
	yes := false
	for i, c := range column {
		switch {
		case c == "null":
		case c == xmin, len(txid) == len(column) && c == least(xmin, txid[i]):
			yes = true
		default:
			return false
		}
	}
	return yes
}

func least(args ...string) string {
	slices.Sort(args)
	return "least(" + strings.Join(args, ",") + ")"
}

// column returns a text for the nth column of a query, as expr does; for a set
// operation one for each of its branches.
func (r *reader) column(q *query, n int) []string {
	branches := r.branches(q, q.child("setOperations"))
	if branches == nil {
		return r.expr(q, q.target(n))
	}
	var list []string
	for _, b := range branches {
		list = append(list, r.column(b, n)...)
	}
	return list
}

// branches returns the queries of a set operation.
func (r *reader) branches(q *query, n *node) []*query {
	switch {
	case n == nil:
		return nil
	case n.label == "SETOPERATIONSTMT":
		return append(r.branches(q, n.child("larg")), r.branches(q, n.child("rarg"))...)
	}
	if sub := r.below(q, n.number("rtindex")); sub != nil {
		return []*query{sub}
	}
	return nil
}

// expr returns a text for an expression: two expressions with the same text have
// the same value in each row. Casts don't count. What a column of a subquery stands
// for takes its place; if that is a set operation, there is a text for each branch.
func (r *reader) expr(q *query, e *node) []string {
	e = r.withoutCasts(e)
	if e == nil {
		return []string{"?"}
	}
	switch e.label {
	case "CONST":
		if e.has("constisnull") {
			return []string{"null"}
		}
	case "VAR":
		return r.variable(q, e)
	case "FUNCEXPR":
		if f, _ := r.function(e); f.Builtin && (f.Name == "txid_snapshot_xmin" || f.Name == "pg_snapshot_xmin") {
			if args := r.args(e); len(args) == 1 && r.isCurrentSnapshot(args[0]) {
				return []string{xmin}
			}
		}
	}
	var parts []string
	for _, a := range r.args(e) {
		parts = append(parts, strings.Join(r.expr(q, a), "|"))
	}
	if e.label == "MINMAXEXPR" && e.number("op") == 1 {
		return []string{least(parts...)}
	}
	var rest []string
	for _, name := range slices.Sorted(maps.Keys(e.fields)) {
		if name != "args" && name != "location" {
			rest = append(rest, name+" "+plain(e.fields[name]))
		}
	}
	return []string{e.label + "@" + q.id + "(" + strings.Join(parts, ",") + ";" + strings.Join(rest, ",") + ")"}
}

// plain returns a text for any value, without the places in the source.
func plain(v any) string {
	switch v := v.(type) {
	case []any:
		var parts []string
		for _, c := range v {
			parts = append(parts, plain(c))
		}
		return "(" + strings.Join(parts, " ") + ")"
	case *node:
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(v.fields)) {
			if name != "location" {
				parts = append(parts, name+" "+plain(v.fields[name]))
			}
		}
		return "{" + v.label + " " + strings.Join(parts, ",") + "}"
	}
	return fmt.Sprint(v)
}

// maxFollow bounds how far a column is followed through views and subqueries.
const maxFollow = 100

// variable is expr for a column of what the query reads.
func (r *reader) variable(q *query, v *node) []string {
	own := []string{fmt.Sprintf("%s#%s.%s^%s", q.id, v.text("varno"), v.text("varattno"), v.text("varlevelsup"))}
	if strings.Count(q.id, "/") > maxFollow || v.has("varlevelsup") {
		return own
	}
	if sub := r.below(q, v.number("varno")); sub != nil {
		return r.column(sub, v.number("varattno"))
	}
	if alias := q.alias(v); alias != nil {
		return r.expr(q, alias)
	}
	return own
}

// alias returns the expression that a column of a join or of GROUP BY (since
// Postgres 18) stands for.
func (q *query) alias(v *node) *node {
	e := q.entry(v.number("varno"))
	if e == nil {
		return nil
	}
	field := map[int]string{rteJoin: "joinaliasvars", rteGroup: "groupexprs"}[e.number("rtekind")]
	list, n := e.list(cmp.Or(field, "-")), v.number("varattno")
	if n < 1 || n > len(list) {
		return nil
	}
	alias, _ := list[n-1].(*node)
	return alias
}

// withoutCasts returns what casts are made of.
func (r *reader) withoutCasts(e *node) *node {
	for e != nil {
		switch e.label {
		case "RELABELTYPE", "COERCEVIAIO", "COERCETODOMAIN", "COLLATEEXPR":
			e = e.child("arg")
		case "FUNCEXPR":
			args := r.args(e)
			if format := e.number("funcformat"); format != 1 && format != 2 || len(args) == 0 {
				return e
			}
			e = args[0]
		default:
			return e
		}
	}
	return nil
}

func (r *reader) args(e *node) []*node {
	var list []*node
	for _, v := range e.list("args") {
		n, _ := v.(*node)
		list = append(list, n)
	}
	return list
}

func (r *reader) isCurrentSnapshot(e *node) bool {
	e = r.withoutCasts(e)
	if e == nil {
		return false
	}
	f, _ := r.function(e)
	return f.Builtin && (f.Name == "txid_current_snapshot" || f.Name == "pg_current_snapshot")
}

// function returns the function that a node calls.
func (r *reader) function(n *node) (f Function, called bool) {
	for _, field := range []string{"funcid", "opfuncid"} {
		if oid := n.number(field); oid > 0 {
			return r.catalog.Functions[uint32(oid)], true
		}
	}
	return Function{}, false
}

// clocks are the functions of Postgres that give another result in another
// transaction, or on another connection, although they don't count as volatile.
var clocks = []string{
	"now", "transaction_timestamp", "statement_timestamp", "txid_current", "txid_current_if_assigned", "txid_current_snapshot",
	"pg_current_xact_id", "pg_current_xact_id_if_assigned", "pg_current_snapshot",
	"pg_backend_pid", "inet_client_port",
}

// moves returns the name of the function that a node calls, if that gives another
// result each time.
func (r *reader) moves(n *node) string {
	if n.label == "SQLVALUEFUNCTION" {
		if op := n.number("op"); op <= 8 { // beyond that are roles and names
			return []string{"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIME", "CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIME", "LOCALTIMESTAMP", "LOCALTIMESTAMP"}[max(op, 0)]
		}
		return ""
	}
	f, _ := r.function(n)
	if f.Volatile || f.Builtin && (slices.Contains(clocks, f.Name) || f.Name == "age" && f.Args == 1) {
		return f.Name + "()"
	}
	return ""
}

// moving notes the functions in an expression, and in what its columns stand for,
// that give another result each time.
func (r *reader) moving(q *query, v any, calls *[]string, depth int) {
	if depth > maxFollow {
		return
	}
	walk(v, func(n *node) bool {
		if name := r.moves(n); name != "" {
			note(calls, name)
		}
		if n.label == "QUERY" { // of EXISTS, IN and the like
			sub := &query{node: n, id: q.id + "/s", outer: q}
			r.moving(sub, n.fields["targetList"], calls, depth+1)
			r.moving(sub, n.fields["jointree"], calls, depth+1)
			return false
		}
		if n.label != "VAR" || n.has("varlevelsup") {
			return true
		}
		if sub := r.below(q, n.number("varno")); sub != nil {
			r.movingColumn(sub, n.number("varattno"), calls, depth+1)
		} else if alias := q.alias(n); alias != nil {
			r.moving(q, alias, calls, depth+1)
		}
		return true
	})
}

// movingColumn is moving for the nth column of a query.
func (r *reader) movingColumn(q *query, n int, calls *[]string, depth int) {
	branches := r.branches(q, q.child("setOperations"))
	if branches == nil {
		r.moving(q, q.target(n), calls, depth)
		return
	}
	for _, b := range branches {
		r.movingColumn(b, n, calls, depth+1)
	}
}

// conditions notes the functions in the conditions of a query that give another
// result each time: rows come and go with them.
func (r *reader) conditions(q *query) {
	for _, field := range []string{"jointree", "havingQual"} {
		r.moving(q, q.fields[field], &r.found.Conditions, 0)
	}
}
