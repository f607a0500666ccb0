package view

import "slices"

// source is what is known of the rows that a query or a table gives.
type source struct {
	// keeps is true if no row of it vanishes: deleted rows stay and are marked.
	keeps bool
	// constant is true if it reads no table.
	constant bool
	// keysOnly is true if its deleted rows have only a key: the rest is NULL.
	keysOnly bool
}

// words are the constructs that the fields of a query tell, in this order.
var words = []struct{ field, name string }{
	{"hasRecursive", "WITH RECURSIVE"},
	{"groupClause", "GROUP BY"},
	{"groupingSets", "GROUP BY"},
	{"hasAggs", "an aggregate"},
	{"havingQual", "HAVING"},
	{"hasWindowFuncs", "a window function"},
	{"distinctClause", "DISTINCT"},
	{"limitCount", "LIMIT"},
	{"limitOffset", "OFFSET"},
	{"hasTargetSRFs", "a function that returns several rows"},
}

// rows looks for constructs in the query and in all below it, and says what is
// known of its rows.
func (r *reader) rows(q *query) source {
	if r.isFeed(q) {
		return source{keeps: true, keysOnly: true}
	}
	before := r.hits
	for _, w := range words {
		if q.has(w.field) {
			r.construct(w.name)
		}
	}
	r.subqueries(q)
	r.conditions(q)
	var all source
	if set := q.child("setOperations"); set != nil {
		all = r.setOperation(q, set)
	} else {
		all = r.from(q)
	}
	if jt := q.child("jointree"); jt != nil && jt.has("quals") {
		all.keeps = false // a row may leave by the condition
	}
	all.keeps = all.keeps && r.hits == before
	return all
}

// subqueries looks for EXISTS, IN and other subqueries in expressions.
func (r *reader) subqueries(q *query) {
	if !q.has("hasSubLinks") {
		return
	}
	before := r.hits
	for name, v := range q.fields {
		if name == "rtable" || name == "cteList" { // queries of their own
			continue
		}
		walk(v, func(n *node) bool {
			if n.label != "SUBLINK" {
				return true
			}
			switch n.number("subLinkType") {
			case 0:
				r.construct("EXISTS")
			case 2:
				r.construct("IN (SELECT …)")
			default:
				r.construct("a subquery in an expression")
			}
			return false
		})
	}
	if r.hits == before { // it is in a function in FROM
		r.construct("a subquery in an expression")
	}
}

// setOperation looks at both sides of a set operation.
func (r *reader) setOperation(q *query, n *node) source {
	if n == nil {
		return source{}
	}
	if n.label != "SETOPERATIONSTMT" {
		if sub := r.below(q, n.number("rtindex")); sub != nil {
			return r.rows(sub)
		}
		return source{}
	}
	left, right := r.setOperation(q, n.child("larg")), r.setOperation(q, n.child("rarg"))
	names := []string{"", "UNION", "INTERSECT", "EXCEPT"}
	all := n.number("op") == setUnion && n.has("all")
	switch op := n.number("op"); {
	case all && left.keeps && right.keeps:
	case all:
		r.construct("UNION ALL")
	case op > 0 && op < len(names):
		r.construct(names[op])
	default:
		r.construct("a set operation")
	}
	return source{keeps: all && left.keeps && right.keeps, keysOnly: left.keysOnly || right.keysOnly}
}

// from looks at what a query reads: one source, or a join of several.
func (r *reader) from(q *query) source {
	jt := q.child("jointree")
	if jt == nil {
		return source{keeps: true, constant: true}
	}
	var sources []source
	var outer []*node
	inner, constants := map[string]bool{}, map[int]bool{}
	var item func(v any)
	item = func(v any) {
		n, _ := v.(*node)
		switch {
		case n == nil:
		case n.label == "JOINEXPR":
			inner[joinName(n)] = true
			if joinName(n) != "JOIN" {
				outer = append(outer, n)
			}
			item(n.fields["larg"])
			item(n.fields["rarg"])
		case n.label == "RANGETBLREF":
			if s, ok := r.item(q, n.number("rtindex")); ok {
				sources = append(sources, s)
			} else {
				constants[n.number("rtindex")] = true
			}
		}
	}
	list := jt.list("fromlist")
	for _, v := range list {
		item(v)
	}
	if len(list) > 1 {
		inner["JOIN"] = true
	}
	if len(sources) == 0 {
		return source{keeps: true, constant: true}
	}
	all := source{keeps: true}
	for _, s := range sources {
		all.keeps = all.keeps && s.keeps
		all.keysOnly = all.keysOnly || s.keysOnly
	}
	if len(sources) == 1 {
		return all
	}
	for _, name := range []string{"JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"} {
		// An inner join drops a tombstone, whose other columns are NULL.
		if inner[name] && (!all.keeps || name == "JOIN" && all.keysOnly) {
			r.construct(name)
			all.keeps = false
		}
	}
	for _, n := range outer {
		if all.keeps && !r.matchesByKey(q, n, constants) {
			r.construct(joinName(n))
			all.keeps = false
		}
	}
	return all
}

