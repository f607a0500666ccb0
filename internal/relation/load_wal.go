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

// checkWAL checks what logical replication needs. It refuses a table before the
// table gets into a publication in which its own UPDATE or DELETE would fail.
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
	l.checkLeaves()
	if l.checkPublications(rel.Key) || rel.Key == nil || l.generatedKey(rel.Key) {
		return
	}
	if !l.needsIdentity() {
		return
	}
	rel.OldRows = l.fullOldRows()
	identity := l.identity()
	for _, i := range rel.Key {
		if lacks, ok := l.leafWithout(o.Columns[i].Name); ok {
			l.unfitWays(fmt.Sprintf("the replica identity of its partition %s lacks its key column %s: the WAL would not say which row was changed or deleted",
				lacks.name().Quoted(), quoteIdent(o.Columns[i].Name)), statements(l.leafWays(lacks.name(), rel.Key))...)
			return
		}
		if !slices.Contains(identity, o.Columns[i].Num) {
			l.unfitIdentity(fmt.Sprintf("its replica identity lacks its key column %s: the WAL would not say which row was changed or deleted", quoteIdent(o.Columns[i].Name)),
				l.identityWays(rel.Key)...)
			return
		}
	}
}

// checkLeaves warns of partitions whose changes are not in the WAL.
func (l *looked) checkLeaves() {
	for _, p := range l.self.Leaves {
		what, do := "a foreign table", "nothing, if that partition never changes; else capture it where it is"
		if p.Kind == "r" {
			what, do = "unlogged", fmt.Sprintf("ALTER TABLE %s SET LOGGED", p.name().SQL())
		}
		if !p.logged() {
			l.warn(l.self, fmt.Sprintf("its partition %s is %s: changes there are not in the WAL, and are found only when the bridge compares", p.name().Quoted(), what), do)
		}
	}
}

// sent reports whether the WAL will have the column, as far as that depends on
// whether it is generated.
func (l *looked) sent(c *column) bool {
	p := l.publications
	return !c.Generated || p.Version >= publishesGenerated && !c.Virtual && (p.stored() ||
		slices.ContainsFunc(p.Members, func(m member) bool {
			return m.Publication == p.name && m.OID == l.self.OID && slices.Contains(m.Columns, c.Name)
		}))
}

// generatedKey adds a problem for a key that is not sent, because Postgres leaves
// generated columns out.
func (l *looked) generatedKey(key []int) bool {
	if l.publications == nil {
		return false
	}
	for _, i := range key {
		c := l.self.Columns[i]
		if l.sent(&c) {
			continue
		}
		ways := []string{"name another key in key=", "remove capture=wal, to poll it"}
		if l.publications.Version >= publishesGenerated && !c.Virtual {
			ways = append([]string{l.publishStored()}, ways...)
		}
		l.unfitWays(fmt.Sprintf("its key column %s is generated, and is not in publication %s", quoteIdent(c.Name), quoteIdent(l.publications.name)), ways...)
		return true
	}
	return false
}

// way is something that makes a table fit.
type way struct {
	sql string
	// change is the replica identity that comes of it, nil if none does. If alone is
	// true, the statement does nothing but set it.
	change *identityChange
	alone  bool
}

func statements(ways []way) []string {
	list := make([]string, len(ways))
	for i, w := range ways {
		list[i] = w.sql
	}
	return list
}

// unfitIdentity is unfitWays for ways that are statements. If there is only one,
// and it does nothing but set the replica identity, bridge sql prints it.
func (l *looked) unfitIdentity(what string, ways ...way) {
	l.unfitWays(what, statements(ways)...)
	l.problems[len(l.problems)-1].identity = len(ways) == 1 && ways[0].alone && l.self.Kind != "p"
}

// needsIdentity reports whether updates or deletes are published.
func (l *looked) needsIdentity() bool {
	return l.spec.Publishes("update") || l.spec.Publishes("delete")
}

// leafWithout returns a partition whose old rows lack the column in the WAL. Only
// the identity of the partitions counts: that of the root has no effect, and
// partitions do not inherit it.
func (l *looked) leafWithout(name string) (leaf, bool) {
	i := slices.IndexFunc(l.self.Leaves, func(p leaf) bool { return p.logged() && !p.Full && !slices.Contains(p.Columns, name) })
	if i < 0 {
		return leaf{}, false
	}
	return l.self.Leaves[i], true
}

