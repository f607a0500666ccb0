package relation

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"bridge/internal/topic"
)

// Base types by pg_type.oid. They are the same in every Postgres.
const (
	oidBool        = 16
	oidInt8        = 20
	oidDate        = 1082
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidXID8        = 5069
)

func (l *looked) add(p *Problem) { l.problems = append(l.problems, p) }

func (l *looked) fail(what, do string) {
	l.add(&Problem{Relation: l.spec.Name, Severity: SeverityError, What: what, Do: do})
}

// unfit adds a problem that also keeps the relation out of *.
func (l *looked) unfit(what, do string) {
	l.add(&Problem{Relation: l.spec.Name, Severity: SeverityError, What: what, Do: do, shape: true})
}

// unfitWays is unfit with alternatives: doing one of the ways is enough.
func (l *looked) unfitWays(what string, ways ...string) {
	l.unfit(what, strings.Join(ways, "; or "))
	l.problems[len(l.problems)-1].ways = ways
}

func (l *looked) warn(o *object, what, do string) {
	l.add(&Problem{Relation: o.name(), Severity: SeverityWarning, What: what, Do: do})
}

// err joins the problems that are errors.
func (l *looked) err() error {
	var errs []error
	for _, p := range l.problems {
		if p.Severity == SeverityError {
			errs = append(errs, p)
		}
	}
	return errors.Join(errs...)
}

func (l *looked) warnings() []Problem {
	var list []Problem
	for _, p := range l.problems {
		if p.Severity == SeverityWarning {
			list = append(list, *p)
		}
	}
	return list
}

// bridgeSQL says how to set the relation up.
func (l *looked) bridgeSQL() string {
	return "run the SQL that this prints: " + SetupCommand(l.spec)
}

// entryWithKey returns the entry of BRIDGE_TABLES with dots where the user names
// a key.
func (l *looked) entryWithKey() string {
	spec := l.spec
	spec.Key = []string{"…"}
	return spec.String()
}

// check finds the problems, and fills in the Relation. The caller may use the
// Relation only if err returns nil.
func (l *looked) check() *Relation {
	o := l.self
	rel := &Relation{Name: l.spec.Name, OID: o.OID, Kind: o.Kind[0], Policies: o.Policies, Definition: l.definition, Txid: -1, Deleted: -1, EstimatedRows: int64(o.Tuples)}
	if !l.checkKind() {
		return rel
	}
	l.checkView()
	for _, c := range o.Columns {
		rel.Columns = append(rel.Columns, Column{
			Num: c.Num, Name: c.Name, Type: c.Type, TypeOID: c.OID, BaseOID: c.Base, Dims: c.Dims, Nullable: !c.NotNull, Generated: c.Generated, Coarse: c.Coarse,
			Protocol: c.protocol,
		})
	}
	for _, leaf := range o.Leaves {
		if leaf.Kind == "r" {
			rel.Leaves = append(rel.Leaves, leaf.File)
		}
	}
	for _, s := range l.sources {
		if s.Kind == "r" || s.Kind == "p" {
			rel.Sources = append(rel.Sources, s.name())
		}
	}
	rel.Analyzed = !slices.ContainsFunc(l.sources, func(s *object) bool { return !s.analyzed() })
	wal := l.spec.Capture == CaptureWAL
	if wal {
		rel.Txid = l.stampedTxid()
	} else {
		rel.Txid = l.checkTxid()
	}
	rel.Stamped = l.stamped()
	rel.Deleted = l.checkDeleted()
	rel.Key = l.checkKey()
	l.checkTopic(rel.Key)
	rel.Deferrable = l.deferrable(rel.Key)
	rel.Unique = l.unique(rel.Key)
	l.checkRights()
	if wal {
		l.checkWAL(rel)
	} else {
		for _, s := range l.sources {
			l.checkSource(s)
		}
	}
	if l.spec.History == HistoryLog && l.spec.MaxAge == 0 && l.spec.MaxBytes == 0 {
		l.warn(o, "its log has no limit and grows for ever", "add max_age or max_bytes to its options in BRIDGE_TABLES")
	}
	return rel
}

