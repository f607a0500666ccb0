package wal

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ours marks a publication that the bridge made itself, of which it may also
// take tables out.
const ours = "made by the lockstep bridge"

const publicationSQL = `
SELECT p.puballtables, p.pubviaroot, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate,
       COALESCE(obj_description(p.oid, 'pg_publication') = $2, false) AND pg_has_role(p.pubowner, 'USAGE')
  FROM pg_catalog.pg_publication p WHERE p.pubname = $1`

// publishedSQL lists a publication's tables. Postgres 14 has no columns and
// filters, and no schemas, whose tables are in it without being named.
const publishedSQL = `
SELECT schemaname::text, tablename::text, COALESCE(to_jsonb(t)->'attnames', '[]'), COALESCE(to_jsonb(t)->>'rowfilter', ''),
       concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin, CASE WHEN r.oid IS NULL THEN
         (SELECT string_agg(objid::text, ' ' ORDER BY objid) FROM pg_catalog.pg_depend
           WHERE classid = to_regclass('pg_catalog.pg_publication_namespace') AND refclassid = 'pg_catalog.pg_publication'::regclass AND refobjid = p.oid) END)
  FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p USING (pubname)
  LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = to_regclass(format('%I.%I', schemaname, tablename))
 WHERE pubname = $1`

// namedSQL is publishedSQL for a publication whose tables are all named, and none
// of them a partition, or published as its partitions; else allNamedSQL is
// false. It waits for no lock: the view opens every table (since Postgres 16), and
// those that have a filter. Filters are asked for one by one.
const namedSQL = `
SELECT n.nspname::text, c.relname::text, to_jsonb(ARRAY(
         SELECT a.attname FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND CASE WHEN to_jsonb(r)->>'prattrs' IS NULL THEN a.attgenerated = '' OR a.attgenerated = 's' AND to_jsonb(p)->>'pubgencols' = 's'
                ELSE to_jsonb(r)->'prattrs' @> to_jsonb(a.attnum) END ORDER BY a.attnum)),
       to_jsonb(r)->>'prqual' IS NOT NULL, concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin)
  FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = $1`

const allNamedSQL = `
SELECT NOT EXISTS (
  SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $1 AND (p.puballtables
     OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
                 WHERE r.prpubid = p.oid AND (c.relispartition OR c.relkind = 'p' AND NOT p.pubviaroot))
     OR EXISTS (SELECT FROM pg_catalog.pg_depend
                 WHERE classid = to_regclass('pg_catalog.pg_publication_namespace') AND refclassid = 'pg_catalog.pg_publication'::regclass AND refobjid = p.oid)))`

const filterSQL = `
SELECT COALESCE(pg_get_expr(r.prqual, r.prrelid), '')
  FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
 WHERE p.pubname = $1 AND r.prrelid = to_regclass($2)`

// publication is the one that the slot is read with.
type publication struct {
	exists, all, viaRoot, own bool
	actions                   []string
	tables                    map[relation.Name]published
}

// published is a table of a publication: all its columns where none are named,
// all its rows where there is no filter.
type published struct {
	columns []string
	filter  string
	// version changes when the table, or its schema, is taken out and put back,
	// and when its filter, its columns or the actions that are published change.
	version string
	// err is set where another session has locked the table, so that its filter
	// can't be told.
	err error
}

