package relation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf8"
)

// stampTrigger sorts behind other names: of a table's BEFORE triggers the last
// one by name fires last, and what it writes stays.
const (
	stampTrigger  = "zzz_lockstep_stamp"
	notifyTrigger = "zzz_lockstep_notify"
)

// SetupOptions leave parts of the set-up out.
type SetupOptions struct {
	// Role is the bridge's, lockstep if empty.
	Role string
	// Name is that of publication and slot, lockstep if empty.
	Name string
	// NoTombstones leaves out what keeps hard deletes visible.
	NoTombstones bool
	// NoNotify leaves out the trigger that wakes the bridge.
	NoNotify bool
}

// SetupSQL returns a psql script that prepares the relation for polling, and
// says what to put into BRIDGE_TABLES then. The script may be run again. It
// looks at the catalog and changes nothing. Its error is a *Problem, as
// Load's, for what can't be captured at all. Where it returns both, the script
// is comments only, which say what to do first.
//
// What the script makes is in a schema of its own, lockstep, but for the
// column, the triggers, the index and the feed view.
func SetupSQL(ctx context.Context, q Querier, spec Spec, opt SetupOptions) (string, error) {
	l, err := look(ctx, q, spec)
	if err != nil {
		return "", err
	}
	if !l.checkKind() {
		return "", l.err()
	}
	opt.Role, opt.Name = cmp.Or(opt.Role, "lockstep"), cmp.Or(opt.Name, "lockstep")
	s := &setup{l: l, opt: opt}
	if spec.Capture == CaptureWAL {
		return s.wal(ctx, q)
	}
	if l.self.Kind == "v" {
		s.head()
		s.view()
	} else {
		key := l.checkKey()
		if key == nil { // most of what follows would serve nothing
			return s.notYet("The bridge tells rows apart by a key, and does not know this table's.", l.problems)
		}
		s.head()
		s.table(l.self, key)
	}
	s.part("The bridge's role: it may log in and read " + joinNames(s.read) + ", nothing else. " + s.passwordNote())
	s.role()
	s.foot()
	return s.b.String(), nil
}

// notYet returns comments only, which say why there is no script yet and what
// to do about each problem, each alternative on a line, or else, and the
// problems as an error.
func (s *setup) notYet(why string, problems []*Problem, or ...string) (string, error) {
	s.note("Set-up of "+s.l.spec.String()+" for the lockstep bridge. There is nothing to run here yet.", why)
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
	s.part("Then run bridge sql again, and what it prints: " + SetupCommand(s.l.spec))
	return s.b.String(), errors.Join(errs...)
}

type setup struct {
	b   strings.Builder
	l   *looked
	opt SetupOptions
	// Set while writing: what the bridge reads, and how to name it.
	read []Name
	use  Spec
}

// p writes a line.
func (s *setup) p(format string, args ...any) {
	fmt.Fprintf(&s.b, format, args...)
	s.b.WriteByte('\n')
}

// part writes a heading; its lines become comments.
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
	s.note("Set-up of "+s.l.spec.Name.Quoted()+" for the lockstep bridge, to be run on the primary as the owner of the tables:",
		"psql -v ON_ERROR_STOP=1 -f THIS_FILE, without -1. It may be run again.")
	s.p("SET search_path = %s; -- as the types below were named under it", s.l.self.SearchPath)
}

// table writes what a table needs, with tombstones and the feed.
func (s *setup) table(o *object, key []int) {
	s.use = s.l.spec
	s.read = []Name{o.name()}
	txid := s.stamp(o, s.l.spec.Txid)
	if w := s.l.warnings(); len(w) > 0 {
		s.part("The key: " + w[0].What + ". Consider: " + w[0].Do + ";")
	}
	s.index(o, txid, key)
	switch {
	case s.opt.NoTombstones:
	case s.l.checkDeleted() >= 0:
		s.part("Deleted rows are marked in the table, so there is no tombstone table here.",
			"A hard DELETE is not seen by polling.")
	default:
		s.tombstones(o, txid, key)
	}
	s.notify(o)
}

