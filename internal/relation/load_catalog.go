package relation

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"bridge/internal/view"

	"github.com/jackc/pgx/v5"
)

// coarseSQL is Column.Coarse of column a, with base type b. An operator class with
// support function 4 (equalimage) promises that equal values are the same, byte for
// byte; a collation may break that. The one of bpchar promises it, too, and is
// wrong without a length: 'a' and 'a ' are equal. An enum uses that of anyenum. A
// type without an operator class of its own, such as varchar, may use that of
// another; arrays, ranges and composites have none that promises it.
const coarseSQL = `(
    b.oid = 'pg_catalog.bpchar'::regtype AND a.atttypmod < 0
    OR EXISTS (SELECT FROM pg_catalog.pg_collation co WHERE co.oid = a.attcollation AND NOT co.collisdeterministic)
    OR NOT coalesce((
      SELECT EXISTS (SELECT FROM pg_catalog.pg_amproc p
                      WHERE p.amprocfamily = oc.opcfamily AND p.amproclefttype = oc.opcintype AND p.amprocrighttype = oc.opcintype AND p.amprocnum = 4)
        FROM pg_catalog.pg_opclass oc
       WHERE oc.opcmethod = 403 AND oc.opcdefault AND (oc.opcintype = b.oid OR b.typtype = 'e' AND oc.opcintype = 'pg_catalog.anyenum'::regtype OR EXISTS (
         SELECT FROM pg_catalog.pg_cast k WHERE k.castsource = b.oid AND k.casttarget = oc.opcintype AND k.castmethod = 'b' AND k.castcontext = 'i'))
       ORDER BY oc.opcintype <> b.oid LIMIT 1), false))`

