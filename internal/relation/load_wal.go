package relation

import (
	"fmt"
	"slices"
	"strings"
)

// Values of pg_class.relreplident.
const (
	identityDefault = "d"
	identityFull    = "f"
	identityIndex   = "i"
)

// stampedTxid returns the place of the column that holds the rows' transaction
// IDs, -1 for none: the WAL tells what wrote a row. A column that happens to be
// named txid, and is stamped by no trigger, is data.
func (l *looked) stampedTxid() int {
	i := slices.IndexFunc(l.self.Columns, func(c column) bool { return c.Name == l.spec.Txid })
	if i < 0 && l.spec.Txid == defaultTxid {
		return -1
	}
	if l.spec.Txid != defaultTxid {
		return l.checkTxid()
	}
	c := l.self.Columns[i]
	stamped := stampsOf(l.self, c.Name).enabled == stampBoth
	if !stamped || c.Base != oidInt8 && c.Base != oidXID8 || c.Dims > 0 || !c.NotNull {
		return -1
	}
	return i
}

// checkWAL checks what logical replication needs. A table without replica
// identity is refused before it gets into a publication, because there its own
// UPDATE and DELETE would fail.
func (l *looked) checkWAL(rel *Relation) {
	o := l.self
	switch {
	case o.Kind == "v":
		l.unfit("it is a view, of which the WAL knows nothing", "remove capture=wal: the view is polled then; or name the tables below it")
		return
	case o.Persistence == "u":
		l.unfit("it is unlogged: its rows are not in the WAL", fmt.Sprintf("ALTER TABLE %s SET LOGGED", o.name().SQL()))
		return
	}
	if rel.Key == nil {
		return
	}
	if l.spec.History == HistoryLog && o.Identity != identityFull && l.needsIdentity() {
		l.unfit("a log of its changes needs old rows in full, for values that an UPDATE leaves alone are not in the WAL",
			fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", o.name().SQL()))
		return
	}
	if !l.needsIdentity() {
		return
	}
	for _, leaf := range o.Leaves {
		name := Name{Schema: leaf.Schema, Table: leaf.Table}
		if l.spec.History == HistoryLog && leaf.Identity != identityFull {
			l.unfit(fmt.Sprintf("a log of its changes needs old rows in full, and its partition %s does not give them", name.Quoted()),
				fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", name.SQL()))
			return
		}
		for _, i := range rel.Key {
			if !slices.Contains(leaf.Columns, o.Columns[i].Name) {
				l.unfit(fmt.Sprintf("the replica identity of its partition %s lacks the key column %s: the WAL would not say which row was changed or deleted", name.Quoted(), quoteIdent(o.Columns[i].Name)),
					fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT, where its primary key has the column, or REPLICA IDENTITY FULL", name.SQL()))
				return
			}
		}
	}
	identity := l.identity()
	for _, i := range rel.Key {
		if !slices.Contains(identity, o.Columns[i].Num) {
			l.unfit(fmt.Sprintf("its replica identity lacks its key column %s: the WAL would not say which row was changed or deleted", quoteIdent(o.Columns[i].Name)),
				l.identitySQL(rel.Key))
			return
		}
	}
}

// needsIdentity says whether updates or deletes are published.
func (l *looked) needsIdentity() bool {
	a := l.spec.Actions
	return len(a) == 0 || slices.Contains(a, "update") || slices.Contains(a, "delete")
}

// identity returns the numbers of the columns that the WAL has of an old row.
func (l *looked) identity() []int {
	if l.self.Identity == identityFull {
		nums := make([]int, len(l.self.Columns))
		for i, c := range l.self.Columns {
			nums[i] = c.Num
		}
		return nums
	}
	for _, ix := range l.self.Indexes {
		if !ix.Immediate || !ix.Valid { // which Postgres does not take for one
			continue
		}
		if l.self.Identity == identityDefault && ix.Primary || l.self.Identity == identityIndex && ix.Identity {
			return ix.Columns
		}
	}
	return nil
}

// identitySQL returns what gives the table a replica identity with the key.
func (l *looked) identitySQL(key []int) string {
	table := l.self.name().SQL()
	nums := make([]int, len(key))
	for n, i := range key {
		nums[n] = l.self.Columns[i].Num
	}
	var using []string
	for _, ix := range l.self.Indexes {
		same := ix.Unique && ix.Immediate && l.indexUnfit(ix) == "" && !slices.ContainsFunc(nums, func(n int) bool { return !slices.Contains(ix.Columns, n) })
		switch {
		case same && ix.Primary:
			return fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT", table)
		case same:
			using = append(using, ix.Name)
		}
	}
	if len(using) > 0 {
		return fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s", table, sqlIdent(using[0]))
	}
	return fmt.Sprintf("ALTER TABLE %[1]s ADD PRIMARY KEY (…), or ALTER TABLE %[1]s REPLICA IDENTITY FULL", table)
}

// Only returns the relation with the named columns alone. Its error names a
// key column that is not among them.
func (r *Relation) Only(names []string) (*Relation, error) {
	only := *r
	only.Columns, only.Key, only.Txid, only.Deleted = nil, nil, -1, -1
	at := make([]int, len(r.Columns))
	for i, c := range r.Columns {
		at[i] = -1
		if slices.Contains(names, c.Name) {
			at[i] = len(only.Columns)
			only.Columns = append(only.Columns, c)
		}
	}
	for _, i := range r.Key {
		if at[i] < 0 {
			return nil, fmt.Errorf("%s: its key column %s is not published; publish it: its publication has the columns %s",
				r.Name.Quoted(), quoteIdent(r.Columns[i].Name), strings.Join(names, ", "))
		}
		only.Key = append(only.Key, at[i])
	}
	if r.Txid >= 0 {
		only.Txid = at[r.Txid]
	}
	if r.Deleted >= 0 {
		only.Deleted = at[r.Deleted]
	}
	return &only, nil
}
