package relation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrBreaksWrites is wrapped in the error of LoadFor where Postgres refuses the
// table's own UPDATE or DELETE in the bridge's publication, or would refuse it.
var ErrBreaksWrites = errors.New("in the publication the table's own writes fail")

// publishesGenerated is the first version that can publish generated columns,
// and that refuses a replica identity with one that is not published.
const publishesGenerated = 180000

// publicationsSQL returns what the publications of some tables publish of each of
// them. A partition is in the publications of all tables above it. It is published
// as the topmost of these if the publication says so, and then that table's list of
// columns and row filter count. The query takes no lock of a table.
const publicationsSQL = `
WITH RECURSIVE up(leaf, oid, level) AS (
  SELECT o, o, 0 FROM unnest($1::oid[]) o
  UNION ALL
  SELECT u.leaf, i.inhparent, u.level + 1 FROM up u
    JOIN pg_catalog.pg_class c ON c.oid = u.oid AND c.relispartition
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid AND NOT i.inhdetachpending
), named AS (
  SELECT u.leaf, u.oid, u.level, r.prpubid AS pub FROM up u JOIN pg_catalog.pg_publication_rel r ON r.prrelid = u.oid
  UNION
  SELECT u.leaf, u.oid, u.level, n.pnpubid FROM up u JOIN pg_catalog.pg_class c ON c.oid = u.oid
    JOIN pg_catalog.pg_publication_namespace n ON n.pnnspid = c.relnamespace
), members AS (
  SELECT leaf, pub FROM named
  UNION
  SELECT o, p.oid FROM unnest($1::oid[]) o, pg_catalog.pg_publication p WHERE p.puballtables
)
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'ours', (SELECT json_build_object('update', pubupdate, 'delete', pubdelete, 'root', pubviaroot, 'stored', to_jsonb(p)->>'pubgencols' = 's')
             FROM pg_catalog.pg_publication p WHERE p.pubname = $2),
  'members', (
    SELECT json_agg(json_build_object('publication', p.pubname, 'oid', m.leaf::int8, 'update', p.pubupdate, 'delete', p.pubdelete,
             'stored', to_jsonb(p)->>'pubgencols' = 's', 'plain', r.oid IS NOT NULL AND r.prattrs IS NULL AND r.prqual IS NULL,
             'columns', CASE WHEN r.prattrs IS NOT NULL THEN ARRAY(
                SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[]) ORDER BY a.attnum) END,
             'filter', ARRAY(
                SELECT DISTINCT COALESCE(a.attname::text, 'the whole row') FROM regexp_matches(r.prqual::text, ':varattno (\d+)', 'g') v
                  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = v[1]::int ORDER BY 1)) ORDER BY p.pubname, m.leaf)
      FROM members m JOIN pg_catalog.pg_publication p ON p.oid = m.pub
      LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = CASE WHEN p.pubviaroot
        THEN (SELECT n.oid FROM named n WHERE n.leaf = m.leaf AND n.pub = p.oid ORDER BY n.level DESC LIMIT 1) ELSE m.leaf END))`

// publications are those that the relation and its partitions are in, and the
// bridge's.
type publications struct {
	// name is that of the bridge's publication.
	name    string
	Version int
	// Ours is nil if there is none yet.
	Ours *struct {
		Update, Delete, Stored bool
		// Root is true if partitions are published as their root.
		Root bool
	}
	Members []member
}

// member is a table, or a partition, in a publication.
type member struct {
	Publication    string
	OID            uint32
	Update, Delete bool
	// Stored is true if the publication has stored generated columns.
	Stored bool
	// Columns are those of its list, nil if it has none. Filter has the columns that
	// its row filter reads.
	Columns, Filter []string
	// Plain is true if the publication names the table, all of it: as the bridge
	// and bridge sql put it in. All else was made by somebody else.
	Plain bool
}

// CreatePublication returns the statement that makes the bridge's publication, as
// fits a version of Postgres. Partitions are published as their root.
func CreatePublication(name string, version int) string {
	options := "publish_via_partition_root = true"
	if version >= publishesGenerated {
		// Else a table with a generated column could have no REPLICA IDENTITY FULL.
		options += ", publish_generated_columns = stored"
	}
	return fmt.Sprintf("CREATE PUBLICATION %s WITH (%s)", sqlIdent(name), options)
}

func (l *looked) lookPublications(ctx context.Context, q Querier, name string) error {
	oids := []uint32{l.self.OID}
	for _, p := range l.self.Leaves {
		oids = append(oids, p.OID)
	}
	raw, err := QueryOne[[]byte](ctx, q, publicationsSQL, oids, name)
	if err != nil {
		return fmt.Errorf("look up the publications of %s: %w", l.spec.Name.Quoted(), err)
	}
	p := &publications{name: name}
	if err := json.Unmarshal(raw, p); err != nil {
		return fmt.Errorf("look up the publications of %s: %w", l.spec.Name.Quoted(), err)
	}
	l.publications = p
	return nil
}