// stamp writes the column and its trigger; it returns the column as it will be.
func (s *setup) stamp(o *object, name string) column {
	t, col := o.name().SQL(), sqlIdent(name)
	fn := sqlIdent(helperSchema) + "." + sqlIdent(stampFunction(name))
	txid := column{Name: name, Type: "bigint", BaseType: "bigint", Base: oidInt8, NotNull: true, Fixed: true}
	s.part("The transaction that last wrote a row of "+o.name().Quoted()+". Adding the column rewrites nothing: rows that exist get this transaction.",
		"Column and trigger come in one transaction, so that no row changes between them.")
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s'; -- rather fail than make others wait; run it again then")
	s.p("CREATE SCHEMA IF NOT EXISTS %s;", sqlIdent(helperSchema))
	have := o.column(name)
	switch {
	case have == nil:
		s.p("ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s bigint NOT NULL DEFAULT txid_current();", t, col)
	case have.Dims > 0 || have.Base != oidInt8 && have.Base != oidXID8:
		s.note("It is of type " + have.Type + ": this rewrites the table.")
		s.p("ALTER TABLE %s ALTER COLUMN %s TYPE bigint;", t, col)
		txid.NotNull = have.NotNull
	default:
		txid = *have
	}
	s.note("The trigger's name sorts last, so that it fires after other BEFORE triggers, and wins; ALWAYS, so that logical replication",
		"and restores (session_replication_role = replica) fire it too.")
	s.p("CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS $lockstep$", fn)
	s.p("BEGIN NEW.%s := pg_catalog.txid_current(); RETURN NEW; END $lockstep$;", col)
	for _, tr := range o.Triggers {
		if tr.Name > stampTrigger && tr.Type&(triggerRow|triggerBefore) == triggerRow|triggerBefore {
			s.note("Trigger " + sqlIdent(tr.Name) + " fires later: it must leave " + col + " alone.")
		}
	}
	if by := stampsOf(o, name).byOthers; len(by) > 0 {
		s.note("Trigger " + sqlIdent(by[0]) + " stamps the rows already; this one does no harm beside it, and is not needed.")
	}
	s.trigger(o, stampTrigger, "BEFORE INSERT OR UPDATE", "ROW", "", fn)
	if !txid.NotNull {
		s.note("Rows without a transaction ID would never be published.")
		s.p("UPDATE %s SET %s = DEFAULT WHERE %s IS NULL;", t, col, col)
		s.p("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL;", t, col)
	}
	s.p("COMMIT;")
	return txid
}

func (s *setup) trigger(o *object, name, event, each, when, fn string) {
	t := o.name().SQL()
	s.p("CREATE OR REPLACE TRIGGER %s %s ON %s FOR EACH %s%s EXECUTE FUNCTION %s();", name, event, t, each, when, fn)
	s.p("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s;", t, name)
}

// index writes the index that every poll uses. With the key in it, rows of one
// transaction come in the bridge's order without a sort; a key that can be
// long is left out, lest a row be refused for the size of its index entry.
func (s *setup) index(o *object, txid column, key []int) {
	columns := []string{txid.Name}
	fixed := !slices.ContainsFunc(key, func(i int) bool { return !o.Columns[i].Fixed })
	for _, i := range key {
		if fixed {
			columns = append(columns, o.Columns[i].Name)
		}
	}
	if txid.Num > 0 {
		for _, ix := range o.Indexes {
			if ix.Method == "btree" && ix.Whole && ix.Valid && ix.Columns[0] == txid.Num {
				s.part("Index " + sqlIdent(ix.Name) + " serves the polls.")
				return
			}
		}
	}
	name := sqlIdent(cutName(o.Table, "_lockstep_idx"))
	if o.Kind == "p" {
		s.part("The index that every poll uses. On a partitioned table it can't be built CONCURRENTLY: writers wait meanwhile.",
			"To avoid that, build it CONCURRENTLY on each partition first; this then only joins them.")
		s.p("CREATE INDEX IF NOT EXISTS %s ON %s (%s);", name, o.name().SQL(), sqlList(columns))
		return
	}
	s.part("The index that every poll uses. Built outside of a transaction, beside running writers.")
	for _, ix := range o.Indexes {
		if sqlIdent(ix.Name) == name && !ix.Valid {
			s.note("An earlier build failed.")
			s.p("DROP INDEX CONCURRENTLY %s.%s;", sqlIdent(o.Schema), name)
		}
	}
	s.p("CREATE INDEX CONCURRENTLY IF NOT EXISTS %s ON %s (%s);", name, o.name().SQL(), sqlList(columns))
}

