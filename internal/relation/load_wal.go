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

// stampedTxid returns the place of the column that holds the transaction IDs of
// the rows. It may be -1, for none: the WAL says which transaction wrote a row. A
// column that happens to be named txid, and that no trigger sets, is data.
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

// checkWAL checks what logical replication needs. It refuses a table without
// replica identity before the table gets into a publication, because then UPDATE
// and DELETE of the table itself would fail.
func (l *looked) checkWAL(rel *Relation) {
	o := l.self
	switch {
	case o.Kind == "v":
		l.unfit("it is a view, and the WAL has only tables", "remove capture=wal to poll the view; or name the tables below it")
		return
	case o.Persistence == "u":
		l.unfit("it is unlogged: its rows are not in the WAL", fmt.Sprintf("ALTER TABLE %s SET LOGGED", o.name().SQL()))
		return
	}
	if rel.Key == nil {
		return
	}
	if l.spec.History == HistoryLog && o.Identity != identityFull && l.needsIdentity() {
		l.unfitIdentity("history=log needs old rows in full: without them, the WAL lacks large values that an UPDATE does not change",
			fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", o.name().SQL()))
		return
	}
	identity := l.identity()
	if !l.needsIdentity() {
		if l.allActions {
			l.checkAnyIdentity(rel.Key, identity)
		}
		return
	}
	if i := slices.IndexFunc(o.Leaves, func(p leaf) bool { return !p.Full }); i >= 0 && l.spec.History == HistoryLog {
		name := o.Leaves[i].name()
		l.unfit(fmt.Sprintf("history=log needs old rows in full, and its partition %s does not give them", name.Quoted()),
			fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", name.SQL()))
		return
	}
	for _, i := range rel.Key {
		if lacks, ok := l.leafWithout(o.Columns[i].Name); ok {
			l.unfitWays(fmt.Sprintf("the replica identity of its partition %s lacks its key column %s: the WAL would not say which row was changed or deleted",
				lacks.name().Quoted(), quoteIdent(o.Columns[i].Name)), l.leafWays(lacks, rel.Key)...)
			return
		}
		if !slices.Contains(identity, o.Columns[i].Num) {
			l.unfitIdentity(fmt.Sprintf("its replica identity lacks its key column %s: the WAL would not say which row was changed or deleted", quoteIdent(o.Columns[i].Name)),
				l.identityWays(rel.Key)...)
			return
		}
	}
}

// checkAnyIdentity checks that UPDATE and DELETE of the table itself still work
// in a publication that has updates or deletes.
func (l *looked) checkAnyIdentity(key, identity []int) {
	const but = "has no replica identity: in a publication of updates and deletes its own UPDATE and DELETE fail, with any actions="
	bare := slices.IndexFunc(l.self.Leaves, func(p leaf) bool { return !p.Full && len(p.Columns) == 0 })
	switch {
	case bare >= 0:
		p := l.self.Leaves[bare]
		l.unfitWays("its partition "+p.name().Quoted()+" "+but, l.leafWays(p, key)...)
	case len(l.self.Leaves) == 0 && len(identity) == 0:
		l.unfitIdentity("it "+but, l.identityWays(key)...)
	}
}

// unfitIdentity is unfitWays for ways that are statements. If there is only one,
// and it does nothing but set the replica identity, bridge sql prints it.
func (l *looked) unfitIdentity(what string, ways ...string) {
	l.unfitWays(what, ways...)
	l.problems[len(l.problems)-1].identity = len(ways) == 1 && l.self.Kind != "p"
}

// needsIdentity reports whether updates or deletes are published.
func (l *looked) needsIdentity() bool {
	return l.spec.Publishes("update") || l.spec.Publishes("delete")
}

// leafWithout returns a partition whose old rows lack the column in the WAL. Only
// the identity of the partitions counts: that of the root has no effect, and
// partitions do not inherit it.
func (l *looked) leafWithout(name string) (leaf, bool) {
	i := slices.IndexFunc(l.self.Leaves, func(p leaf) bool { return !p.Full && !slices.Contains(p.Columns, name) })
	if i < 0 {
		return leaf{}, false
	}
	return l.self.Leaves[i], true
}

// leafWays returns the statements that give a partition a replica identity with
// the key: one of them is enough.
func (l *looked) leafWays(p leaf, key []int) []string {
	full := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", p.name().SQL())
	switch fit, any := l.primary(key); {
	case fit:
		return []string{fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT", p.name().SQL())}
	case any || l.mayBeNull(key):
		return []string{full}
	}
	return []string{l.addUnique("PRIMARY KEY", key), full}
}

// mayBeNull reports whether a column of the key may be NULL. Then no index on it
// can be a replica identity.
func (l *looked) mayBeNull(key []int) bool {
	return slices.ContainsFunc(key, func(i int) bool { return !l.self.Columns[i].NotNull })
}

// primary reports whether there is a primary key (any), and whether it can be a
// replica identity with the key (fit).
func (l *looked) primary(key []int) (fit, any bool) {
	i := slices.IndexFunc(l.self.Indexes, func(ix index) bool { return ix.Primary })
	return i >= 0 && l.identifies(l.self.Indexes[i], key), i >= 0
}

// identifies reports whether an index can be a replica identity with the key.
func (l *looked) identifies(ix index, key []int) bool {
	return ix.Unique && ix.Immediate && l.indexUnfit(ix) == "" && !l.nullable(ix) &&
		!slices.ContainsFunc(key, func(i int) bool { return !slices.Contains(ix.Columns, l.self.Columns[i].Num) })
}

func (l *looked) addUnique(what string, key []int) string {
	names := make([]string, len(key))
	for n, i := range key {
		names[n] = l.self.Columns[i].Name
	}
	return fmt.Sprintf("ALTER TABLE %s ADD %s (%s)", l.self.name().SQL(), what, sqlList(names))
}

// identity returns the numbers of the columns of an old row that the WAL has.
func (l *looked) identity() []int {
	o := l.self
	var nums []int
	if o.Kind == "p" && len(o.Leaves) > 0 {
		for _, c := range o.Columns {
			if _, lacks := l.leafWithout(c.Name); !lacks {
				nums = append(nums, c.Num)
			}
		}
		return nums
	}
	if o.Identity == identityFull && o.Kind != "p" {
		for _, c := range o.Columns {
			nums = append(nums, c.Num)
		}
		return nums
	}
	for _, ix := range o.Indexes {
		if !ix.Valid || !ix.Immediate { // Postgres does not use it as an identity
			continue
		}
		// A partitioned table without partitions: those to come have the default.
		if (o.Identity == identityDefault || o.Kind == "p") && ix.Primary || o.Identity == identityIndex && ix.Identity && o.Kind != "p" {
			return ix.Columns
		}
	}
	return nil
}

// identityWays returns the statements that give the table a replica identity with
// the key: one, if the table has an index for it, else several to choose from.
func (l *looked) identityWays(key []int) []string {
	o := l.self
	fit, primary := l.primary(key)
	switch {
	case o.Kind == "p" && primary: // the table's own identity has no effect
		return []string{"remove key=: partitions will have the primary key as replica identity"}
	case o.Kind == "p":
		return []string{l.addUnique("PRIMARY KEY", key)}
	case fit:
		return []string{fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT", o.name().SQL())}
	}
	if i := slices.IndexFunc(o.Indexes, func(ix index) bool { return l.identifies(ix, key) }); i >= 0 {
		return []string{fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s", o.name().SQL(), sqlIdent(o.Indexes[i].Name))}
	}
	full := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", o.name().SQL())
	if l.mayBeNull(key) {
		return []string{full}
	}
	add := "PRIMARY KEY"
	if primary {
		add = "UNIQUE" // bridge sql then makes it the identity
	}
	return []string{l.addUnique(add, key), full}
}

// Only returns the relation with only the named columns. If a key column is not
// among them, it returns an error that names the column.
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
			return nil, fmt.Errorf("%s: its key column %s is not published; add it to the publication, which has the columns %s",
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