// mayBeNull reports whether a column of the key may be NULL. Then no index on it
// can be a replica identity.
func (l *looked) mayBeNull(key []int) bool {
	return slices.ContainsFunc(key, func(i int) bool { return !l.self.Columns[i].NotNull })
}

// fullWay returns the statement that gives old rows in full.
func (l *looked) fullWay(of Name) way {
	sql := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", of.SQL())
	return way{sql: sql, change: &identityChange{of: of, full: true}, alone: true}
}

// indexWay returns the statement that makes an index the replica identity.
func (l *looked) indexWay(of Name, ix index) way {
	sql := fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s", of.SQL(), sqlIdent(ix.Name))
	if ix.Primary {
		sql = fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT", of.SQL())
	}
	return way{sql: sql, change: &identityChange{of: of, columns: l.names(ix.Columns)}, alone: true}
}

// leafWays returns the statements that give a partition a replica identity with
// the key: one of them is enough.
func (l *looked) leafWays(of Name, key []int) []way {
	full := l.fullWay(of)
	i := slices.IndexFunc(l.self.Indexes, func(ix index) bool { return ix.Primary })
	switch {
	case i >= 0 && l.identifies(l.self.Indexes[i], key):
		return l.harmless(l.indexWay(of, l.self.Indexes[i]))
	case i >= 0 || l.mayBeNull(key):
		return l.harmless(full)
	}
	return l.harmless(l.uniqueWay(of, "PRIMARY KEY", key), full)
}

// identifies reports whether an index can be a replica identity with the key.
func (l *looked) identifies(ix index, key []int) bool {
	return ix.Unique && ix.Immediate && l.indexUnfit(ix) == "" && !l.nullable(ix) &&
		!slices.ContainsFunc(key, func(i int) bool { return !slices.Contains(ix.Columns, l.self.Columns[i].Num) })
}

// uniqueWay returns the statement that adds an index with the key. It becomes the
// identity of the table or partition.
func (l *looked) uniqueWay(of Name, what string, key []int) way {
	names := make([]string, len(key))
	for n, i := range key {
		names[n] = l.self.Columns[i].Name
	}
	sql := fmt.Sprintf("ALTER TABLE %s ADD %s (%s)", l.self.name().SQL(), what, sqlList(names))
	return way{sql: sql, change: &identityChange{of: of, columns: names}}
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
func (l *looked) identityWays(key []int) []way {
	o := l.self
	primary := slices.ContainsFunc(o.Indexes, func(ix index) bool { return ix.Primary })
	full := l.fullWay(o.name())
	switch {
	case o.Kind == "p" && primary: // the table's own identity has no effect
		return []way{{sql: "remove key=: partitions will have the primary key as replica identity"}}
	case o.Kind == "p":
		return []way{l.uniqueWay(o.name(), "PRIMARY KEY", key)}
	}
	var ways []way
	for _, ix := range o.Indexes { // the primary key is the first
		if l.identifies(ix, key) {
			ways = append(ways, l.indexWay(o.name(), ix))
		}
	}
	switch {
	case len(ways) > 0:
		if ways := l.harmless(ways...); ways[0].alone {
			return ways[:1]
		}
		return l.harmless(append(ways, full)...)
	case l.mayBeNull(key):
		return l.harmless(full)
	case primary: // bridge sql then makes the other the identity
		return l.harmless(l.uniqueWay(o.name(), "UNIQUE", key), full)
	}
	return l.harmless(l.uniqueWay(o.name(), "PRIMARY KEY", key), full)
}

// fullOldRows reports whether the WAL has old rows with all their columns.
func (l *looked) fullOldRows() bool {
	o := l.self
	if o.Kind != "p" {
		return o.Identity == identityFull
	}
	// Postgres says by the root's identity what an old row has, and takes the row from
	// the partition.
	return o.Identity == identityFull && !slices.ContainsFunc(o.Leaves, func(p leaf) bool { return p.logged() && !p.Full })
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