// checkTopic refuses a subject for copies in which the broker can't put a key of
// several columns.
func (l *looked) checkTopic(key []int) {
	to := l.spec.Republish
	if len(key) < 2 || !to.IsTemplate() || to.EndsWithKey() || l.spec.History == HistoryLog {
		return
	}
	do := "end the subject with the key: republish=" + string(to) + "." + topic.Key
	if to.HasKey() {
		do = "move {key} to the end of the subject"
	}
	l.fail(fmt.Sprintf("its key has %d columns, and the broker can copy only one into republish=%s", len(key), to), do)
}

// checkKind reports whether the relation is a table or view that can be captured.
// If not, the other checks make no sense.
func (l *looked) checkKind() bool {
	const late = "copies rows after their transactions ended, with transaction IDs that polling has already passed: rows would be lost"
	wal := l.spec.Capture == CaptureWAL
	what, do := "", "name a table or view in BRIDGE_TABLES"
	if wal {
		do = "name a table in BRIDGE_TABLES"
	}
	switch l.self.Kind {
	case "r", "p", "v":
	case "m":
		what, do = "it is a materialized view: REFRESH "+late, "name a plain view with the same query in BRIDGE_TABLES, or the tables below it"
		if wal {
			what, do = "it is a materialized view: its changes are not in the WAL", "name the tables below it, or poll a plain view with the same query, without capture=wal"
		}
	case "f":
		what, do = "it is a foreign table: it "+late, "run a bridge for the server that has the table"
		if wal {
			what = "it is a foreign table: its changes are not in the WAL"
		}
	case "S":
		what = "it is a sequence"
	case "i", "I":
		what = "it is an index"
	case "c":
		what = "it is a composite type"
	default:
		what = fmt.Sprintf("it is neither table nor view (relkind %s)", l.self.Kind)
	}
	switch {
	case what != "":
	case l.self.Persistence == "t":
		what, do = "it is a temporary table, which no other session can read", "make it an ordinary table"
	case l.self.Children:
		what = "other tables inherit from it, and no key is unique across all of them"
		do = "use a partitioned table, or name a view: SELECT * FROM ONLY " + l.self.name().SQL()
		if wal {
			do = "use a partitioned table, or poll a view, without capture=wal: SELECT * FROM ONLY " + l.self.name().SQL()
		}
	}
	if what != "" {
		l.unfit(what, do)
	}
	return what == ""
}

// removeTxid says what to do about a wrong txid= of a relation with capture=wal.
const removeTxid = "remove txid=: the WAL says which transaction wrote a row"

func (l *looked) checkTxid() int {
	name := l.spec.Txid
	i := slices.IndexFunc(l.self.Columns, func(c column) bool { return c.Name == name })
	if i < 0 {
		what := fmt.Sprintf("it has no column %s for the ID of the transaction that last wrote a row", quoteIdent(name))
		switch near := nearest(name, columnNames(l.self)); {
		case l.spec.Capture == CaptureWAL:
			l.unfit(what, removeTxid)
		case l.self.Kind == "v":
			l.unfit(what, "add it to the view: the table's own, or greatest(a.txid, b.txid) for a join; or name the right column with txid= in BRIDGE_TABLES")
		case near != "" && name != defaultTxid:
			l.unfit(what, fmt.Sprintf("did you mean txid=%s?", quoteIdent(near)))
		default:
			l.unfit(what, l.bridgeSQL())
		}
		return -1
	}
	c := l.self.Columns[i]
	if c.Base != oidInt8 && c.Base != oidXID8 || c.Dims > 0 {
		do := fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE bigint", l.self.name().SQL(), sqlIdent(name))
		switch {
		case l.spec.Capture == CaptureWAL:
			do = removeTxid
		case l.self.Kind == "v":
			do = "make it bigint or xid8 in the view"
			if made := madeTxid(name, l.sources...); made != "" && l.self.column(made) != nil {
				do = fmt.Sprintf("name the column that bridge sql made: txid=%s in BRIDGE_TABLES", quoteIdent(made))
			}
		case !l.self.owns(&c):
			do = l.otherColumn(l.self, l.spec)
		}
		l.unfit(fmt.Sprintf("its column %s is of type %s; transaction IDs are bigint or xid8", quoteIdent(name), c.Type), do)
	}
	if !c.NotNull && l.self.Kind != "v" {
		do := l.otherColumn(l.self, l.spec)
		if l.self.owns(&c) {
			do = fmt.Sprintf("UPDATE %[1]s SET %[2]s = %[3]s WHERE %[2]s IS NULL; ALTER TABLE %[1]s ALTER COLUMN %[2]s SET NOT NULL",
				l.self.name().SQL(), sqlIdent(name), currentID(c.Base))
		}
		l.warn(l.self, fmt.Sprintf("its column %s may be NULL, and rows where it is NULL are not published", quoteIdent(name)), do)
	}
	return i
}