// joined reports whether a table is in the bridge's publication.
func (p *publications) joined(oid uint32) bool {
	return slices.ContainsFunc(p.Members, func(m member) bool { return m.Publication == p.name && m.OID == oid })
}

// stored reports whether the bridge's publication has stored generated columns.
// The bridge makes it so.
func (p *publications) stored() bool {
	return p.Version >= publishesGenerated && (p.Ours == nil || p.Ours.Stored)
}

// added returns what a table will be in the bridge's publication.
func (p *publications) added(oid uint32) member {
	m := member{Publication: p.name, OID: oid, Update: true, Delete: true, Stored: p.stored(), Plain: true}
	if p.Ours != nil {
		m.Update, m.Delete = p.Ours.Update, p.Ours.Delete
	}
	return m
}

// of returns what a holder of rows is in all its publications, with that of the
// bridge, into which it may yet come with the relation.
func (p *publications) of(oid uint32, joined bool) []member {
	var list []member
	for _, m := range p.Members {
		// A partition that is in it by itself will be published as its root.
		if m.OID == oid && (joined || m.Publication != p.name || p.Ours != nil && !p.Ours.Root) {
			list = append(list, m)
		}
	}
	if !slices.ContainsFunc(list, func(m member) bool { return m.Publication == p.name }) {
		list = append(list, p.added(oid))
	}
	return list
}

// holder is what has rows and a replica identity: a table, or a partition.
type holder struct {
	oid  uint32
	name Name
	// full is true for REPLICA IDENTITY FULL. identity has the columns of an index
	// that is the identity.
	full     bool
	identity []string
}

// identityChange is a replica identity that a table or partition may be given.
type identityChange struct {
	of      Name
	full    bool
	columns []string
}

// holders returns what holds the relation's rows, with the change made, if it is
// not nil. Only what is permanent counts: all else can't be published.
func (l *looked) holders(change *identityChange) []holder {
	var list []holder
	if o := l.self; o.Kind == "r" {
		h := holder{oid: o.OID, name: o.name(), full: o.Identity == identityFull}
		if !h.full {
			h.identity = l.names(l.identity())
		}
		list = append(list, h)
	}
	for _, p := range l.self.Leaves {
		if p.logged() {
			h := holder{oid: p.OID, name: p.name(), full: p.Full}
			if !h.full {
				h.identity = p.Columns
			}
			list = append(list, h)
		}
	}
	for i := range list {
		if change != nil && list[i].name == change.of {
			list[i].full, list[i].identity = change.full, change.columns
		}
	}
	return list
}

// names returns the names of the columns with these numbers.
func (l *looked) names(nums []int) []string {
	var names []string
	for _, num := range nums {
		if c := l.self.columnNum(num); c != nil {
			names = append(names, c.Name)
		}
	}
	return names
}

// refusal says why Postgres refuses the UPDATE or DELETE of a table or partition.
type refusal struct {
	member
	of  Name
	why string
	// stored is true if it is enough that the publication has stored generated
	// columns.
	stored bool
}

// writes names the statements that fail.
func (r refusal) writes() string {
	switch {
	case r.Update && r.Delete:
		return "UPDATE and DELETE"
	case r.Update:
		return "UPDATE"
	}
	return "DELETE"
}

// refusals returns what Postgres refuses of the relation's own writes once it is
// in the bridge's publication: see CheckCmdReplicaIdentity in its source. An INSERT
// is never refused. The change is as in holders.
func (l *looked) refusals(change *identityChange) []refusal {
	p := l.publications
	if p == nil || l.self.Persistence != "p" {
		return nil
	}
	joined := p.joined(l.self.OID)
	var list []refusal
	for _, h := range l.holders(change) {
		for _, m := range p.of(h.oid, joined) {
			if !m.Update && !m.Delete {
				continue
			}
			if r := l.refuses(h, m); r.why != "" {
				r.member, r.of = m, h.name
				list = append(list, r)
			}
		}
	}
	return list
}