// catalogSQL returns the relation and, for a view, every relation below it, one
// JSON object each. Functions such as has_table_privilege see the catalog as it is
// now, not as the snapshot has it. For a relation dropped meanwhile they return
// null.
const catalogSQL = `
WITH RECURSIVE src(oid, relkind, col) AS (
  SELECT c.oid, c.relkind, 0
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = $1 AND c.relname = $2
  UNION
  SELECT k.oid, k.relkind, d.refobjsubid
    FROM src s
    JOIN pg_catalog.pg_rewrite r ON r.ev_class = s.oid AND r.ev_type = '1' AND s.relkind = 'v'
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
     AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> s.oid
    JOIN pg_catalog.pg_class k ON k.oid = d.refobjid
), objects AS (
  SELECT oid, array_agg(DISTINCT col) AS used FROM src GROUP BY oid
)
SELECT json_build_object(
  'schema', n.nspname, 'table', c.relname, 'oid', c.oid::int8, 'kind', c.relkind,
  'database', current_database(), 'search_path', current_setting('search_path'), 'persistence', c.relpersistence, 'identity', c.relreplident, 'tuples', c.reltuples, 'used', o.used, 'role', current_user,
  'usage', has_schema_privilege(n.oid, 'USAGE'),
  'tombstones', c.relkind = 'r' AND (coalesce(obj_description(c.oid, 'pg_class'), '') LIKE '` + markTombstones + `%' OR EXISTS (
    SELECT FROM pg_catalog.pg_proc f WHERE f.pronamespace = c.relnamespace AND f.proname = c.relname AND f.pronargs = 0
       AND strpos(f.prosrc, $bury$` + buryHead + `$bury$) > 0)),
  'definition', CASE WHEN c.relkind = 'v' THEN md5(pg_get_viewdef(c.oid)) END,
  'query', q.query, 'functions', (
    SELECT json_agg(json_build_object('oid', f.oid::int8, 'name', f.proname, 'args', f.pronargs, 'volatile', f.provolatile = 'v',
             'builtin', f.pronamespace = 'pg_catalog'::regnamespace))
      FROM pg_catalog.pg_proc f WHERE f.oid IN (SELECT m[1]::oid FROM regexp_matches(q.query, ':(?:op)?funcid (\d+)', 'g') m)),
  'children', c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
  'select', has_table_privilege(c.oid, 'SELECT'), 'policies', row_security_active(c.oid),
  'hidden_rows', row_security_active(c.oid) AND NOT (
    EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('*', 'r')
       AND (0 = ANY (p.polroles) OR EXISTS (SELECT FROM unnest(p.polroles) x WHERE pg_has_role(x, 'USAGE')))
       AND (p.polqual IS NULL OR pg_get_expr(p.polqual, p.polrelid) = 'true'))
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND NOT p.polpermissive AND p.polcmd IN ('*', 'r'))),
  'columns', (
    SELECT json_agg(json_build_object('num', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
             'oid', a.atttypid::int8, 'base', b.oid::int8, 'base_name', b.typname, 'base_type', format_type(b.oid, -1),
             'fixed', b.typlen > 0, 'collation', (
               SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname)
                 FROM pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
                WHERE co.oid = a.attcollation AND co.collname <> 'default'),
             'coarse', ` + coarseSQL + `,
             'dims', a.attndims, 'not_null', a.attnotnull, 'generated', a.attgenerated <> '', 'virtual', a.attgenerated = 'v', 'comment', coalesce(col_description(c.oid, a.attnum), ''),
             'select', has_column_privilege(c.oid, a.attnum, 'SELECT')) ORDER BY a.attnum)
      FROM pg_catalog.pg_attribute a CROSS JOIN LATERAL (
        WITH RECURSIVE d(oid, typname, typlen, typtype, typbasetype) AS (
          SELECT t.oid, t.typname, t.typlen, t.typtype, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
          UNION ALL
          SELECT t.oid, t.typname, t.typlen, t.typtype, t.typbasetype FROM d JOIN pg_catalog.pg_type t ON t.oid = d.typbasetype WHERE d.typtype = 'd')
        SELECT * FROM d WHERE typtype <> 'd') b
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'indexes', (
    SELECT json_agg(json_build_object('name', ic.relname, 'method', am.amname, 'unique', i.indisunique,
             'primary', i.indisprimary, 'valid', i.indisvalid, 'immediate', i.indimmediate, 'identity', i.indisreplident,
             'whole', i.indpred IS NULL AND i.indexprs IS NULL, 'columns', ARRAY(
               SELECT k FROM unnest(i.indkey::int2[]) WITH ORDINALITY u(k, place)
                WHERE place <= i.indnkeyatts ORDER BY place)) ORDER BY i.indisprimary DESC, ic.relname)
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
      JOIN pg_catalog.pg_am am ON am.oid = ic.relam
     WHERE i.indrelid = c.oid),
  'leaves', CASE WHEN c.relkind = 'p' THEN (
    SELECT json_agg(json_build_object('schema', ln.nspname, 'table', lc.relname, 'oid', lc.oid::int8, 'kind', lc.relkind, 'persistence', lc.relpersistence, 'tuples', lc.reltuples, 'full', lc.relreplident = 'f', 'file', lc.oid::text || '/' || lc.relfilenode::text, 'columns', ARRAY(
             SELECT la.attname FROM pg_catalog.pg_attribute la
              WHERE la.attrelid = lc.oid AND la.attnum > 0 AND NOT la.attisdropped AND (lc.relreplident = 'f' OR EXISTS (
                SELECT FROM pg_catalog.pg_index li WHERE li.indrelid = lc.oid AND li.indimmediate AND li.indisvalid
                   AND CASE lc.relreplident WHEN 'd' THEN li.indisprimary WHEN 'i' THEN li.indisreplident ELSE false END
                   AND la.attnum = ANY ((li.indkey::int2[])[0:li.indnkeyatts - 1]))))) ORDER BY lc.oid)
      FROM pg_catalog.pg_partition_tree(c.oid) lt JOIN pg_catalog.pg_class lc ON lc.oid = lt.relid JOIN pg_catalog.pg_namespace ln ON ln.oid = lc.relnamespace
     WHERE lt.isleaf AND lc.relkind IN ('r', 'f')) END,
  'triggers', (
    SELECT json_agg(json_build_object('name', t.tgname, 'type', t.tgtype, 'enabled', t.tgenabled,
             'all_columns', t.tgattr::text = '', 'source', f.prosrc,
             'function', json_build_object('schema', fn.nspname, 'table', f.proname),
             'condition', CASE WHEN t.tgqual IS NOT NULL THEN substring(pg_get_triggerdef(t.oid) FROM ' WHEN (.*) EXECUTE FUNCTION ') END) ORDER BY t.tgname)
      FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace
     WHERE t.tgrelid = c.oid AND NOT t.tgisinternal))
  FROM objects o JOIN pg_catalog.pg_class c USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN LATERAL (SELECT r.ev_action::text AS query FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type = '1' AND c.relkind = 'v') q ON true
 ORDER BY NOT (n.nspname = $1 AND c.relname = $2), n.nspname, c.relname`

