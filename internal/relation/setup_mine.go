package relation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The script of SetupSQL writes a mark into the comment of what it makes. The mark
// says what the thing is for. It tells the bridge's own things from those of the
// application, which the script never changes.
//
// Scripts of earlier versions wrote no marks. What they made is known by what it
// is: a function by its source, a trigger by its function, a feed view by the
// tombstones that it reads, a role by having no rights but to log in and read.
const (
	markPrefix = "lockstep bridge: "
	markTxid   = markPrefix + "ID of the transaction that last wrote the row"
	markNotify = markPrefix + "wakes the bridge"
	markRole   = markPrefix + "role of the bridge"
	// MarkPublication is that of a publication.
	MarkPublication = markPrefix + "tables that a bridge reads"
	markTombstones  = markPrefix + "keys of deleted rows of "
)

func markStamp(column string) string { return markPrefix + "sets column " + quoteIdent(column) }
func markBury(n Name) string         { return markPrefix + "keeps the key of a deleted row of " + n.Quoted() }

func markFeed(n Name) string         { return markPrefix + "rows and tombstones of " + n.Quoted() }
func markTombstonesOf(n Name) string { return markTombstones + n.Quoted() }
func (c *column) marked() bool       { return strings.HasPrefix(c.Comment, markPrefix) }
func (o *object) owns(col *column) bool {
	return col.marked() || stampsOf(o, col.Name).sure == stampBoth
}

// stamped returns each table's column of transaction IDs, nil if one of them may
// hold something else.
func (l *looked) stamped() []Stamped {
	var list []Stamped
	for _, o := range l.sources {
		c := l.sourceTxid(o)
		switch {
		case c == nil:
		case !o.Tombstones && !o.owns(c):
			return nil
		default:
			list = append(list, Stamped{Table: o.name(), Column: c.Name, Now: currentID(c.Base)})
		}
	}
	return list
}

// mine asks for all that exists under the names that a script would use.
const mineSQL = `
SELECT json_build_object(
  'functions', (
    SELECT json_agg(json_build_object('name', p.proname, 'source', p.prosrc, 'comment', obj_description(p.oid, 'pg_proc'),
             'tables', ARRAY(SELECT DISTINCT t.tgrelid::int8 FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid AND t.tgparentid = 0)))
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname = $1 AND p.pronargs = 0 AND p.proname = ANY ($2)),
  'relations', (
    SELECT json_agg(json_build_object('schema', n.nspname, 'name', c.relname, 'oid', c.oid::int8, 'kind', c.relkind, 'comment', obj_description(c.oid, 'pg_class'),
             'of', i.indrelid::int8, 'primary', (SELECT conname FROM pg_catalog.pg_constraint WHERE conrelid = c.oid AND contype = 'p'), 'columns', ARRAY(
               SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
             'reads', ARRAY(
               SELECT DISTINCT d.refobjid::int8 FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_depend d ON d.objid = r.oid
                WHERE r.ev_class = c.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass)))
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
     WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest($3::text[], $4::text[]))),
  'publications', (
    SELECT json_agg(DISTINCT p.pubname ORDER BY p.pubname) FROM pg_catalog.pg_publication_tables p
      JOIN pg_catalog.pg_class c ON c.relname = p.tablename JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schemaname
     WHERE c.oid = ANY ($6::oid[]) AND NOT EXISTS (
       SELECT FROM pg_catalog.pg_publication_rel pr JOIN pg_catalog.pg_publication pp ON pp.oid = pr.prpubid
        WHERE pr.prrelid = c.oid AND pp.pubname = p.pubname AND to_jsonb(pr) ->> 'prattrs' IS NOT NULL)),
  'role', (
    SELECT json_build_object('comment', shobj_description(r.oid, 'pg_authid'), 'plain', r.rolcanlogin
             AND NOT (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb)
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_shdepend d
                              WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o')
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE m.roleid = r.oid AND NOT m.admin_option))
      FROM pg_catalog.pg_roles r WHERE r.rolname = $5),
  'taken', ARRAY(SELECT nspname::text FROM pg_catalog.pg_namespace UNION ALL SELECT rolname::text FROM pg_catalog.pg_roles))`

