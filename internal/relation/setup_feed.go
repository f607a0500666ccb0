package relation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// tombstones writes the table of tombstones, which keeps the keys of deleted
// rows, and the feed view over both tables.
func (s *setup) tombstones(o *object, txid column, key []int) {
	name := Name{Schema: s.opt.As, Table: tombName(o.name())}
	tomb := name.SQL()
	var keyNames, defs []string
	for _, i := range key {
		c := o.Columns[i]
		def := sqlIdent(c.Name) + " " + c.plainType()
		if c.Collation != "" {
			def += " COLLATE " + c.Collation
		}
		keyNames, defs = append(keyNames, c.Name), append(defs, def)
	}
	s.part("Deletes. Polling can't see that a row is gone. So a trigger keeps the key of each deleted row in a table of tombstones, and the",
		"bridge reads a view over both tables. Leave this part out (bridge sql -no-tombstones) if rows are never deleted.",
		"You may remove a tombstone once the bridge's heartbeats have passed its txid: DELETE FROM "+tomb+" WHERE "+sqlIdent(txid.Name)+" < …",
		"Before you rename a column of the key, or give it another type, remove this part. Else the table's own DELETE fails:",
		s.removeTombs(o))
	if o.Kind == "p" {
		s.note("TRUNCATE, DETACH and DROP of a single partition leave no tombstones: DELETE its rows first.")
	}
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s';")
	guards := append(s.absentRelation(name, markTombstonesOf(o.name())), s.absentFunction(name, markBury(o.name()))...)
	guards = append(guards, s.absentTriggers(o, name, buryTriggers...)...)
	s.guard(append(guards, s.absentRelation(s.feedName(o), markFeed(o.name()))...))
	defs = append(defs, sqlIdent(txid.Name)+" "+txid.BaseType+" NOT NULL")
	primary, sp := keyNames, o.spelling(key, txid.Name)
	if sp != nil {
		s.note("Postgres calls keys equal that it prints differently, such as 1.0 and 1.00. For clients they are two keys. So each spelling has its tombstone.")
		defs, primary = append(defs, sqlIdent(sp.column)+" bigint NOT NULL"), append(slices.Clone(keyNames), sp.column)
	}
	s.p("CREATE TABLE IF NOT EXISTS %s (%s, PRIMARY KEY (%s));", tomb, strings.Join(defs, ", "), sqlList(primary))
	if have := s.mine.relation(name); have != nil && sp != nil && !have.has(sp.column+" bigint") {
		s.note("The table is of an earlier version, which had one tombstone for all spellings of a key.")
		s.p("ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s bigint;", tomb, sqlIdent(sp.column))
		s.p("UPDATE %s SET %s = %s;", tomb, sqlIdent(sp.column), sp.hash(""))
		drop := ""
		if have.Primary != "" {
			drop = "DROP CONSTRAINT IF EXISTS " + sqlIdent(have.Primary) + ", "
		}
		s.p("ALTER TABLE %s %sADD PRIMARY KEY (%s);", tomb, drop, sqlList(primary))
	}
	s.p("COMMENT ON TABLE %s IS %s;", tomb, sqlLiteral(markTombstonesOf(o.name())))
	s.p("CREATE INDEX IF NOT EXISTS %s ON %s (%s);", sqlIdent(s.tombIndex(o)), tomb, sqlIdent(txid.Name))
	s.tombFunction(o, tomb, txid, key, sp)
	s.feed(o, tomb, txid, keyNames, sp)
	s.p("COMMIT;")
}

// buryTriggers are the triggers that write tombstones, as trig names them.
var buryTriggers = []string{"delete", "rekey", "truncate"}

// spelling is how tombstones tell keys apart that Postgres calls equal.
type spelling struct {
	// column of the tombstones holds a hash of how the key is printed. The text
	// itself may be too long for an index, and the table's DELETE would then fail.
	column string
	coarse []string
}

// spellingColumn is the column's name, unless the key has such a column.
const spellingColumn = "spelling"

