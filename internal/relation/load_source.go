package relation

import (
	"fmt"
	"slices"
	"strings"
)

// Bits of pg_trigger.tgtype.
const (
	triggerRow    = 1 << 0
	triggerBefore = 1 << 1
	triggerInsert = 1 << 2
	triggerUpdate = 1 << 4
)

// checkSource checks a table whose changes show in the relation: the relation
// itself, or a table below a view. Only what loses rows is an error; all else are
// warnings.
func (l *looked) checkSource(o *object) {
	own := o == l.self
	txid := l.sourceTxid(o)
	switch {
	case o.Kind == "m" || o.Kind == "f":
		what, late := "a foreign table", txid != nil
		if o.Kind == "m" {
			what = "a materialized view"
		}
		if late {
			l.unfit(fmt.Sprintf("it takes transaction IDs from %s, %s: they come late, and rows would be lost", o.name().Quoted(), what),
				"take txid from the tables themselves")
			return
		}
		l.warn(l.self, fmt.Sprintf("it reads %s, %s: changes there do not show", o.name().Quoted(), what), "nothing, if this is intended")
		return
	case o.Persistence == "u":
		l.warn(o, "it is unlogged: after a crash Postgres empties it, but its rows stay in the stream; standbys don't have it",
			fmt.Sprintf("ALTER TABLE %s SET LOGGED", o.name().SQL()))
	}
	if !own && o.Children {
		l.warn(o, "other tables inherit from it: each needs its own txid trigger", "use a partitioned table")
	}
	if !own && o.HiddenRows {
		l.warn(o, "row level security may hide its rows from a view", fmt.Sprintf("make sure that the owner of %s sees all its rows", l.spec.Name.Quoted()))
	}
	if txid == nil {
		if !own {
			l.warn(l.self, fmt.Sprintf("it reads %s, but no transaction ID of that table: changes there are not noticed", o.name().Quoted()),
				"nothing, if that table never changes; else let the view's txid be greatest(a.txid, b.txid) over all its tables")
		}
		return
	}
	l.checkIndex(o, txid)
	if o.Tombstones {
		l.checkTombstones(o)
	} else {
		l.checkTrigger(o, txid)
	}
}

// checkTombstones warns of tombstones of an earlier version, which don't tell keys
// apart that Postgres calls equal.
func (l *looked) checkTombstones(o *object) {
	for _, t := range l.sources {
		if slices.ContainsFunc(t.Triggers, func(tr trigger) bool { return tr.Function == o.name() }) {
			l.checkBury(t, o)
		}
	}
	coarse := ""
	for _, ix := range o.Indexes {
		if !ix.Primary {
			continue
		}
		for _, num := range ix.Columns {
			c := o.columnNum(num)
			if c.Coarse {
				coarse = c.Name
			}
			if c.Name == spellingColumn || c.Name == "lockstep_"+spellingColumn {
				return
			}
		}
	}
	if coarse == "" {
		return
	}
	do := "run the SQL that bridge sql prints for its table"
	for _, other := range l.sources {
		if !other.Tombstones && tombName(other.name()) == o.Table {
			spec, as := NewSpec(other.name()), ""
			if spec.Txid = l.spec.Txid; o.Schema != defaultAs {
				as = "-as " + shellWord(o.Schema) + " "
			}
			do = "run the SQL that this prints: bridge sql " + as + shellWord(spec.String())
		}
	}
	l.warn(o, fmt.Sprintf("it is of an earlier version: if a key changes in %s to another that Postgres calls equal, such as from 1.0 to 1.00, clients keep both until the next comparison", quoteIdent(coarse)), do)
}

// checkBury warns if the trigger that writes tombstones names a column of the table
// that has another name now.
func (l *looked) checkBury(table, tomb *object) {
	for _, ix := range tomb.Indexes {
		if !ix.Primary {
			continue
		}
		for _, num := range ix.Columns {
			name := tomb.columnNum(num).Name
			if table.column(name) != nil || name == spellingColumn || name == "lockstep_"+spellingColumn {
				continue
			}
			l.warn(table, fmt.Sprintf("its key column %s has another name now, which the trigger for tombstones does not know: its own DELETE fails", quoteIdent(name)),
				fmt.Sprintf("ALTER TABLE %s RENAME COLUMN … TO %s; or remove the tombstones: %s; then run the SQL that bridge sql prints for the table",
					table.name().SQL(), sqlIdent(name), dropTombs(tomb.name(), l.self.name())))
		}
	}
}