// otherColumn says what to do about a column of transaction IDs that may be the
// application's own: nothing that overwrites it.
func (l *looked) otherColumn(o *object, spec Spec) string {
	other := spec
	if made := madeTxid(spec.Txid, o); made != "" {
		other.Txid = made
		return fmt.Sprintf("bridge sql has made column %s: put what this prints at its end into BRIDGE_TABLES: %s", quoteIdent(made), SetupCommand(other))
	}
	other.Txid = freeTxid(append([]*object{o}, l.sources...)...)
	return fmt.Sprintf("if the column is the application's own, let the bridge add another: %s; else see what this says: %s", SetupCommand(other), SetupCommand(spec))
}

// currentID returns the expression for the ID of the transaction.
func currentID(base uint32) string {
	if base == oidXID8 {
		return "pg_current_xact_id()"
	}
	return "txid_current()"
}

func (l *looked) checkDeleted() int {
	name := l.spec.Deleted
	if name == "" {
		name = defaultDeleted
	}
	i := slices.IndexFunc(l.self.Columns, func(c column) bool { return c.Name == name })
	if i < 0 {
		if l.spec.Deleted != "" {
			do := "correct deleted= in BRIDGE_TABLES, or remove it if no column marks deleted rows"
			if near := nearest(name, columnNames(l.self)); near != "" {
				do = fmt.Sprintf("did you mean deleted=%s?", quoteIdent(near))
			}
			l.unfit(fmt.Sprintf("it has no column %s", quoteIdent(name)), do)
		}
		return -1
	}
	c := l.self.Columns[i]
	switch {
	case c.marks():
		return i
	case l.spec.Deleted == "":
		l.warn(l.self, fmt.Sprintf("its column deleted is of type %s and counts as data: a deleted mark is boolean, date or timestamp", c.Type),
			"nothing, if it is data; else change its type, or name the column that marks deleted rows with deleted= in BRIDGE_TABLES")
	default:
		l.unfit(fmt.Sprintf("its column %s is of type %s; a deleted mark is boolean, date or timestamp", quoteIdent(name), c.Type),
			"name such a column with deleted= in BRIDGE_TABLES, or remove deleted=")
	}
	return -1
}

// marks reports whether the type of a column fits a deleted mark.
func (c *column) marks() bool {
	return c.Dims == 0 && slices.Contains([]uint32{oidBool, oidDate, oidTimestamp, oidTimestamptz}, c.Base)
}

// marksDeleted reports whether a table marks deleted rows.
func (o *object) marksDeleted() bool {
	c := o.column(defaultDeleted)
	return c != nil && c.marks()
}