// spelling returns nil if Postgres calls no two keys equal that it prints
// differently.
func (o *object) spelling(key []int, txid string) *spelling {
	sp := &spelling{column: spellingColumn}
	taken := map[string]bool{txid: true}
	for _, i := range key {
		c := o.Columns[i]
		taken[c.Name] = true
		if c.Coarse {
			sp.coarse = append(sp.coarse, c.Name)
		}
	}
	if len(sp.coarse) == 0 {
		return nil
	}
	if taken[sp.column] {
		sp.column = free("lockstep_"+spellingColumn, func(name string) bool { return taken[name] })
	}
	return sp
}

// text returns the expression for how the key of row is printed.
func (sp *spelling) text(row string) string {
	columns := make([]string, len(sp.coarse))
	for n, name := range sp.coarse {
		columns[n] = row + sqlIdent(name)
	}
	return spellingSQL(columns)
}

func (sp *spelling) hash(row string) string {
	return "pg_catalog.hashtextextended(" + sp.text(row) + ", 0)"
}

// withoutSpelling returns the columns that the tombstones had in earlier versions,
// nil if they were the same.
func withoutSpelling(columns []string) []string {
	last := len(columns) - 1
	if name, _, _ := strings.Cut(columns[last], " "); name != spellingColumn && name != "lockstep_"+spellingColumn {
		return nil
	}
	return columns[:last]
}

func (r *madeRelation) has(column string) bool { return slices.Contains(r.Columns, column) }

// plainType returns the type for a column of tombstones. It is no domain: a domain
// with NOT NULL allows no tombstone.
func (c *column) plainType() string {
	if c.OID == c.Base {
		return c.Type
	}
	return c.BaseType
}

// tombColumns lists the columns that the tombstones need, with their types.
func (s *setup) tombColumns(b base) []string {
	var list []string
	for _, i := range b.key {
		list = append(list, b.o.Columns[i].Name+" "+b.o.Columns[i].plainType())
	}
	txid := "bigint"
	if c := b.o.column(b.txid); c != nil && c.Base == oidXID8 && c.Dims == 0 {
		txid = c.BaseType
	}
	list = append(list, b.txid+" "+txid)
	if sp := b.o.spelling(b.key, b.txid); sp != nil {
		list = append(list, sp.column+" bigint")
	}
	return list
}

func tombIndexName(o *object, i int) string { return cutName(tombName(o.name()), "_txid"+number(i)) }

// tombIndex names the index of the tombstones. A table may be called as another
// one's tombstones' index would be.
func (s *setup) tombIndex(o *object) string {
	tomb := s.mine.relation(Name{Schema: s.opt.As, Table: tombName(o.name())})
	for i := range maxTries {
		name := tombIndexName(o, i)
		if r := s.mine.relation(Name{Schema: s.opt.As, Table: name}); r == nil || tomb != nil && r.Of == tomb.OID {
			return name
		}
	}
	return tombIndexName(o, maxTries)
}

// removeTombs returns a line that removes the tombstones of a table.
func (s *setup) removeTombs(o *object) string {
	return "  BEGIN; " + dropTombs(Name{Schema: s.opt.As, Table: tombName(o.name())}, s.feedName(o)) + "; COMMIT;"
}

// dropTombs returns the statements that remove tombstones, and the feed view over
// them.
func dropTombs(tomb, feed Name) string {
	return fmt.Sprintf("DROP FUNCTION %s() CASCADE; DROP VIEW %s; DROP TABLE %[1]s", tomb.SQL(), feed.SQL())
}

// buries reports whether the source of the trigger function is that of some version
// of the script.
func buries(source string, n Name) bool {
	rest, ok := strings.CutPrefix(source, buryHead)
	insert := "INSERT INTO " + n.SQL() + " ("
	return ok && (strings.HasPrefix(rest, insert) || strings.HasPrefix(rest, "EXECUTE "+sqlLiteral(insert)[:len(sqlLiteral(insert))-1]))
}

// buryHead is how the source of each version of the trigger function begins.
const buryHead = "\n#variable_conflict use_column\nBEGIN\n  IF TG_OP = 'TRUNCATE' THEN\n    "