// object is a table or view in the catalog.
type object struct {
	Schema, Table string
	OID           uint32
	Kind          string
	Persistence   string
	// Identity is pg_class.relreplident.
	Identity string
	Tuples   float64
	// Used has the numbers of the columns that the view reads; 0 may be among them.
	Used           []int
	Role, Database string
	SearchPath     string `json:"search_path"`
	// Usage is true if the role may use the schema.
	Usage bool
	// Definition identifies a view's query. It is empty for a table.
	Definition string
	// Query is pg_rewrite.ev_action of a view, Functions what it calls.
	Query     string
	Functions []function
	// Tombstones is true for a table of tombstones that the SQL of SetupSQL made.
	Tombstones bool
	// Children is true for a table that others inherit from, not as partitions.
	Children bool
	// Select is true if the role may read, and lock, all of it.
	Select bool
	// Policies is true if row level security applies to the role, HiddenRows if
	// that may hide rows.
	Policies   bool
	HiddenRows bool `json:"hidden_rows"`
	Columns    []column
	Indexes    []index
	// Leaves are the partitions of a partitioned table that hold its rows.
	Leaves   []leaf
	Triggers []trigger
}

// leaf is a partition that holds rows. It has its own replica identity.
type leaf struct {
	Schema, Table     string
	OID               uint32
	Kind, Persistence string
	Tuples            float64
	// Full is true for REPLICA IDENTITY FULL. Columns are the columns of an old row
	// that the WAL has.
	Full    bool
	Columns []string
	// File changes when another partition takes this one's place, or when the
	// partition is truncated.
	File string
}

func (p leaf) name() Name { return Name{Schema: p.Schema, Table: p.Table} }

// logged reports whether its changes are in the WAL.
func (p leaf) logged() bool { return p.Kind == "r" && p.Persistence == "p" }

type column struct {
	Num       int
	Name      string
	Type      string
	OID, Base uint32
	// BaseName is pg_type.typname of Base, BaseType its name in SQL.
	BaseName string `json:"base_name"`
	BaseType string `json:"base_type"`
	// Collation is empty for the default of the database.
	Collation string
	// Fixed is true if all values of the type have the same length.
	Fixed bool
	// Coarse is Column.Coarse.
	Coarse  bool
	Dims    int
	NotNull bool `json:"not_null"`
	// Generated is true if the column is computed from other columns, Virtual if it
	// is not even stored.
	Generated, Virtual bool
	Select             bool
	Comment            string
	// protocol is Column.Protocol.
	protocol bool
}

// function is a function that a view calls.
type function struct {
	OID               uint32
	Name              string
	Args              int
	Volatile, Builtin bool
}

type index struct {
	Name, Method                      string
	Unique, Primary, Valid, Immediate bool
	// Identity is true for the index of REPLICA IDENTITY USING INDEX.
	Identity bool
	// Whole is true if the index has all rows, and only columns, no expressions.
	Whole bool
	// Columns has the numbers of the columns, without those of INCLUDE.
	Columns []int
}

type trigger struct {
	Name    string
	Type    int
	Enabled string
	// AllColumns is false for UPDATE OF.
	AllColumns bool `json:"all_columns"`
	// Source is the source of the trigger's function, or its C symbol.
	Source   string
	Function Name
	// Condition is what stands after WHEN, empty if the trigger has none.
	Condition string
}

func (o *object) name() Name { return Name{Schema: o.Schema, Table: o.Table} }

// analyzed reports whether Postgres has counted the rows. It counts those of a
// partitioned table in the partitions.
func (o *object) analyzed() bool {
	if o.Kind == "p" {
		return o.Tuples >= 0 || !slices.ContainsFunc(o.Leaves, func(p leaf) bool { return p.Tuples < 0 })
	}
	return o.Tuples >= 0
}

func (o *object) column(name string) *column {
	for i := range o.Columns {
		if o.Columns[i].Name == name {
			return &o.Columns[i]
		}
	}
	return nil
}

// keyColumns returns the numbers of the columns of the primary key, else of the first
// unique index.
func (o *object) keyColumns() []int {
	for _, ix := range o.Indexes { // the primary key is the first
		if ix.Unique && ix.Whole && ix.Valid {
			return ix.Columns
		}
	}
	return nil
}

// inPrimary reports whether the column is in the primary key. Any other column may
// become NULL, if it is not already.
func (o *object) inPrimary(num int) bool {
	return slices.ContainsFunc(o.Indexes, func(ix index) bool { return ix.Primary && slices.Contains(ix.Columns, num) })
}

func (o *object) columnNum(num int) *column {
	for i := range o.Columns {
		if o.Columns[i].Num == num {
			return &o.Columns[i]
		}
	}
	return nil
}