// mine is what exists under the names that a script would use.
type mine struct {
	Functions    []madeFunction
	Relations    []madeRelation
	Publications []string
	Role         *struct {
		Comment string
		// Plain is true for a role that logs in, owns nothing and has no members.
		Plain bool
	}
	// Taken has the names of schemas and roles.
	Taken []string
}

type madeFunction struct {
	Name, Source, Comment string
	// Tables have triggers that call the function.
	Tables []uint32
}

type madeRelation struct {
	Schema, Name, Kind, Comment string
	OID                         uint32
	// Primary is the constraint that is the primary key of a table.
	Primary string
	// Of is the table of an index. Reads are the relations that a view reads.
	Of      uint32
	Columns []string
	Reads   []uint32
}

func (m *mine) function(name string) *madeFunction {
	i := slices.IndexFunc(m.Functions, func(f madeFunction) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &m.Functions[i]
}

func (m *mine) relation(n Name) *madeRelation {
	i := slices.IndexFunc(m.Relations, func(r madeRelation) bool { return r.Schema == n.Schema && r.Name == n.Table })
	if i < 0 {
		return nil
	}
	return &m.Relations[i]
}

// base is a table that the script prepares.
type base struct {
	o    *object
	txid string
	key  []int
	// tombs is true if the script makes tombstones and the feed view for it.
	tombs bool
}

// lookMine fills in s.mine.
func (s *setup) lookMine(ctx context.Context, q Querier, bases []base) error {
	functions := []string{"notify"}
	var schemas, tables []string
	var oids []uint32
	add := func(n Name) { schemas, tables = append(schemas, n.Schema), append(tables, n.Table) }
	for _, b := range bases {
		functions = append(functions, stampFunction(b.txid), tombName(b.o.name()))
		add(s.feedName(b.o))
		add(Name{Schema: s.opt.As, Table: tombName(b.o.name())})
		for i := range maxTries {
			add(Name{Schema: b.o.Schema, Table: s.indexName(b.o, i)})
			add(Name{Schema: s.opt.As, Table: tombIndexName(b.o, i)})
		}
		oids = append(oids, b.o.OID)
	}
	raw, err := QueryOne[[]byte](ctx, q, mineSQL, s.opt.As, functions, schemas, tables, s.opt.Role, oids)
	if err != nil {
		return fmt.Errorf("look up what the names of the script belong to: %w", err)
	}
	if err := json.Unmarshal(raw, &s.mine); err != nil {
		return fmt.Errorf("look up what the names of the script belong to: %w", err)
	}
	return nil
}

// obstacle is something that has a name of the script, and is not the bridge's.
type obstacle struct {
	table *object
	what  string
	// Which option gives the script another name: txid= or -as or -role.
	txid, as, role bool
	// made is the column that an earlier script made, under another name.
	made string
	// also has lines that say what else one may do.
	also []string
}

// obstacles looks at each name that the script makes or replaces.
func (s *setup) obstacles(bases []base) []obstacle {
	var list []obstacle
	for _, b := range bases {
		column := s.columnObstacle(b)
		list = append(list, column...)
		if len(column) > 0 && column[0].made != "" {
			continue // the other names belong to that column
		}
		if fn := s.mine.function(stampFunction(b.txid)); fn != nil && fn.Comment != markStamp(b.txid) && strings.TrimSpace(fn.Source) != strings.TrimSpace(stampSource(b.txid)) {
			list = append(list, obstacle{table: b.o, as: true, what: "function " + Name{s.opt.As, fn.Name}.Quoted() + "() is not the bridge's"})
		}
		list = append(list, s.triggerObstacles(b)...)
		if b.tombs && b.key != nil {
			list = append(list, s.tombObstacles(b)...)
		}
	}
	if fn := s.mine.function("notify"); fn != nil && !s.opt.NoNotify && fn.Comment != markNotify && strings.TrimSpace(fn.Source) != strings.TrimSpace(notifySource) {
		list = append(list, obstacle{table: s.l.self, as: true, what: "function " + Name{s.opt.As, "notify"}.Quoted() + "() is not the bridge's"})
	}
	return append(list, s.roleObstacle()...)
}

// columnObstacle takes a column for the bridge's only if a trigger sets it, at each
// INSERT and UPDATE, to the transaction's ID and to nothing else; or if it has the
// mark. A default is not enough: an application may note who made a row.
func (s *setup) columnObstacle(b base) []obstacle {
	c := b.o.column(b.txid)
	if c == nil || b.o.owns(c) {
		return nil
	}
	if made := madeTxid(b.txid, b.o); made != "" {
		return []obstacle{{
			table: b.o, txid: true, made: made,
			what: fmt.Sprintf("column %s of %s is not the bridge's: that is column %s", quoteIdent(b.txid), b.o.name().Quoted(), quoteIdent(made)),
		}}
	}
	return []obstacle{{
		table: b.o, txid: true,
		what: fmt.Sprintf("column %s of %s is not the bridge's: no trigger sets it to the transaction's ID at each INSERT and UPDATE. A script that did would overwrite what the column holds",
			quoteIdent(b.txid), b.o.name().Quoted()),
		also: []string{
			"If the column is there for transaction IDs, and no writer needs its values, say so. The script then overwrites them:",
			fmt.Sprintf("  COMMENT ON COLUMN %s.%s IS %s;", b.o.name().SQL(), sqlIdent(b.txid), sqlLiteral(markTxid)),
		},
	}}
}

// triggerObstacles looks for triggers that have a name of the script's and call
// another function. One that sets the column, or that notifies the bridge, stays
// as it is.
func (s *setup) triggerObstacles(b base) []obstacle {
	var list []obstacle
	for _, name := range []string{"stamp", "notify", "delete", "rekey", "truncate"} {
		t := b.o.trigger(s.trig(name))
		if t == nil || s.isOurs(b, name, t) {
			continue
		}
		keeps := name == "stamp" && len(s.stampedBy(b.o, b.txid)) > 0 || name == "notify" && notifies(t.Source)
		skips := name == "notify" && s.opt.NoNotify || !b.tombs && (name == "delete" || name == "rekey" || name == "truncate")
		if !keeps && !skips {
			list = append(list, obstacle{table: b.o, as: true, what: fmt.Sprintf("trigger %s of %s is not the bridge's: it calls %s()", t.Name, b.o.name().Quoted(), t.Function.Quoted())})
		}
	}
	return list
}

// isOurs reports whether a trigger calls the function that the script gives to the
// trigger of that name.
func (s *setup) isOurs(b base, name string, t *trigger) bool {
	fn := tombName(b.o.name())
	switch name {
	case "stamp":
		fn = stampFunction(b.txid)
	case "notify":
		fn = "notify"
	}
	return t.Function == Name{s.opt.As, fn}
}

// keyObstacles looks for keys that no tombstone can hold. With tombstones, the
// table's own DELETE would fail for them.
func (s *setup) keyObstacles(b base) []obstacle {
	var list []obstacle
	without := *s
	without.opt.NoTombstones = true
	never := "If rows are never deleted, leave the tombstones out: " + without.command()
	for _, i := range b.key {
		if c := b.o.Columns[i]; c.Virtual {
			list = append(list, obstacle{
				table: b.o, what: fmt.Sprintf("triggers don't see the value of %s, a virtual generated column in the key of %s: with tombstones the table's own UPDATE and DELETE would fail",
					quoteIdent(c.Name), b.o.name().Quoted()),
				also: []string{"Name another key with key=. " + never},
			})
		}
	}
	if long := b.o.long(b.key); len(long) > 0 {
		list = append(list, obstacle{
			table: b.o, what: fmt.Sprintf("nothing keeps the key of %s (%s) as short as an index needs it: with tombstones the table's own DELETE of a row with a longer key would fail",
				b.o.name().Quoted(), identList(long)),
			also: []string{
				fmt.Sprintf("An index keeps it short: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s);", b.o.name().SQL(), sqlList(b.names())),
				"If that fails, name another key with key=. " + never,
			},
		})
	}
	return list
}

func (b base) names() []string {
	names := make([]string, len(b.key))
	for n, i := range b.key {
		names[n] = b.o.Columns[i].Name
	}
	return names
}

// maxKey is the number of bytes that a key may have in an index, with room for the
// rest of a tombstone's index entry.
const maxKey = 2500

var limitedType = regexp.MustCompile(`^(character varying|character|numeric|bit|bit varying)\((\d+)(?:,-?\d+)?\)$`)

// long returns the columns of the key whose values an index may not take, if they
// are too long for it. A btree index of the table refuses such values.
func (o *object) long(key []int) []string {
	var long []string
	bytes := 0
	for _, i := range key {
		c := o.Columns[i]
		switch m := limitedType.FindStringSubmatch(c.Type); {
		case slices.ContainsFunc(o.Indexes, func(ix index) bool {
			return ix.Method == "btree" && ix.Whole && ix.Valid && slices.Contains(ix.Columns, c.Num)
		}):
		case c.Fixed, c.BaseName == "inet", c.BaseName == "cidr":
			bytes += 64
		case m != nil:
			n, err := strconv.Atoi(m[2])
			if err != nil {
				n = maxKey
			}
			bytes += min(4*n, maxKey) + 8
			long = append(long, c.Name)
		default:
			bytes += maxKey + 1
			long = append(long, c.Name)
		}
	}
	if bytes <= maxKey {
		return nil
	}
	return long
}

func (s *setup) tombObstacles(b base) []obstacle {
	list := s.keyObstacles(b)
	n := Name{Schema: s.opt.As, Table: tombName(b.o.name())}
	fn, tomb, feed := s.mine.function(n.Table), s.mine.relation(n), s.mine.relation(s.feedName(b.o))
	old := fn != nil && buries(fn.Source, n)
	ours := tomb != nil && (tomb.Comment == markTombstonesOf(b.o.name()) || tomb.Kind == "r" && old)
	switch {
	case fn != nil && fn.Comment != markBury(b.o.name()) && !old:
		list = append(list, obstacle{table: b.o, as: true, what: "function " + n.Quoted() + "() is not the bridge's"})
	case fn != nil && slices.ContainsFunc(fn.Tables, func(oid uint32) bool { return oid != b.o.OID }):
		list = append(list, obstacle{table: b.o, as: true, what: "function " + n.Quoted() + "() serves another table, which had the name " + b.o.name().Quoted() + " before"})
	}
	switch want := s.tombColumns(b); {
	case tomb == nil:
	case !ours:
		list = append(list, obstacle{table: b.o, as: true, what: n.Quoted() + " is not the bridge's table of tombstones"})
	case !slices.Equal(tomb.Columns, want) && !slices.Equal(tomb.Columns, withoutSpelling(want)):
		list = append(list, obstacle{
			table: b.o, what: fmt.Sprintf("the tombstones of %s have the columns %s, and now need %s: with the wrong ones the table's own DELETE would fail",
				b.o.name().Quoted(), strings.Join(tomb.Columns, ", "), strings.Join(want, ", ")),
			also: []string{
				"Once the bridge's heartbeats have passed the last delete, remove them. Views upon the feed view go first:",
				s.removeTombs(b.o),
			},
		})
	}
	reads := feed != nil && feed.Kind == "v" && ours && slices.Contains(feed.Reads, tomb.OID)
	if feed != nil && feed.Comment != markFeed(b.o.name()) && !reads {
		list = append(list, obstacle{table: b.o, as: true, what: s.feedName(b.o).Quoted() + " is not the bridge's feed view"})
	}
	return list
}

// roleObstacle takes a role that was named with -role as it is.
func (s *setup) roleObstacle() []obstacle {
	if r := s.mine.Role; !s.named && r != nil && r.Comment != markRole && !r.Plain {
		return []obstacle{{
			table: s.l.self, role: true,
			what: "role " + quoteIdent(s.opt.Role) + " is not the bridge's: it has more rights than to log in and read, or owns something, or has members",
			also: []string{"If the bridge shall log in as this role, say so: bridge sql -role " + shellWord(s.opt.Role) + " …"},
		}}
	}
	return nil
}

// inTheWay returns a script of comments, and the obstacles as an error.
func (s *setup) inTheWay(list []obstacle) (string, *Spec, error) {
	again := &setup{l: s.l, opt: s.opt, named: s.named}
	for _, ob := range list {
		if ob.txid && again.l == s.l {
			l := *s.l
			l.spec.Txid = cmp.Or(ob.made, freeTxid(append([]*object{l.self}, l.sources...)...))
			again.l = &l
		}
		if ob.as {
			again.opt.As = s.free(defaultAs + "2")
		}
		if ob.role {
			again.opt.Role, again.named = s.free(defaultAs+"_bridge"), true
		}
	}
	s.note("Set-up of "+s.l.spec.String()+" for the lockstep bridge. There is nothing to run yet.",
		"The script needs names that something else has. It never changes what is not the bridge's.")
	command := again.command()
	var errs []error
	for _, ob := range list {
		s.part("In the way: " + ob.what + ".")
		s.note(ob.also...)
		do := "run the SQL that this prints: " + command
		if !ob.txid && !ob.as && !ob.role {
			do = "do what the comments say, then " + do
		}
		errs = append(errs, &Problem{Relation: ob.table.name(), Severity: SeverityError, What: ob.what, Do: do})
	}
	if command == s.command() {
		s.part("Then run bridge sql again, and run what it prints: " + command)
	} else {
		s.part("Use other names. Run what this prints: " + command)
	}
	return s.script(), nil, errors.Join(errs...)
}

// command returns the command that prints this script.
func (s *setup) command() string {
	var b strings.Builder
	b.WriteString("bridge sql ")
	if s.opt.As != defaultAs {
		b.WriteString("-as " + shellWord(s.opt.As) + " ")
	}
	if s.named {
		b.WriteString("-role " + shellWord(s.opt.Role) + " ")
	}
	if s.opt.NoTombstones {
		b.WriteString("-no-tombstones ")
	}
	if s.opt.NoNotify {
		b.WriteString("-no-notify ")
	}
	return b.String() + shellWord(s.l.spec.String())
}

// freeTxid returns a name for a txid column that none of them has.
func freeTxid(objects ...*object) string {
	return free("ls_txid", func(name string) bool {
		return slices.ContainsFunc(objects, func(o *object) bool { return o.column(name) != nil })
	})
}

// madeTxid returns the column of transaction IDs that a script made in one of the
// tables. It is "" if there is none, or only the one of that name.
func madeTxid(name string, tables ...*object) string {
	for _, o := range tables {
		for _, c := range o.Columns {
			if c.Comment == markTxid && c.Name != name {
				return c.Name
			}
		}
	}
	return ""
}

func (s *setup) free(name string) string {
	return free(name, func(name string) bool { return slices.Contains(s.mine.Taken, name) })
}

// free returns the name, with a number if it is taken.
func free(name string, taken func(string) bool) string {
	for i, c := 2, name; ; i++ {
		if !taken(c) {
			return c
		}
		c = fmt.Sprintf("%s_%d", name, i)
	}
}

// claim marks a thing, unless somebody gave it a comment.
func (s *setup) claim(kind, name, mark, comment string) {
	if comment == "" || strings.HasPrefix(comment, markPrefix) {
		s.p("COMMENT ON %s %s IS %s;", kind, name, sqlLiteral(mark))
	}
}

// guarded is a thing that did not exist when the script was printed. stranger is
// the condition, in SQL, that something else has its name.
type guarded struct{ what, stranger string }

// guard writes a statement that fails if a name is not free any more: the script
// may be run later, or in another database, than the one that was looked at.
func (s *setup) guard(list []guarded) {
	if len(list) == 0 {
		return
	}
	s.p("DO \x00 BEGIN -- fail rather than change what is not the bridge's")
	for _, g := range list {
		s.p("  IF %s THEN", g.stranger)
		s.p("    RAISE EXCEPTION USING MESSAGE = %s; END IF;", sqlLiteral(g.what+" is not the bridge's: run bridge sql again"))
	}
	s.p("END \x00;")
}

func absentColumn(o *object, name string) []guarded {
	if o.column(name) != nil {
		return nil
	}
	return []guarded{{
		"column " + quoteIdent(name) + " of " + o.name().Quoted(),
		fmt.Sprintf("EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped\n     AND col_description(attrelid, attnum) IS DISTINCT FROM %s)",
			sqlLiteral(o.name().SQL()), sqlLiteral(name), sqlLiteral(markTxid)),
	}}
}

func (s *setup) absentFunction(n Name, mark string) []guarded {
	if s.mine.function(n.Table) != nil {
		return nil
	}
	id := fmt.Sprintf("to_regprocedure(%s)", sqlLiteral(n.SQL()+"()"))
	return []guarded{{"function " + n.Quoted() + "()", fmt.Sprintf("%s IS NOT NULL AND obj_description(%[1]s, 'pg_proc') IS DISTINCT FROM %s", id, sqlLiteral(mark))}}
}

func (s *setup) absentRelation(n Name, mark string) []guarded {
	if s.mine.relation(n) != nil {
		return nil
	}
	id := fmt.Sprintf("to_regclass(%s)", sqlLiteral(n.SQL()))
	return []guarded{{n.Quoted(), fmt.Sprintf("%s IS NOT NULL AND obj_description(%[1]s, 'pg_class') IS DISTINCT FROM %s", id, sqlLiteral(mark))}}
}

func (s *setup) absentTriggers(o *object, fn Name, what ...string) []guarded {
	var names []string
	for _, w := range what {
		if o.trigger(s.trig(w)) == nil {
			names = append(names, sqlLiteral(s.trig(w)))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []guarded{{
		"a trigger of " + o.name().Quoted() + " whose name begins with " + s.trig(""),
		fmt.Sprintf("EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgname IN (%s)\n     AND tgfoid IS DISTINCT FROM to_regprocedure(%s))",
			sqlLiteral(o.name().SQL()), strings.Join(names, ", "), sqlLiteral(fn.SQL()+"()")),
	}}
}

func (s *setup) functionComment(name string) string {
	if fn := s.mine.function(name); fn != nil {
		return fn.Comment
	}
	return ""
}

func (s *setup) relationComment(n Name) string {
	if r := s.mine.relation(n); r != nil {
		return r.Comment
	}
	return ""
}

func (o *object) trigger(name string) *trigger {
	for i := range o.Triggers {
		if o.Triggers[i].Name == name {
			return &o.Triggers[i]
		}
	}
	return nil
}

// stampedBy names the triggers, other than the script's own, that set the column
// at each INSERT and UPDATE, also during replication.
func (s *setup) stampedBy(o *object, column string) []string {
	return slices.DeleteFunc(stampsOf(o, column).alone, func(name string) bool {
		return o.trigger(name).Function == Name{s.opt.As, stampFunction(column)}
	})
}