func (s *setup) tombFunction(o *object, tomb string, txid column, keyColumns []int, sp *spelling) {
	col, current := sqlIdent(txid.Name), "pg_catalog.txid_current()"
	if txid.Base == oidXID8 {
		current = "pg_catalog.pg_current_xact_id()"
	}
	const given = " IS DISTINCT FROM NULL" // IS NOT NULL would ask a composite for its attributes
	var key, old, changed, named, was []string
	for _, i := range keyColumns {
		k := sqlIdent(o.Columns[i].Name)
		key, old = append(key, o.Columns[i].Name), append(old, "OLD."+k)
		changed = append(changed, fmt.Sprintf("OLD.%[1]s IS DISTINCT FROM NEW.%[1]s", k))
		if !o.inPrimary(o.Columns[i].Num) {
			named, was = append(named, k+given), append(was, "OLD."+k+given)
		}
	}
	// What a tombstone holds: of a row of the table, and of the row OLD.
	names := append(slices.Clone(key), txid.Name)
	unique, values := key, []string{sqlList(key), current}
	old = append(old, current)
	if sp != nil {
		changed = append(changed, sp.text("OLD.")+" <> "+sp.text("NEW."))
		names, unique = append(names, sp.column), append(slices.Clone(key), sp.column)
		values, old = append(values, sp.hash("")), append(old, sp.hash("OLD."))
	}
	rekeyed := strings.Join(changed, " OR ")
	where, onDelete := "", ""
	if len(named) > 0 {
		where = " WHERE " + strings.Join(named, " AND ")
		onDelete = " WHEN (" + strings.Join(was, " AND ") + ")"
		rekeyed = strings.Join(was, " AND ") + " AND (" + rekeyed + ")"
	}
	conflict := fmt.Sprintf("ON CONFLICT (%s) DO UPDATE SET %s = EXCLUDED.%s", sqlList(unique), col, col)
	s.note("SECURITY DEFINER: a role that deletes rows needs no right to the tombstones. TG_RELID: the table may get another name.")
	s.p("CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql", tomb)
	s.p("  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS \x00")
	s.p("#variable_conflict use_column")
	s.p("BEGIN")
	s.p("  IF TG_OP = 'TRUNCATE' THEN")
	s.p("    EXECUTE %s", sqlLiteral(fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM ", tomb, sqlList(names), strings.Join(values, ", "))))
	s.p("      || TG_RELID::pg_catalog.regclass || %s;", sqlLiteral(where+" "+conflict))
	s.p("  ELSE")
	s.p("    INSERT INTO %s (%s) VALUES (%s)", tomb, sqlList(names), strings.Join(old, ", "))
	s.p("      %s;", conflict)
	s.p("  END IF;")
	s.p("  RETURN NULL;")
	s.p("END \x00;")
	s.claim("FUNCTION", tomb+"()", markBury(o.name()), s.functionComment(tombName(o.name())))
	if len(named) > 0 {
		s.note("A row whose key is NULL was never published. It leaves no tombstone.")
	}
	s.trigger(o, s.trig("delete"), "AFTER DELETE", "ROW", onDelete, tomb)
	s.note("An UPDATE of the key deletes the old key. Other updates do not call the function.")
	s.trigger(o, s.trig("rekey"), "AFTER UPDATE", "ROW", " WHEN ("+rekeyed+")", tomb)
	s.trigger(o, s.trig("truncate"), "BEFORE TRUNCATE", "STATEMENT", "", tomb)
}

// feed writes the feed view. The deleted mark is the first column: columns that
// the table gets later then go to the end, where CREATE OR REPLACE VIEW accepts
// them. The view has base types instead of domains, because a domain with NOT NULL
// allows no NULL in a tombstone.
func (s *setup) feed(o *object, tomb string, txid column, key []string, sp *spelling) {
	mark := defaultDeleted
	if o.column(mark) != nil {
		mark = free("lockstep_deleted", func(name string) bool { return o.column(name) != nil })
		s.use.Deleted = mark
	}
	columns := o.Columns
	if o.column(txid.Name) == nil {
		columns = append(slices.Clone(columns), txid)
	}
	var live, dead, join []string
	for _, c := range columns {
		name := sqlIdent(c.Name)
		expr, null := "t."+name, "NULL::"+c.Type
		if c.OID != c.Base {
			expr, null = fmt.Sprintf("t.%s::%s", name, c.BaseType), "NULL::"+c.BaseType
		}
		if c.Name == txid.Name {
			expr = fmt.Sprintf("t.%s::%s", name, txid.BaseType)
		}
		live = append(live, expr+" AS "+name)
		if c.Name == txid.Name || slices.Contains(key, c.Name) {
			dead = append(dead, "d."+name)
		} else {
			dead = append(dead, null)
		}
	}
	for _, k := range key {
		join = append(join, fmt.Sprintf("t.%[1]s = d.%[1]s", sqlIdent(k)))
	}
	if sp != nil {
		join = append(join, sp.text("t.")+" = "+sp.text("d."))
	}
	feed := s.feedName(o)
	s.note("The view hides a tombstone while a row has its key again. If columns were dropped or got another type, drop the view first.")
	s.p("CREATE OR REPLACE VIEW %s AS", feed.SQL())
	s.p("SELECT false AS %s, %s\n  FROM %s t", sqlIdent(mark), strings.Join(live, ", "), o.name().SQL())
	s.p("UNION ALL")
	s.p("SELECT true, %s\n  FROM %s d\n WHERE NOT EXISTS (SELECT FROM %s t WHERE %s);", strings.Join(dead, ", "), tomb, o.name().SQL(), strings.Join(join, " AND "))
	s.claim("VIEW", feed.SQL(), markFeed(o.name()), s.relationComment(feed))
	s.read = []Name{feed}
	s.use.Name, s.use.Key = feed, key
}

// bases returns the tables that the script prepares: the relation, or those below
// a view.
func (s *setup) bases() []base {
	if s.l.self.Kind != "v" {
		probe := &looked{spec: s.l.spec, self: s.l.self, sources: s.l.sources}
		return []base{{s.l.self, s.l.spec.Txid, probe.checkKey(), !s.opt.NoTombstones && probe.checkDeleted() < 0}}
	}
	var list []base
	for _, o := range s.l.sources {
		if o.Kind != "r" && o.Kind != "p" || o.Tombstones {
			continue
		}
		name := s.l.spec.Txid
		// Where txid= names another column, because this one is the application's, the
		// view may still read it.
		if have := s.l.sourceTxid(o); have != nil && (o.owns(have) || have.Name != defaultTxid) {
			name = have.Name
		}
		probe := &looked{spec: NewSpec(o.name()), self: o, sources: []*object{o}}
		list = append(list, base{o, name, probe.checkKey(), false})
	}
	return list
}

// view writes what the tables below a view need.
func (s *setup) view(bases []base) {
	v := s.l.self
	s.use, s.read = s.l.spec, []Name{v.name()}
	s.part("A view needs a txid column with the highest txid of all tables whose changes show in it: greatest(a.txid, b.txid).",
		"Its tables need what follows. The bridge misses rows that are deleted, or that no longer meet the view's conditions: keep them",
		"in the view with deleted = true. For deletes, run bridge sql for the table, and build the view on the feed view that it makes.")
	s.l.checkView()
	for _, w := range s.l.warnings() {
		s.part("Mind: "+w.What+".", "What helps: "+w.Do+".")
	}
	if s.l.vanish && s.use.History != HistoryLog {
		s.use.Reconcile = cmp.Or(s.use.Reconcile, proposedReconcile)
	}
	if v.column(s.l.spec.Txid) == nil {
		s.note("The view has no column " + sqlIdent(s.l.spec.Txid) + " yet: add it when the tables have it.")
	}
	for _, b := range bases {
		s.index(b.o, s.stamp(b.o, b.txid), b.key)
		s.notify(b.o)
		if len(s.use.Key) == 0 {
			s.use.Key = viewKey(v, b.o, b.key)
		}
	}
	if len(s.use.Key) == 0 {
		s.part("In place of the dots below, name the columns that identify a row of the view.")
		s.use.Key = []string{"…"}
	}
}

// viewKey guesses the key of a view: the key of a table, if the view has columns
// with the same names.
func viewKey(v, o *object, key []int) []string {
	var names []string
	for _, i := range key {
		if v.column(o.Columns[i].Name) == nil {
			return nil
		}
		names = append(names, o.Columns[i].Name)
	}
	return names
}