// loadPublication looks the publication up, with the filters of these relations.
func (s *session) loadPublication(ctx context.Context, relations ...*Relation) (*publication, error) {
	p := &publication{tables: make(map[relation.Name]published)}
	rows, err := s.c.pool.Query(ctx, publicationSQL, s.c.opt.Name, ours)
	if err != nil {
		return nil, fmt.Errorf("look up publication: %w", err)
	}
	var ins, upd, del, trunc bool
	_, err = pgx.ForEachRow(rows, []any{&p.all, &p.viaRoot, &ins, &upd, &del, &trunc, &p.own}, func() error {
		p.exists = true
		for action, yes := range map[string]bool{"insert": ins, "update": upd, "delete": del, "truncate": trunc} {
			if yes {
				p.actions = append(p.actions, action)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up publication: %w", err)
	}
	named, err := relation.QueryOne[bool](ctx, s.c.pool, allNamedSQL, s.c.opt.Name)
	if err != nil {
		return nil, fmt.Errorf("look up publication's tables: %w", err)
	}
	if named {
		return p, s.loadNamed(ctx, p, relations)
	}
	if rows, err = s.c.pool.Query(ctx, publishedSQL, s.c.opt.Name); err != nil {
		return nil, fmt.Errorf("look up publication's tables: %w", err)
	}
	var n relation.Name
	var t published
	_, err = pgx.ForEachRow(rows, []any{&n.Schema, &n.Table, &t.columns, &t.filter, &t.version}, func() error {
		p.tables[n] = published{columns: slices.Clone(t.columns), filter: t.filter, version: t.version}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up publication's tables: %w", err)
	}
	return p, nil
}

// loadNamed finds the tables of a publication that names them all.
func (s *session) loadNamed(ctx context.Context, p *publication, relations []*Relation) error {
	rows, err := s.c.pool.Query(ctx, namedSQL, s.c.opt.Name)
	if err != nil {
		return fmt.Errorf("look up publication's tables: %w", err)
	}
	var n relation.Name
	var t published
	var filtered bool
	var ask []relation.Name
	_, err = pgx.ForEachRow(rows, []any{&n.Schema, &n.Table, &t.columns, &filtered, &t.version}, func() error {
		p.tables[n] = published{columns: slices.Clone(t.columns), version: t.version}
		if filtered && slices.ContainsFunc(relations, func(r *Relation) bool { return r.spec.Name == n }) {
			ask = append(ask, n)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up publication's tables: %w", err)
	}
	for _, n := range ask {
		t := p.tables[n]
		t.filter, err = relation.QueryOne[string](ctx, s.c.pool, filterSQL, s.c.opt.Name, n.SQL())
		switch {
		case relation.IsLocked(err):
			t.err = fmt.Errorf("look up its filter: %w", err)
		case errors.Is(err, pgx.ErrNoRows): // taken out since
			delete(p.tables, n)
			continue
		case err != nil:
			return fmt.Errorf("look up the filter of %s: %w", n.Quoted(), err)
		}
		p.tables[n] = t
	}
	return nil
}

// publish makes the publication, or brings it up to date with the relations
// that were found fit for it. A relation that can't be added is taken out.
func (s *session) publish(ctx context.Context) error {
	var err error
	if s.publication, err = s.loadPublication(ctx, s.c.relations...); err != nil {
		return err
	}
	p := s.publication
	name := pgx.Identifier{s.c.opt.Name}.Sanitize()
	if !p.exists {
		err := s.exec(ctx, relation.CreatePublication(s.c.opt.Name, s.src.Version))
		if errors.Is(err, errRival) {
			return err
		}
		if err != nil {
			return fmt.Errorf("make publication %s: %w; if the role may not, let the owner of the tables run what bridge sql prints", s.c.opt.Name, err)
		}
		if err := s.exec(ctx, "COMMENT ON PUBLICATION "+name+" IS '"+ours+"'"); err != nil {
			return fmt.Errorf("make publication %s: %w", s.c.opt.Name, err)
		}
		s.c.log.Info().Str("publication", s.c.opt.Name).Msg("publication made")
	}
	for _, f := range s.feedsByName() {
		n := f.r.spec.Name
		if _, ok := p.tables[n]; ok {
			f.known = true
			continue
		}
		// ONLY: a table that has come to inherit from it must not be published.
		err := s.exec(ctx, "ALTER PUBLICATION "+name+" ADD TABLE ONLY "+n.SQL())
		if errors.Is(err, errRival) {
			return err
		}
		if err != nil {
			s.leave(f, publicationError(err, f.r.spec, s.c.opt.Name))
			continue
		}
		f.r.log.Info().Msg("relation added to the publication")
	}
	s.unpublish(ctx, name)
	if s.publication, err = s.loadPublication(ctx, s.c.relations...); err != nil {
		return err
	}
	for _, f := range s.feedsByName() {
		if err := s.publication.check(f); err != nil {
			s.leave(f, err)
			continue
		}
		if p := f.r.spec.LeftOut(s.c.opt.Name, s.publication.actions); p != nil {
			f.r.log.Warn().Str("reason", p.Error()).Msg("relation captured with a problem")
		}
	}
	return nil
}

// ownTableSQL asks whether a publication of the bridge's own names a table.
const ownTableSQL = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
  WHERE p.pubname = $1 AND r.prrelid = to_regclass($2) AND obj_description(p.oid, 'pg_publication') = $3 AND pg_has_role(p.pubowner, 'USAGE'))`

// spare takes a table out of a publication of the bridge's own, in which the
// table's own writes fail since it changed. What somebody else put in, only they
// take out; the relation's error says how.
func (s *session) spare(ctx context.Context, r *Relation) {
	in, err := relation.QueryOne[bool](ctx, s.c.pool, ownTableSQL, s.c.opt.Name, r.spec.Name.SQL(), ours)
	if err != nil || !in {
		return // it is asked again with the relation
	}
	err = s.exec(ctx, "ALTER PUBLICATION "+pgx.Identifier{s.c.opt.Name}.Sanitize()+" DROP TABLE "+r.spec.Name.SQL())
	if err != nil {
		r.log.Error().Err(err).Msg("the table's own writes fail in the publication, and taking it out failed, trying again")
		return
	}
	r.log.Error().Str("publication", s.c.opt.Name).Msg("table taken out of the publication, because its own writes failed in it")
}

// unpublish takes tables out of a publication of the bridge's own that are no
// longer captured, so that they cost nothing and keep no duty.
func (s *session) unpublish(ctx context.Context, name string) {
	if !s.publication.own || s.publication.all {
		return
	}
	for n := range s.publication.tables {
		if slices.ContainsFunc(s.c.relations, func(r *Relation) bool { return r.spec.Name == n }) {
			continue
		}
		if err := s.exec(ctx, "ALTER PUBLICATION "+name+" DROP TABLE "+n.SQL()); err != nil {
			s.c.log.Warn().Err(err).Str("table", n.String()).Msg("removing a table that is no longer captured from the publication failed")
			continue
		}
		s.c.log.Info().Str("table", n.String()).Msg("table no longer captured, removed from the publication")
	}
}

func (s *session) exec(ctx context.Context, sql string) error {
	conn, err := s.c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return rival(pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// An autovacuum makes way for who has waited for deadlock_timeout, a second.
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql)
		return err
	}))
}

// publicationError says what to do where the role may not change publications.
func publicationError(err error, spec relation.Spec, publication string) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("it is not in publication %s, and this role may not add it (%s); as the owner of the table, run the SQL that this prints: %s", publication, pg.Message, relation.SetupCommand(spec))
	}
	return fmt.Errorf("add it to publication %s: %w", publication, err)
}

// check says whether the publication has what the feed needs, and leaves the
// feed's relation with the columns that are published.
func (p *publication) check(f *feed) error {
	t, ok := p.tables[f.r.spec.Name]
	if !ok {
		return errors.New("it is not in the publication: a partition is published through its root; name the root in BRIDGE_TABLES")
	}
	if t.err != nil {
		return t.err
	}
	if f.rel.Kind == 'p' && !p.viaRoot {
		return errors.New("its publication has the partitions instead of the table; to do: ALTER PUBLICATION … SET (publish_via_partition_root = true)")
	}
	columns := t.columns
	if len(columns) == 0 {
		for _, c := range f.rel.Columns {
			columns = append(columns, c.Name)
		}
	}
	columns = slices.DeleteFunc(slices.Clone(columns), func(name string) bool {
		i := slices.IndexFunc(f.rel.Columns, func(c relation.Column) bool { return c.Name == name })
		return i < 0 || f.rel.Columns[i].Generated && f.src.Version < 180000
	})
	rel, err := f.rel.Only(columns)
	if err != nil {
		return err
	}
	f.rel, f.filter = rel, t.filter
	hash := fnv.New64a()
	leaves := rel.Leaves
	if !f.r.mirrors() { // each new partition would make it read all rows again
		leaves = nil
	}
	_, _ = fmt.Fprintf(hash, "%s%q", t.version, leaves)
	f.published = strconv.FormatUint(hash.Sum64(), 36)
	return nil
}
