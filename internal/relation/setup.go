package relation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// defaultAs is the word in the names of all that a script makes.
const defaultAs = "lockstep"

// maxTries is how many names an index may have, if something else has the first.
const maxTries = 3

// ErrOption is wrapped in the error of SetupSQL for options that are wrong.
var ErrOption = errors.New("wrong option")

// asName is short, so that names with it are. (Those that begin with pg_ belong to
// Postgres.)
var asName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,19}$`)

// SetupOptions are the options of SetupSQL.
type SetupOptions struct {
	// Role is the role that the bridge logs in as, lockstep if empty.
	// If it is empty and there is such a role, it must look like the bridge's.
	Role string
	// Name is the name of publication and slot, lockstep if empty.
	Name string
	// NoTombstones leaves out what makes hard deletes visible.
	NoTombstones bool
	// NoNotify leaves out the trigger that wakes the bridge.
	NoNotify bool
	// As takes the place of lockstep in the names of all that the script makes,
	// except the role.
	As string
}

// SetupSQL returns a psql script that prepares the relations for capture. The
// script ends with what to put into BRIDGE_TABLES, and may be run again. SetupSQL
// itself only reads the catalog.
//
// A relation that can't be prepared stops no other. The error joins a *Problem for
// each thing that stands in the way; of such a relation the script has only
// comments, which say what to do first.
//
// The script keeps what it makes in a schema of its own, lockstep, except the
// column, the triggers, the index and the feed view. It never changes what is not
// the bridge's: if something has one of these names, the script has only comments.
func SetupSQL(ctx context.Context, q Querier, specs []Spec, opt SetupOptions) (string, error) {
	if opt.As != "" && (!asName.MatchString(opt.As) || strings.HasPrefix(opt.As, "pg_")) {
		return "", fmt.Errorf("%w: -as %q: use up to 20 of the letters a to z, digits and _, with a letter first, and not pg_", ErrOption, opt.As)
	}
	var scripts, entries []string
	var errs []error
	for _, spec := range specs {
		script, use, err := setUp(ctx, q, spec, opt)
		if err != nil && script == "" && !errors.As(err, new(*Problem)) {
			return "", err // of the connection, not of the relation
		}
		if script != "" {
			scripts = append(scripts, script)
		}
		if use != nil {
			entries = append(entries, use.String())
		}
		errs = append(errs, err)
	}
	if len(entries) > 0 {
		scripts = append(scripts, "-- Then configure the bridge with this, and run bridge check:\n"+
			"-- BRIDGE_TABLES="+oneLine(shellWord(strings.Join(entries, ",")))+"\n")
	}
	return strings.Join(scripts, "\n"), errors.Join(errs...)
}

// setUp returns the script of one relation, and its entry in BRIDGE_TABLES: nil if
// the script has only comments.
func setUp(ctx context.Context, q Querier, spec Spec, opt SetupOptions) (string, *Spec, error) {
	l, err := look(ctx, q, spec)
	if err != nil {
		return "", nil, err
	}
	if !l.checkKind() {
		return "", nil, l.err()
	}
	s := &setup{l: l, opt: opt, named: opt.Role != ""}
	s.opt.Role, s.opt.Name, s.opt.As = cmp.Or(opt.Role, "lockstep"), cmp.Or(opt.Name, "lockstep"), cmp.Or(opt.As, defaultAs)
	if spec.Capture == CaptureWAL {
		return s.wal(ctx, q)
	}
	bases := s.bases()
	if err := s.lookMine(ctx, q, bases); err != nil {
		return "", nil, err
	}
	if list := s.obstacles(bases); len(list) > 0 {
		return s.inTheWay(list)
	}
	if l.self.Kind == "v" {
		s.head()
		s.view(bases)
	} else {
		key := l.checkKey()
		if key == nil { // without a key, most of the script would be useless
			return s.notYet("The bridge needs a key that identifies each row, and knows none of this table.", l.problems)
		}
		s.head()
		s.table(l.self, key)
	}
	s.part("The role of the bridge: it may log in and read "+joinNames(s.read)+", nothing else.", s.passwordNote())
	s.role()
	return s.script(), &s.use, nil
}

// notYet returns a script of comments, and the problems as an error. The comments
// say why there is no script yet, and what to do about each problem, with each
// alternative on its own line; then the lines in or.
func (s *setup) notYet(why string, problems []*Problem, or ...string) (string, *Spec, error) {
	s.note("Set-up of "+s.l.spec.String()+" for the lockstep bridge. There is nothing to run yet.", why)
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
		ways, one := p.ways, "."
		if len(ways) == 0 {
			ways = []string{p.Do}
		}
		if len(ways) > 1 {
			one = ". One of these:"
		}
		s.part("What is wrong: " + p.What + one)
		for _, way := range ways {
			if strings.HasPrefix(way, "ALTER TABLE ") {
				way += ";"
			}
			s.note("  " + way)
		}
	}
	s.note(or...)
	s.part("Then run bridge sql again, and run what it prints: " + SetupCommand(s.l.spec))
	return s.script(), nil, errors.Join(errs...)
}

type setup struct {
	b   strings.Builder
	l   *looked
	opt SetupOptions
	// named is true if the options name the role.
	named bool
	mine  mine
	// Set while writing: what the bridge reads, and its entry in BRIDGE_TABLES.
	read []Name
	use  Spec
}

// script returns what was written. The bodies of functions stand between zero bytes
// there, which no name has, and in the script between dollar quotes that no name
// has: a name with them would end a body, and psql would run what follows.
func (s *setup) script() string {
	text := s.b.String()
	tag := "$" + free(defaultAs, func(tag string) bool { return strings.Contains(text, "$"+tag+"$") }) + "$"
	return strings.ReplaceAll(text, "\x00", tag)
}

// p writes a line.
func (s *setup) p(format string, args ...any) {
	fmt.Fprintf(&s.b, format, args...)
	s.b.WriteByte('\n')
}

// part begins a new part of the script, with lines as comments.
func (s *setup) part(lines ...string) {
	s.p("")
	s.note(lines...)
}

func (s *setup) note(lines ...string) {
	for _, line := range lines {
		s.p("-- %s", oneLine(line))
	}
}

func (s *setup) head() {
	s.note("Set-up of "+s.l.spec.Name.Quoted()+" for the lockstep bridge. Run it on the primary, as the owner of the tables:",
		"psql -v ON_ERROR_STOP=1 -f THIS_FILE (without -1). You may run it again.")
	s.p("SET search_path = %s; -- the names of types below depend on it", s.l.self.SearchPath)
	s.p("SET client_min_messages = warning; -- it is normal that some of this is there already")
}

// table writes what a table needs, with tombstones and the feed view.
func (s *setup) table(o *object, key []int) {
	s.use = s.l.spec
	s.read = []Name{o.name()}
	txid := s.stamp(o, s.l.spec.Txid)
	for _, w := range s.l.warnings() {
		s.part("The key: " + w.What + ". Consider: " + w.Do + ";")
	}
	s.index(o, txid, key)
	switch {
	case s.opt.NoTombstones:
	case s.l.checkDeleted() >= 0:
		s.part("Deleted rows are marked in the table, so this script makes no tombstone table.",
			"Polling does not see a hard DELETE.")
	default:
		s.tombstones(o, txid, key)
	}
	s.notify(o)
}

// stamp writes the txid column and its trigger. It returns the column as it will
// be.
func (s *setup) stamp(o *object, name string) column {
	t, col := o.name().SQL(), sqlIdent(name)
	function := Name{Schema: s.opt.As, Table: stampFunction(name)}
	fn := function.SQL()
	txid := column{Name: name, Type: "bigint", BaseType: "bigint", Base: oidInt8, NotNull: true, Fixed: true}
	s.part("A column for the ID of the transaction that last wrote a row of "+o.name().Quoted()+". Adding it does not rewrite the table:",
		"existing rows get the ID of this transaction. Column and trigger come in one transaction, so that no write falls between them.")
	have, by := o.column(name), s.stampedBy(o, name)
	if have == nil {
		s.columnNote(o)
	}
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s'; -- fail rather than make others wait; then run this again")
	guards := absentColumn(o, name)
	if len(by) == 0 {
		guards = append(guards, s.absentFunction(function, markStamp(name))...)
		guards = append(guards, s.absentTriggers(o, function, "stamp")...)
	}
	s.guard(guards)
	s.p("CREATE SCHEMA IF NOT EXISTS %s;", sqlIdent(s.opt.As))
	switch {
	case have == nil:
		s.p("ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s bigint NOT NULL DEFAULT txid_current();", t, col)
	case have.Dims > 0 || have.Base != oidInt8 && have.Base != oidXID8:
		s.note("The column is of type " + have.Type + ": this rewrites the table.")
		s.p("ALTER TABLE %s ALTER COLUMN %s TYPE bigint;", t, col)
		txid.NotNull = have.NotNull
	default:
		txid = *have
	}
	comment := ""
	if have != nil {
		comment = have.Comment
	}
	s.claim("COLUMN", t+"."+col, markTxid, comment)
	last := s.trig("stamp")
	if len(by) > 0 {
		last = by[0]
		s.note("Trigger " + sqlIdent(by[0]) + " already sets the column.")
	} else {
		s.note("BEFORE triggers fire in the order of their names, and the last one wins: so this name begins with zzz.",
			"ALWAYS: logical replication and restores (session_replication_role = replica) fire the trigger, too.")
		s.p("CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS \x00%s\x00;", fn, stampSource(name))
		s.claim("FUNCTION", fn+"()", markStamp(name), s.functionComment(function.Table))
		s.trigger(o, last, "BEFORE INSERT OR UPDATE", "ROW", "", fn)
	}
	for _, tr := range o.Triggers {
		if tr.Name > last && tr.Type&(triggerRow|triggerBefore) == triggerRow|triggerBefore {
			s.note("Trigger " + sqlIdent(tr.Name) + " fires later: it must not change " + col + ".")
		}
	}
	if !txid.NotNull {
		s.note("The bridge never publishes a row without a transaction ID.")
		s.p("UPDATE %s SET %s = %s WHERE %s IS NULL;", t, col, currentID(txid.Base), col)
		s.p("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL;", t, col)
	}
	s.p("COMMIT;")
	return txid
}

// columnNote says what a column more does to statements that exist.
func (s *setup) columnNote(o *object) {
	t := o.name().Quoted()
	wal := NewSpec(o.name())
	wal.Capture = CaptureWAL
	s.note("A new column changes what a few statements do. Look for them before you run this:",
		"  COPY "+t+" FROM without a list of columns then fails. Name the columns.",
		"  INSERT INTO other SELECT * FROM "+t+" then fails, or fills one more column of the other table. Name the columns.",
		"  SELECT * and COPY "+t+" TO then give one more column. NATURAL JOIN of two such tables compares the column, too.")
	if len(s.mine.Publications) > 0 {
		s.note("  Publication " + strings.Join(s.mine.Publications, ", ") + " then has the column: add it to the tables of all subscribers first, or their replication stops.")
	}
	if o.Kind == "p" {
		s.note("  A table that you ATTACH as a partition then needs the column.")
	}
	s.note("If you can't change such statements, read the WAL instead, which adds no column: "+SetupCommand(wal),
		"Or rename the table, prepare it under its new name, and put a view with its old name and columns in its place.",
		"(COPY into the view needs a trigger INSTEAD OF INSERT.)")
}

func (s *setup) trigger(o *object, name, event, each, when, fn string) {
	t := o.name().SQL()
	s.p("CREATE OR REPLACE TRIGGER %s %s ON %s FOR EACH %s%s EXECUTE FUNCTION %s();", name, event, t, each, when, fn)
	s.p("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s;", t, name)
}

// index writes the index that every poll uses. With the key in the index, the rows
// of one transaction come in key order without a sort. A key that can be long is
// left out: Postgres would refuse a row whose index entry is too large. It has no
// indexes of virtual columns.
func (s *setup) index(o *object, txid column, key []int) {
	columns := []string{txid.Name}
	fixed := !slices.ContainsFunc(key, func(i int) bool { return !o.Columns[i].Fixed || o.Columns[i].Virtual })
	for _, i := range key {
		if fixed {
			columns = append(columns, o.Columns[i].Name)
		}
	}
	if txid.Num > 0 {
		for _, ix := range o.Indexes {
			if ix.Method == "btree" && ix.Whole && ix.Valid && ix.Columns[0] == txid.Num {
				s.part("Polls use the index " + sqlIdent(ix.Name) + ".")
				return
			}
		}
	}
	name := sqlIdent(s.freeIndex(o, txid))
	if o.Kind == "p" {
		s.part("The index that every poll uses. Postgres can't build it CONCURRENTLY on a partitioned table: writers wait meanwhile.",
			"To avoid that, first build it CONCURRENTLY on each partition; this statement then only joins these indexes.")
		s.p("CREATE INDEX IF NOT EXISTS %s ON %s (%s);", name, o.name().SQL(), sqlList(columns))
		return
	}
	s.part("The index that every poll uses. It is built outside a transaction, and writers do not wait for it.")
	for _, ix := range o.Indexes {
		if sqlIdent(ix.Name) == name && !ix.Valid {
			s.note("An earlier build failed.")
			s.p("DROP INDEX CONCURRENTLY %s.%s;", sqlIdent(o.Schema), name)
		}
	}
	s.p("CREATE INDEX CONCURRENTLY IF NOT EXISTS %s ON %s (%s);", name, o.name().SQL(), sqlList(columns))
}

// freeIndex returns a name for the index. An index of that name is only in order if
// its build failed.
func (s *setup) freeIndex(o *object, txid column) string {
	for i := range maxTries {
		name := s.indexName(o, i)
		failed := slices.ContainsFunc(o.Indexes, func(ix index) bool {
			return ix.Name == name && !ix.Valid && ix.Columns[0] == txid.Num
		})
		if failed || s.mine.relation(Name{Schema: o.Schema, Table: name}) == nil {
			return name
		}
	}
	return s.indexName(o, maxTries)
}

func (s *setup) indexName(o *object, i int) string {
	return cutName(o.Table, "_"+s.opt.As+"_idx"+number(i))
}

// number returns the suffix of the name that is tried after i others.
func number(i int) string {
	if i == 0 {
		return ""
	}
	return strconv.Itoa(i + 1)
}

func (s *setup) notify(o *object) {
	if s.opt.NoNotify {
		return
	}
	function := Name{Schema: s.opt.As, Table: "notify"}
	fn := function.SQL()
	if t := o.trigger(s.trig("notify")); t != nil && t.Function != function {
		s.part("Trigger " + sqlIdent(t.Name) + " already wakes the bridge.")
		return
	}
	s.part("Optional: a trigger that wakes the bridge at commit. Without it the bridge polls every BRIDGE_POLL_INTERVAL.",
		"Leave it out (bridge sql -no-notify) if many sessions change "+o.name().Quoted()+" at the same time, because commits that notify",
		"wait for each other; and if prepared transactions (PREPARE TRANSACTION) change it, because these must not notify.")
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s';")
	s.guard(append(s.absentFunction(function, markNotify), s.absentTriggers(o, function, "notify")...))
	s.p("CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS \x00%s\x00;", fn, notifySource)
	s.claim("FUNCTION", fn+"()", markNotify, s.functionComment("notify"))
	s.trigger(o, s.trig("notify"), "AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT", "", fn)
	s.p("COMMIT;")
}

func (s *setup) passwordNote() string {
	return "A new role has no password: set one in psql with \\password " + sqlIdent(s.opt.Role)
}

func (s *setup) role() {
	role := sqlIdent(s.opt.Role)
	s.note("The bridge calls some functions that every role may call. If somebody has revoked that, a superuser must run:",
		"GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint(), pg_control_recovery() TO "+role+";",
		"Optional: with this, the bridge can name the session whose open transaction holds clients' positions back. As a superuser:",
		"GRANT pg_read_all_stats TO "+role+";",
		"If you may not grant CONNECT and USAGE, Postgres prints a warning below. Usually every role has both already.")
	s.p("DO \x00 BEGIN")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s) THEN", sqlLiteral(s.opt.Role))
	s.p("    CREATE ROLE %s LOGIN;", role)
	s.p("    COMMENT ON ROLE %s IS %s;", role, sqlLiteral(markRole))
	s.p("  END IF;")
	s.p("END \x00;")
	s.p("GRANT CONNECT ON DATABASE %s TO %s;", sqlIdent(s.l.self.Database), role)
	s.p("GRANT USAGE ON SCHEMA %s TO %s;", sqlIdent(s.l.self.Schema), role)
	for _, n := range s.read {
		s.p("GRANT SELECT ON %s TO %s;", n.SQL(), role)
	}
}

// feedName returns the name of the feed view: the view over a table and its
// tombstones.
func (s *setup) feedName(o *object) Name {
	return feedOf(o.name(), s.opt.As)
}

// FeedOf returns the name that a script without -as gives to the feed view of a
// table.
func FeedOf(table Name) Name {
	return feedOf(table, defaultAs)
}

func feedOf(table Name, as string) Name {
	return Name{Schema: table.Schema, Table: cutName(table.Table, "_"+as)}
}

// trig names a trigger. The name sorts after other names: the BEFORE triggers of a
// table fire in the order of their names, and the last one wins.
func (s *setup) trig(what string) string { return "zzz_" + s.opt.As + "_" + what }

// stampSource and notifySource are the sources of trigger functions, the same in
// all versions.
func stampSource(column string) string {
	return "\nBEGIN NEW." + sqlIdent(column) + " := pg_catalog.txid_current(); RETURN NEW; END "
}

const notifySource = "\nBEGIN PERFORM pg_catalog.pg_notify('" + NotifyChannel + "', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME); RETURN NULL; END "

// stampFunction names the trigger function. There is one for each name of a txid
// column.
func stampFunction(column string) string {
	if column == defaultTxid {
		return "stamp"
	}
	return cutName("stamp_"+column, "")
}

// tombName names the tombstone table of a table, and its trigger function, in
// schema lockstep. Different tables get different names.
func tombName(n Name) string {
	full := n.Schema + "." + n.Table
	if strings.Contains(n.Schema, ".") || strings.Contains(n.Table, ".") {
		return cutName(full, fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(n.SQL()))))
	}
	return cutName(full, "")
}

// cutName appends the suffix. If the result is too long for Postgres, it cuts the
// name and puts a checksum before the suffix.
func cutName(name, suffix string) string {
	if len(name)+len(suffix) <= maxIdent {
		return name + suffix
	}
	sum := fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(name)))
	cut := name[:maxIdent-len(sum)-len(suffix)]
	for !utf8.ValidString(cut) {
		cut = cut[:len(cut)-1]
	}
	return cut + sum + suffix
}

func joinNames(names []Name) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = n.Quoted()
	}
	return strings.Join(quoted, ", ")
}

func sqlLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// oneLine removes line breaks: one in a name would end the comment.
func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }
