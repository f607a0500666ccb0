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
	if o.Schema != helperSchema {
		l.checkTrigger(o, txid)
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
	for i, c := range o.Columns {
		named := c.Name == l.spec.Txid || c.Name == defaultTxid || c.Base == oidXID8
		if named && (c.Base == oidInt8 || c.Base == oidXID8) && slices.Contains(o.Used, c.Num) {
			return &o.Columns[i]
		}
	}
	return nil
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
		l.warn(o, fmt.Sprintf("the trigger that sets %s is not ENABLE ALWAYS: changes by logical replication and by restores would be missed", quoteIdent(txid.Name)),
			strings.Join(do, "; "))
	default:
		do := "run the SQL that this prints: bridge sql " + shellWord(o.name().Quoted())
		if o == l.self {
			do = l.bridgeSQL()
		}
		l.warn(o, fmt.Sprintf("no trigger seems to set %s at INSERT and UPDATE: rows whose writer does not set it would be missed", quoteIdent(txid.Name)), do)
	}
}

const stampBoth = triggerInsert | triggerUpdate

// stamps says for which commands a trigger sets the transaction ID of the row.
type stamps struct {
	// enabled and always have bits of pg_trigger.tgtype: the commands with an
	// enabled trigger, and those with an ALWAYS trigger.
	enabled, always int
	// notAlways names the triggers that are not ALWAYS. byOthers names those that
	// are ALWAYS and were not made by SetupSQL.
	notAlways, byOthers []string
}

// stampsOf looks for BEFORE row triggers whose function has both the name of the
// column and that of a function that returns transaction IDs.
func stampsOf(o *object, column string) stamps {
	var st stamps
	for _, t := range o.Triggers {
		source := strings.ToLower(t.Source)
		if !strings.Contains(source, strings.ToLower(column)) ||
			!strings.Contains(source, "txid_current") && !strings.Contains(source, "pg_current_xact_id") ||
			t.Type&(triggerRow|triggerBefore) != triggerRow|triggerBefore || !t.AllColumns {
			continue
		}
		if t.Enabled == "O" || t.Enabled == "A" {
			st.enabled |= t.Type & stampBoth
		}
		if t.Enabled != "A" {
			st.notAlways = append(st.notAlways, t.Name)
			continue
		}
		st.always |= t.Type & stampBoth
		if t.Name != stampTrigger && t.Type&stampBoth == stampBoth {
			st.byOthers = append(st.byOthers, t.Name)
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