func (l *looked) refuses(h holder, m member) refusal {
	lacking := func(from, all []string) []string {
		return slices.DeleteFunc(slices.Clone(from), func(name string) bool { return slices.Contains(all, name) })
	}
	if miss := lacking(m.Filter, h.identity); !h.full && len(miss) > 0 {
		return refusal{why: "the publication's row filter reads " + identList(miss) + ", and the replica identity lacks that"}
	}
	if m.Columns != nil {
		if h.full {
			return refusal{why: "the publication has a list of columns, which REPLICA IDENTITY FULL does not allow"}
		}
		if miss := lacking(h.identity, m.Columns); len(miss) > 0 {
			return refusal{why: "the publication's list of columns lacks " + identList(miss) + " of the replica identity"}
		}
	}
	if l.publications.Version >= publishesGenerated && m.Columns == nil {
		for _, c := range l.self.Columns {
			switch in := h.full || slices.Contains(h.identity, c.Name); {
			case !in || !c.Generated:
			case c.Virtual:
				return refusal{why: "its replica identity has " + quoteIdent(c.Name) + ", a virtual generated column, which Postgres can't publish"}
			case !m.Stored:
				return refusal{why: "its replica identity has " + quoteIdent(c.Name) + ", a generated column that the publication leaves out", stored: true}
			}
		}
	}
	if !h.full && len(h.identity) == 0 {
		return refusal{why: "it has no replica identity"}
	}
	return refusal{}
}

func identList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteIdent(n)
	}
	return strings.Join(quoted, ", ")
}

// unpublished reports whether the bridge's publication has a list of columns, and
// none of these is in it.
func (l *looked) unpublished(names []string) bool {
	return len(names) > 0 && l.publications != nil && slices.ContainsFunc(l.publications.Members, func(m member) bool {
		return m.Publication == l.publications.name && m.OID == l.self.OID && m.Columns != nil &&
			!slices.ContainsFunc(m.Columns, func(c string) bool { return slices.Contains(names, quoteIdent(c)) })
	})
}

// checkPublications adds an error if the bridge's publication makes the table's
// own writes fail, or would do so; and a warning for each publication of
// somebody else that does so already. It reports whether there is an error.
func (l *looked) checkPublications(key []int) bool {
	broken := false
	warned := make(map[string]bool)
	for _, r := range l.refusals(nil) {
		what := r.writes() + " of it"
		if r.of != l.self.name() {
			what = r.writes() + " of its partition " + r.of.Quoted()
		}
		if r.Publication != l.publications.name || !r.Plain {
			if !warned[r.Publication] {
				warned[r.Publication] = true
				l.warn(l.self, fmt.Sprintf("Postgres refuses %s already, in publication %s: %s", what, quoteIdent(r.Publication), r.why),
					fmt.Sprintf("correct the publication or the replica identity of %s; the bridge did not make this, and changes neither", r.of.Quoted()))
			}
			continue
		}
		if broken {
			continue
		}
		broken = true
		format, ways := "Postgres would refuse %s in publication %s: %s", l.waysOut(r, key)
		if l.publications.joined(l.self.OID) {
			format = "Postgres refuses %s in publication %s: %s"
			ways = append(ways, way{sql: fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE %s", sqlIdent(r.Publication), l.self.name().SQL())})
		}
		l.unfitIdentity(fmt.Sprintf(format, what, quoteIdent(r.Publication), r.why), ways...)
		l.problems[len(l.problems)-1].err = ErrBreaksWrites
	}
	return broken
}

// waysOut returns what makes the table fit for the bridge's publication.
func (l *looked) waysOut(r refusal, key []int) []way {
	var ways []way
	if r.stored {
		ways = append(ways, way{sql: l.publishStored()})
	}
	switch {
	case key == nil:
		return append(ways, way{sql: fmt.Sprintf("ALTER TABLE %s ADD PRIMARY KEY (…)", l.self.name().SQL())})
	case r.of != l.self.name():
		return append(ways, l.leafWays(r.of, key)...)
	}
	return append(ways, l.identityWays(key)...)
}

// publishStored returns the statement that publishes stored generated columns.
func (l *looked) publishStored() string {
	return fmt.Sprintf("ALTER PUBLICATION %s SET (publish_generated_columns = stored)", sqlIdent(l.publications.name))
}

// harmless returns the ways that break no write of the table, neither in the
// bridge's publication nor in others. Where it takes generated columns in the
// bridge's publication, the way says so. If none is left, polling is.
func (l *looked) harmless(ways ...way) []way {
	var list []way
	for _, w := range ways {
		if w.change == nil || l.publications == nil {
			list = append(list, w)
			continue
		}
		before, stored, bad := l.refusals(nil), false, false
		for _, r := range l.refusals(w.change) {
			old := slices.ContainsFunc(before, func(b refusal) bool { return b.of == r.of && b.Publication == r.Publication })
			switch ours := r.Publication == l.publications.name; {
			case ours && r.stored && r.of == w.change.of:
				stored = true
			case !old, ours && r.of == w.change.of:
				bad = true
			}
		}
		if stored {
			w = way{sql: l.publishStored() + "; " + w.sql}
		}
		if !bad {
			list = append(list, w)
		}
	}
	if len(list) == 0 {
		list = append(list, way{sql: "remove capture=wal, to poll it"})
	}
	return list
}