// matchesByKey reports whether an outer join finds the rows that may be missing by
// their keys alone. By other columns a row may stop to match: it changes or is
// deleted, and the row that it was joined to stays, with its old transaction ID.
func (r *reader) matchesByKey(q *query, join *node, constants map[int]bool) bool {
	missing := map[int]bool{}
	var collect func(n *node)
	collect = func(n *node) {
		if n == nil {
			return
		}
		missing[n.number("rtindex")] = !constants[n.number("rtindex")]
		collect(n.child("larg"))
		collect(n.child("rarg"))
	}
	if name := joinName(join); name != "LEFT JOIN" {
		collect(join.child("larg"))
	}
	if name := joinName(join); name != "RIGHT JOIN" {
		collect(join.child("rarg"))
	}
	yes := true
	walk(join.fields["quals"], func(n *node) bool {
		yes = yes && (n.label != "VAR" || !missing[n.number("varno")] || r.isKey(q, n, 0))
		return yes
	})
	return yes
}

// isKey reports whether a column is made of columns of keys only.
func (r *reader) isKey(q *query, v *node, depth int) bool {
	if depth > maxFollow || v.has("varlevelsup") {
		return false
	}
	number := v.number("varattno")
	if sub := r.below(q, v.number("varno")); sub != nil {
		branches := r.branches(sub, sub.child("setOperations"))
		if branches == nil {
			branches = []*query{sub}
		}
		return !slices.ContainsFunc(branches, func(b *query) bool { return !r.ofKeys(b, b.target(number), depth+1) })
	}
	if alias := q.alias(v); alias != nil {
		return r.ofKeys(q, alias, depth+1)
	}
	e := q.entry(v.number("varno"))
	return e != nil && e.number("rtekind") == rteRelation && slices.Contains(r.catalog.Relations[uint32(max(e.number("relid"), 0))].Key, number)
}

// ofKeys is isKey for an expression.
func (r *reader) ofKeys(q *query, e *node, depth int) bool {
	yes := true
	walk(e, func(n *node) bool {
		yes = yes && n.label != "QUERY" && (n.label != "VAR" || r.isKey(q, n, depth))
		return yes
	})
	return yes
}

func joinName(n *node) string {
	switch n.number("jointype") {
	case 1:
		return "LEFT JOIN"
	case 2:
		return "FULL JOIN"
	case 3:
		return "RIGHT JOIN"
	}
	return "JOIN"
}

// item says what is known of the rows of one entry. ok is false for constants,
// which are no source.
func (r *reader) item(q *query, n int) (s source, ok bool) {
	e := q.entry(n)
	if e == nil {
		return source{}, false
	}
	switch e.number("rtekind") {
	case rteRelation:
		if e.has("tablesample") {
			r.construct("TABLESAMPLE")
		}
		if sub := r.below(q, n); sub != nil {
			return r.rows(sub), true
		}
		return source{keeps: r.catalog.Relations[uint32(max(e.number("relid"), 0))].Marks}, true
	case rteSubquery, rteCTE:
		if sub := r.below(q, n); sub != nil {
			s := r.rows(sub)
			return s, !s.constant
		}
		return source{}, true
	case rteFunction, rteTable:
		if !r.constant(e) {
			r.construct("a function that returns several rows")
			return source{}, true
		}
	}
	return source{}, false
}

// constant reports whether a function in FROM gives the same rows at all times: it
// reads no column, and is Postgres' own.
func (r *reader) constant(e *node) bool {
	yes := true
	walk(e, func(n *node) bool {
		f, called := r.function(n)
		yes = yes && n.label != "VAR" && (!called || f.Builtin)
		return true
	})
	return yes
}

// isFeed reports whether the query is that of a feed view: the rows of a table,
// and with UNION ALL the tombstones of keys that it does not have. No row leaves
// such a view: a deleted one becomes a tombstone.
func (r *reader) isFeed(q *query) bool {
	set := q.child("setOperations")
	if set == nil || set.number("op") != setUnion || !set.has("all") {
		return false
	}
	left, right := set.child("larg"), set.child("rarg")
	if left == nil || right == nil {
		return false
	}
	a, b := r.below(q, left.number("rtindex")), r.below(q, right.number("rtindex"))
	return a != nil && b != nil && (r.areTombstones(b, a) || r.areTombstones(a, b))
}

// areTombstones reports whether dead reads a table and leaves out the keys that are
// in the table that live reads.
func (r *reader) areTombstones(dead, live *query) bool {
	table := r.onlyTable(live)
	if table < 0 || r.onlyTable(dead) < 0 || live.has("hasSubLinks") || dead.child("jointree") == nil {
		return false
	}
	not := dead.child("jointree").child("quals")
	if not == nil || not.label != "BOOLEXPR" || not.text("boolop") != "not" || len(not.list("args")) != 1 {
		return false
	}
	link, _ := not.list("args")[0].(*node)
	if link == nil || link.label != "SUBLINK" || link.number("subLinkType") != 0 || link.child("subselect") == nil {
		return false
	}
	return r.onlyTable(&query{node: link.child("subselect"), outer: dead}) == table
}

// onlyTable returns the OID of the table that a query reads, if it reads only that,
// and has none of the words; else -1.
func (r *reader) onlyTable(q *query) int {
	for _, w := range words {
		if q.has(w.field) {
			return -1
		}
	}
	jt := q.child("jointree")
	if jt == nil || len(jt.list("fromlist")) != 1 || q.has("setOperations") {
		return -1
	}
	ref, _ := jt.list("fromlist")[0].(*node)
	if ref == nil || ref.label != "RANGETBLREF" {
		return -1
	}
	e := q.entry(ref.number("rtindex"))
	if e == nil || e.number("rtekind") != rteRelation || r.catalog.Relations[uint32(max(e.number("relid"), 0))].Query != "" {
		return -1
	}
	return e.number("relid")
}