// sourceTxid returns the column that holds the transaction IDs of a table, nil if
// there is none. In a table below a view, the view must read the column.
func (l *looked) sourceTxid(o *object) *column {
	if o == l.self {
		c := o.column(l.spec.Txid)
		if c != nil && c.Base != oidInt8 && c.Base != oidXID8 {
			return nil
		}
		return c
	}
	var found *column
	for i := range o.Columns {
		c := &o.Columns[i]
		named := c.Name == l.spec.Txid || c.Name == defaultTxid || c.Base == oidXID8
		if !named || c.Base != oidInt8 && c.Base != oidXID8 || !slices.Contains(o.Used, c.Num) {
			continue
		}
		// Beside the bridge's column there may be one of the application's.
		if c.Name == l.spec.Txid && (c.Name != defaultTxid || o.owns(c)) {
			return c
		}
		if found == nil || !o.owns(found) && o.owns(c) {
			found = c
		}
	}
	return found
}

func (l *looked) checkIndex(o *object, txid *column) {
	if slices.ContainsFunc(o.Indexes, func(ix index) bool {
		return ix.Method == "btree" && ix.Valid && ix.Whole && ix.Columns[0] == txid.Num
	}) {
		return
	}
	how := " CONCURRENTLY"
	if o.Kind == "p" {
		how = ""
	}
	l.warn(o, fmt.Sprintf("no index begins with %s: every poll reads the whole table", quoteIdent(txid.Name)),
		fmt.Sprintf("CREATE INDEX%s ON %s (%s)", how, o.name().SQL(), sqlIdent(txid.Name)))
}

// checkTrigger warns if rows may be written without a stamp: without the ID of the
// transaction that wrote them.
func (l *looked) checkTrigger(o *object, txid *column) {
	st := stampsOf(o, txid.Name)
	switch {
	case st.always == stampBoth:
	case st.enabled == stampBoth || len(st.notAlways) > 0:
		do := make([]string, len(st.notAlways))
		for i, name := range st.notAlways {
			do[i] = fmt.Sprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s", o.name().SQL(), sqlIdent(name))
		}
		if !o.owns(txid) {
			do = []string{l.otherColumn(o, l.specOf(o))}
		}
		l.warn(o, fmt.Sprintf("the trigger that sets %s is not ENABLE ALWAYS: changes by logical replication and by restores would be missed", quoteIdent(txid.Name)),
			strings.Join(do, "; "))
	default:
		do := "run the SQL that this prints: " + SetupCommand(l.specOf(o))
		if !o.owns(txid) {
			do = l.otherColumn(o, l.specOf(o))
		}
		l.warn(o, fmt.Sprintf("no trigger seems to set %s at INSERT and UPDATE: rows whose writer does not set it would be missed", quoteIdent(txid.Name)), do)
	}
}

// specOf returns the entry of BRIDGE_TABLES for a table.
func (l *looked) specOf(o *object) Spec {
	if o == l.self {
		return l.spec
	}
	return NewSpec(o.name())
}

const stampBoth = triggerInsert | triggerUpdate

// stamps says for which commands a trigger sets the transaction ID of the row.
type stamps struct {
	// enabled and always have bits of pg_trigger.tgtype: the commands with an
	// enabled trigger, and those with an ALWAYS trigger. sure has the commands with
	// a trigger, also a disabled one, that certainly sets nothing else.
	enabled, always, sure int
	// notAlways names the triggers that are not ALWAYS. alone names those that count
	// in sure and are ALWAYS, for both commands.
	notAlways, alone []string
}

// stampsOf looks for BEFORE row triggers that may set the column to the ID of the
// transaction, and among them for those that certainly do.
func stampsOf(o *object, column string) stamps {
	var st stamps
	for _, t := range o.Triggers {
		if t.Type&(triggerRow|triggerBefore) != triggerRow|triggerBefore || !t.AllColumns || !mayStamp(t.Source, column) {
			continue
		}
		sure := setsID(t.Source, column) && (t.Condition == "" || asksForChange(tokens(t.Condition)))
		if sure {
			st.sure |= t.Type & stampBoth
		}
		if t.Enabled == "O" || t.Enabled == "A" {
			st.enabled |= t.Type & stampBoth
		}
		if t.Enabled != "A" {
			st.notAlways = append(st.notAlways, t.Name)
			continue
		}
		st.always |= t.Type & stampBoth
		if sure && t.Type&stampBoth == stampBoth {
			st.alone = append(st.alone, t.Name)
		}
	}
	return st
}

func sqlList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = sqlIdent(n)
	}
	return strings.Join(quoted, ", ")
}