// looked is what one look at the catalog found, and the problems in it.
type looked struct {
	spec    Spec
	self    *object
	sources []*object
	// definition identifies the queries of all views, catalog has them.
	definition string
	catalog    view.Catalog
	// vanish is set by checkView if rows of a view can change or vanish without a
	// new transaction ID.
	vanish bool
	// publications are nil unless they were looked up.
	publications *publications

	problems []*Problem
}

// look reads the catalog. Its error is a *Problem if there is no such relation.
func look(ctx context.Context, q Querier, spec Spec) (*looked, error) {
	if spec.Txid == "" {
		spec.Txid = defaultTxid
	}
	l := &looked{spec: spec, catalog: view.Catalog{Relations: map[uint32]view.Relation{}, Functions: map[uint32]view.Function{}}}
	rows, err := q.Query(ctx, catalogSQL, spec.Name.Schema, spec.Name.Table)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", spec.Name.Quoted(), err)
	}
	raws, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", spec.Name.Quoted(), err)
	}
	for _, raw := range raws {
		o := new(object)
		if err := json.Unmarshal(raw, o); err != nil {
			return nil, fmt.Errorf("look up %s: %w", spec.Name.Quoted(), err)
		}
		l.definition += o.Definition
		l.catalog.Relations[o.OID] = view.Relation{Query: o.Query, Marks: o.marksDeleted(), Key: o.keyColumns()}
		for _, f := range o.Functions {
			l.catalog.Functions[f.OID] = view.Function{Name: f.Name, Builtin: f.Builtin, Volatile: f.Volatile, Args: f.Args}
		}
		switch {
		case o.name() == spec.Name:
			l.self = o
		case strings.Contains("rpmf", o.Kind):
			l.sources = append(l.sources, o)
		}
	}
	if l.self == nil {
		return nil, NotFound(ctx, q, spec.Name, nil)
	}
	if l.self.Kind != "v" {
		l.sources = []*object{l.self}
	}
	return l, nil
}

const namesSQL = `
SELECT n.nspname::text, c.relname::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
   AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
 ORDER BY n.nspname <> $1, n.nspname <> 'public', n.nspname, c.relname LIMIT 10000`

// NotFound returns the Problem of a relation that does not exist. It suggests a
// similar name that is not one of others. If that query fails, NotFound returns
// its error.
func NotFound(ctx context.Context, q Querier, n Name, others []Name) error {
	p := &Problem{
		Relation: n, Severity: SeverityError, What: "there is no such table or view", shape: true, err: ErrNotFound,
		Do: "create it, or correct the name in BRIDGE_TABLES; names without double quotes are folded to lower case, as in SQL",
	}
	rows, err := q.Query(ctx, namesSQL, n.Schema)
	if err != nil {
		return fmt.Errorf("list relations: %w", err)
	}
	names, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Name, error) {
		var n Name
		err := row.Scan(&n.Schema, &n.Table)
		return n, err
	})
	if err != nil {
		return fmt.Errorf("list relations: %w", err)
	}
	names = slices.DeleteFunc(names, func(c Name) bool { return slices.Contains(others, c) })
	if near, ok := nearestName(n, names); ok {
		p.Do = "did you mean " + near.Quoted() + "? Write it like this in BRIDGE_TABLES"
		if strings.EqualFold(near.Table, n.Table) && strings.Contains(near.Quoted(), `"`) {
			p.Do += ", with the double quotes: without them, names are folded to lower case, as in SQL"
		}
	}
	return p
}

// nearestName returns the name that was probably meant. It prefers a name that
// differs only in case, then the same table in another schema, then a similar
// table. The first of names wins.
func nearestName(n Name, names []Name) (Name, bool) {
	for _, c := range names {
		if strings.EqualFold(c.Schema, n.Schema) && strings.EqualFold(c.Table, n.Table) {
			return c, true
		}
	}
	for _, c := range names {
		if strings.EqualFold(c.Table, n.Table) {
			return c, true
		}
	}
	here, anywhere := make([]string, 0, len(names)), make(map[string]Name, len(names))
	for _, c := range names {
		if c.Schema == n.Schema {
			here = append(here, c.Table)
		}
		if _, ok := anywhere[c.Table]; !ok {
			anywhere[c.Table] = c
		}
	}
	if near := nearest(n.Table, here); near != "" {
		return Name{Schema: n.Schema, Table: near}, true
	}
	near := nearest(n.Table, slices.Sorted(maps.Keys(anywhere)))
	return anywhere[near], near != ""
}
