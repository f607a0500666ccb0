package relation

import (
	"fmt"
	"slices"
	"strings"
)

// tombstones writes the table of tombstones, which keeps the keys of deleted
// rows, and the feed view over both tables.
func (s *setup) tombstones(o *object, txid column, key []int) {
	tomb := sqlIdent(helperSchema) + "." + sqlIdent(tombName(o.name()))
	var keyNames, defs []string
	for _, i := range key {
		c := o.Columns[i]
		def := sqlIdent(c.Name) + " " + c.BaseType
		if c.OID == c.Base {
			def = sqlIdent(c.Name) + " " + c.Type
		}
		if c.Collation != "" {
			def += " COLLATE " + c.Collation
		}
		keyNames, defs = append(keyNames, c.Name), append(defs, def)
	}
	s.part("Deletes. Polling can't see that a row is gone. So a trigger keeps the key of each deleted row in a table of tombstones, and the",
		"bridge reads a view over both tables. Leave this part out (bridge sql -no-tombstones) if rows are never deleted.",
		"You may remove a tombstone once the bridge's heartbeats have passed its txid: DELETE FROM "+tomb+" WHERE "+sqlIdent(txid.Name)+" < …")
	if o.Kind == "p" {
		s.note("TRUNCATE, DETACH and DROP of a single partition leave no tombstones: DELETE its rows first.")
	}
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s';")
	s.p("CREATE TABLE IF NOT EXISTS %s (%s, %s %s NOT NULL, PRIMARY KEY (%s));",
		tomb, strings.Join(defs, ", "), sqlIdent(txid.Name), txid.BaseType, sqlList(keyNames))
	s.p("CREATE INDEX IF NOT EXISTS %s ON %s (%s);", sqlIdent(cutName(tombName(o.name()), "_txid")), tomb, sqlIdent(txid.Name))
	s.tombFunction(o, tomb, txid, keyNames)
	s.feed(o, tomb, txid, keyNames)
	s.p("COMMIT;")
}

func (s *setup) tombFunction(o *object, tomb string, txid column, key []string) {
	col, current := sqlIdent(txid.Name), "pg_catalog.txid_current()"
	if txid.Base == oidXID8 {
		current = "pg_catalog.pg_current_xact_id()"
	}
	var old, changed []string
	for _, k := range key {
		old = append(old, "OLD."+sqlIdent(k))
		changed = append(changed, fmt.Sprintf("OLD.%[1]s IS DISTINCT FROM NEW.%[1]s", sqlIdent(k)))
	}
	conflict := fmt.Sprintf("ON CONFLICT (%s) DO UPDATE SET %s = EXCLUDED.%s;", sqlList(key), col, col)
	s.note("SECURITY DEFINER: a role that deletes rows needs no right to the tombstones.")
	s.p("CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql", tomb)
	s.p("  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $lockstep$")
	s.p("#variable_conflict use_column")
	s.p("BEGIN")
	s.p("  IF TG_OP = 'TRUNCATE' THEN")
	s.p("    INSERT INTO %s (%s, %s) SELECT %s, %s FROM %s", tomb, sqlList(key), col, sqlList(key), current, o.name().SQL())
	s.p("      %s", conflict)
	s.p("  ELSE")
	s.p("    INSERT INTO %s (%s, %s) VALUES (%s, %s)", tomb, sqlList(key), col, strings.Join(old, ", "), current)
	s.p("      %s", conflict)
	s.p("  END IF;")
	s.p("  RETURN NULL;")
	s.p("END $lockstep$;")
	s.trigger(o, "zzz_lockstep_delete", "AFTER DELETE", "ROW", "", tomb)
	s.note("An UPDATE of the key deletes the old key. Other updates do not call the function.")
	s.trigger(o, "zzz_lockstep_rekey", "AFTER UPDATE", "ROW", " WHEN ("+strings.Join(changed, " OR ")+")", tomb)
	s.trigger(o, "zzz_lockstep_truncate", "BEFORE TRUNCATE", "STATEMENT", "", tomb)
}

// feed writes the feed view. The deleted mark is the first column: columns that
// the table gets later then go to the end, where CREATE OR REPLACE VIEW accepts
// them. The view has base types instead of domains, because a domain with NOT NULL
// allows no NULL in a tombstone.
func (s *setup) feed(o *object, tomb string, txid column, key []string) {
	mark := defaultDeleted
	if o.column(mark) != nil {
		mark = "lockstep_deleted"
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
	feed := feedName(o)
	s.note("The view hides a tombstone while a row has its key again. If columns were dropped or got another type, drop the view first.")
	s.p("CREATE OR REPLACE VIEW %s AS", feed.SQL())
	s.p("SELECT false AS %s, %s\n  FROM %s t", sqlIdent(mark), strings.Join(live, ", "), o.name().SQL())
	s.p("UNION ALL")
	s.p("SELECT true, %s\n  FROM %s d\n WHERE NOT EXISTS (SELECT FROM %s t WHERE %s);", strings.Join(dead, ", "), tomb, o.name().SQL(), strings.Join(join, " AND "))
	s.read = []Name{feed}
	s.use.Name, s.use.Key = feed, key
}

// view writes what the tables below a view need.
func (s *setup) view() {
	v := s.l.self
	s.use, s.read = s.l.spec, []Name{v.name()}
	s.part("A view needs a txid column with the highest txid of all tables whose changes show in it: greatest(a.txid, b.txid).",
		"Its tables need what follows. The bridge misses rows that are deleted, or that no longer meet the view's conditions: keep them",
		"in the view with deleted = true. For deletes, run bridge sql for the table, and build the view on the feed view that it makes.")
	if v.column(s.l.spec.Txid) == nil {
		s.note("The view has no column " + sqlIdent(s.l.spec.Txid) + " yet: add it when the tables have it.")
	}
	for _, o := range s.l.sources {
		if o.Kind != "r" && o.Kind != "p" || o.Schema == helperSchema {
			continue
		}
		name := s.l.spec.Txid
		if have := s.l.sourceTxid(o); have != nil {
			name = have.Name
		}
		base := &looked{spec: NewSpec(o.name()), self: o, sources: []*object{o}}
		s.index(o, s.stamp(o, name), base.checkKey())
		s.notify(o)
		if len(s.use.Key) == 0 {
			s.use.Key = viewKey(v, o, base.checkKey())
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