func (l *looked) checkRights() {
	o := l.self
	role := sqlIdent(o.Role)
	if !o.Usage {
		l.fail(fmt.Sprintf("role %s may not use schema %s", o.Role, o.Schema),
			fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", sqlIdent(o.Schema), role))
	}
	var missing []string
	for _, c := range o.Columns {
		if !c.Select {
			missing = append(missing, quoteIdent(c.Name))
		}
	}
	if !o.Select {
		which := "column " + strings.Join(missing, ", ")
		switch len(missing) {
		case 0:
			which = "it as a whole, only each of its columns: so it can't lock the table"
		case len(o.Columns):
			which = "it"
		}
		do := fmt.Sprintf("GRANT SELECT ON %s TO %s", o.name().SQL(), role)
		if l.unpublished(missing) {
			// The bridge locks what it reads, and Postgres asks for the right to all of it.
			do = fmt.Sprintf("the publication's list of columns leaves out what the role may not read, but the bridge must lock the table. To keep those columns from it, "+
				"poll a view without them: remove capture=wal, and use a role without REPLICATION, which may read the changes of every column; only if the role may read all: %s", do)
		}
		if o.Kind != "v" && l.spec.Capture != CaptureWAL {
			do += "; but if bridge sql has made a feed view for it, which also shows deletes, name the view in BRIDGE_TABLES: " +
				FeedOf(o.name()).Quoted() + "(key=…)"
		}
		l.fail(fmt.Sprintf("role %s may not read %s", o.Role, which), do)
	}
	if o.HiddenRows {
		l.fail(fmt.Sprintf("row level security may hide rows from role %s, and nobody would notice that they are missing", o.Role), fmt.Sprintf(
			"CREATE POLICY lockstep_read ON %s FOR SELECT TO %s USING (true), without any restrictive policy; or ALTER ROLE %s BYPASSRLS",
			o.name().SQL(), role, role))
	}
}

func columnNames(o *object) []string {
	names := make([]string, len(o.Columns))
	for i, c := range o.Columns {
		names[i] = c.Name
	}
	return names
}

// SetupCommand returns the shell command that prints the set-up of a relation.
func SetupCommand(spec Spec) string { return Command("sql", spec.String()) }

// Command returns a command of the bridge with its argument, for a shell.
func Command(name, argument string) string { return "bridge " + name + " " + shellWord(argument) }

// shellWord quotes a word for a shell if necessary.
func shellWord(s string) string {
	if strings.ContainsAny(s, "\"$'\\ `!&;|<>()*?[]{}~#") {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// unorderedTypes are the base types that Postgres can't sort by: no batch could
// be read in key order.
var unorderedTypes = []string{
	"json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "xid", "cid", "aclitem",
	"txid_snapshot", "pg_snapshot", "jsonpath", "gtsvector", "refcursor",
}

// checkKey returns the places of the key's columns, nil if there is no usable key.
func (l *looked) checkKey() []int {
	if len(l.spec.Key) > 0 {
		return l.namedKey()
	}
	o := l.self
	if o.Kind == "v" {
		l.unfit("a view has no key of its own", "name the columns that identify a row: "+
			l.spec.Name.Quoted()+"(key=…) in BRIDGE_TABLES, with + between several columns")
		return nil
	}
	var reasons []string
	var nullable *index // the first one whose only fault is that a column may be NULL
	indexes := slices.Clone(o.Indexes)
	if l.spec.Capture == CaptureWAL { // prefer the replica identity: the WAL has its columns
		slices.SortStableFunc(indexes, func(a, b index) int { return cmp.Compare(boolInt(b.Identity), boolInt(a.Identity)) })
	}
	for _, ix := range indexes {
		if !ix.Unique {
			continue
		}
		if reason := l.indexUnfit(ix); reason != "" {
			reasons = append(reasons, ix.Name+" "+reason)
			continue
		}
		if l.nullable(ix) {
			if nullable == nil {
				nullable = &ix
			}
			continue
		}
		return l.places(ix)
	}
	if nullable != nil {
		key := l.places(*nullable)
		l.warnNullable(key)
		return key
	}
	what := "it has no primary key and no unique index"
	if len(reasons) > 0 {
		what += " that can be the key: " + strings.Join(reasons, ", ")
	}
	l.unfitWays(what, fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (…)", o.name().SQL()),
		fmt.Sprintf("name the columns that identify a row: %s in BRIDGE_TABLES", l.entryWithKey()))
	return nil
}

// indexUnfit says why a unique index can't be the key, or returns "".
func (l *looked) indexUnfit(ix index) string {
	switch {
	case !ix.Whole:
		return "is partial or on an expression"
	case !ix.Valid:
		return "is not valid (its build failed)"
	case !ix.Immediate && !ix.Primary:
		return "is deferrable"
	}
	for _, num := range ix.Columns {
		c := l.self.columnNum(num)
		switch {
		case c == nil:
			return "is on a system column"
		case l.isMark(c.Name):
			return "is on " + quoteIdent(c.Name) + ", which changes with the row"
		}
	}
	return ""
}

// nullable reports whether a column of the index may be NULL.
func (l *looked) nullable(ix index) bool {
	return slices.ContainsFunc(ix.Columns, func(num int) bool { return !l.self.columnNum(num).NotNull })
}

// places returns the places of an index's columns.
func (l *looked) places(ix index) []int {
	key := make([]int, len(ix.Columns))
	for i, num := range ix.Columns {
		key[i] = slices.IndexFunc(l.self.Columns, func(c column) bool { return c.Num == num })
	}
	return key
}

// warnNullable warns of each column of a table's key that may be NULL.
func (l *looked) warnNullable(key []int) {
	for _, i := range key {
		if c := l.self.Columns[i]; !c.NotNull {
			l.warn(l.self, fmt.Sprintf("its key column %s may be NULL, and rows where it is NULL are not published", quoteIdent(c.Name)),
				fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL; or name another key: %s in BRIDGE_TABLES", l.self.name().SQL(), sqlIdent(c.Name), l.entryWithKey()))
		}
	}
}

// deferrable reports whether two rows may have the same key for a moment, because
// no index forbids it immediately.
func (l *looked) deferrable(key []int) bool {
	return !slices.ContainsFunc(l.self.Indexes, func(ix index) bool {
		return ix.Unique && ix.Whole && ix.Valid && ix.Immediate && !slices.ContainsFunc(ix.Columns, func(num int) bool {
			return !slices.ContainsFunc(key, func(i int) bool { return l.self.Columns[i].Num == num })
		})
	})
}

// unique reports whether an index promises that no two rows have the same key. A
// feed view has the index of its table.
func (l *looked) unique(key []int) bool {
	t := l.self
	for _, tomb := range l.sources {
		for _, o := range l.sources {
			feed := Name{Schema: o.Schema, Table: cutName(o.Table, "_"+tomb.Schema)}
			if l.self.Kind == "v" && len(l.sources) == 2 && tomb.Tombstones && tomb.Table == tombName(o.name()) && l.self.name() == feed {
				t = o
			}
		}
	}
	return slices.ContainsFunc(t.Indexes, func(ix index) bool {
		return ix.Unique && ix.Whole && ix.Valid && !slices.ContainsFunc(ix.Columns, func(num int) bool {
			c := t.columnNum(num)
			return c == nil || !slices.ContainsFunc(key, func(i int) bool { return l.self.Columns[i].Name == c.Name })
		})
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (l *looked) isMark(name string) bool {
	return name == l.spec.Txid || name == l.spec.Deleted || l.spec.Deleted == "" && name == defaultDeleted
}

func (l *looked) namedKey() []int {
	o := l.self
	before := len(l.problems)
	var key, nums []int
	for _, name := range l.spec.Key {
		i := slices.IndexFunc(o.Columns, func(c column) bool { return c.Name == name })
		if i < 0 {
			do := "correct key= in BRIDGE_TABLES; the columns of the relation are " + strings.Join(columnNames(o), ", ")
			if near := nearest(name, columnNames(o)); near != "" {
				do = fmt.Sprintf("did you mean key=%s?", quoteIdent(near))
			}
			l.unfit(fmt.Sprintf("it has no column %s for its key", quoteIdent(name)), do)
			continue
		}
		c := o.Columns[i]
		switch {
		case l.isMark(name):
			l.unfit(fmt.Sprintf("its column %s can't be in the key: it changes with the row", quoteIdent(name)), "correct key= in BRIDGE_TABLES")
		case c.protocol:
			l.unfit(fmt.Sprintf("its column %s can't be in the key: it changes with every transaction", quoteIdent(name)), "correct key= in BRIDGE_TABLES")
		case slices.Contains(unorderedTypes, strings.TrimPrefix(c.BaseName, "_")):
			l.unfit(fmt.Sprintf("its key column %s is of type %s, which Postgres can't sort", quoteIdent(name), c.Type),
				"name another column in key=, or cast this one to text in a view")
		}
		key = append(key, i)
		nums = append(nums, c.Num)
	}
	if len(l.problems) > before {
		return nil
	}
	if o.Kind != "v" {
		l.warnNullable(key)
	}
	if o.Kind != "v" && !slices.ContainsFunc(o.Indexes, func(ix index) bool {
		return ix.Unique && ix.Whole && ix.Valid && !slices.ContainsFunc(ix.Columns, func(n int) bool { return !slices.Contains(nums, n) })
	}) {
		l.warn(o, "no index makes its key unique: of two rows with the same key, only one would be kept", fmt.Sprintf(
			"CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s)", o.name().SQL(), sqlList(l.spec.Key)))
	}
	return key
}