func (s *setup) notify(o *object) {
	if s.opt.NoNotify {
		return
	}
	fn := sqlIdent(helperSchema) + ".notify"
	s.part("Optional: wakes the bridge at commit, where it would else look every BRIDGE_POLL_INTERVAL. Leave it out (bridge sql -no-notify)",
		"if many sessions commit changes of "+o.name().Quoted()+" at once, since commits that notify wait for each other,",
		"and if it is changed in prepared transactions (PREPARE TRANSACTION), which must not notify.")
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s';")
	s.p("CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS $lockstep$", fn)
	s.p("BEGIN PERFORM pg_catalog.pg_notify('%s', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME); RETURN NULL; END $lockstep$;", NotifyChannel)
	s.trigger(o, notifyTrigger, "AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT", "", fn)
	s.p("COMMIT;")
}

func (s *setup) passwordNote() string {
	return "It has no password yet: give it one by \\password " + sqlIdent(s.opt.Role) + " in psql."
}

func (s *setup) role() {
	role := sqlIdent(s.opt.Role)
	s.note("It may call pg_control_system() and its like as any role may, unless that was revoked; then a superuser must, besides:",
		"GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint(), pg_control_recovery() TO "+role+";",
		"A table's owner who may not grant CONNECT and USAGE gets a warning below; commonly every role has both.",
		"So that the bridge can name the session that holds its progress back, a superuser may:",
		"GRANT pg_read_all_stats TO "+role+";")
	s.p("DO $lockstep$ BEGIN")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s) THEN CREATE ROLE %s LOGIN; END IF;", sqlLiteral(s.opt.Role), role)
	s.p("END $lockstep$;")
	s.p("GRANT CONNECT ON DATABASE %s TO %s;", sqlIdent(s.l.self.Database), role)
	s.p("GRANT USAGE ON SCHEMA %s TO %s;", sqlIdent(s.l.self.Schema), role)
	for _, n := range s.read {
		s.p("GRANT SELECT ON %s TO %s;", n.SQL(), role)
	}
}

func (s *setup) foot() {
	s.part("Then name it to the bridge, and try bridge check:", "BRIDGE_TABLES="+shellWord(s.use.String()))
}

// feedName names the view over a table and its tombstones.
func feedName(o *object) Name {
	return Name{Schema: o.Schema, Table: cutName(o.Table, "_lockstep")}
}

// stampFunction is one for each name of a txid column.
func stampFunction(column string) string {
	if column == defaultTxid {
		return "stamp"
	}
	return cutName("stamp_"+column, "")
}

// tombName names a table's tombstone table, and its function, in the schema
// lockstep. Different tables get different names.
func tombName(n Name) string {
	full := n.Schema + "." + n.Table
	if strings.Contains(n.Schema, ".") || strings.Contains(n.Table, ".") {
		return cutName(full, fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(n.SQL()))))
	}
	return cutName(full, "")
}

// cutName appends the suffix, and where that is too long for Postgres, cuts
// the name and puts a checksum in between.
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

// oneLine keeps a name with a line break from ending a comment.
func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }
