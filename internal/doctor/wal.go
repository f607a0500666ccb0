package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
)

const walSQL = `
SELECT current_setting('wal_level'), r.rolreplication OR r.rolsuper, has_database_privilege(current_database(), 'CREATE'),
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_catalog.pg_replication_slots)::int,
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int,
       current_setting('max_slot_wal_keep_size'),
       COALESCE(s.slot_type || ' ' || COALESCE(s.plugin, '') || ' ' || COALESCE(s.database, ''), ''), COALESCE(s.wal_status, ''),
       CASE WHEN NOT pg_is_in_recovery() THEN COALESCE(pg_current_wal_lsn() - s.restart_lsn, 0) ELSE 0 END::int8,
       p.oid IS NOT NULL, array_remove(ARRAY[CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
         CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END], NULL)
  FROM pg_catalog.pg_roles r LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1
  LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $1
 WHERE r.rolname = current_user`

// wal checks what capture=wal needs of the server. Without such a relation, it
// looks for a slot that is left over.
func (r *run) wal(ctx context.Context, conn *pgx.Conn, specs []relation.Spec) error {
	if !slices.ContainsFunc(specs, byWAL) {
		return r.idleSlot(ctx, conn)
	}
	var level, keep, slot, status string
	var replication, create, published bool
	var slots, senders int
	var kept int64
	var sent []string
	err := conn.QueryRow(ctx, walSQL, r.cfg.Name).Scan(&level, &replication, &create, &slots, &senders, &keep, &slot, &status, &kept, &published, &sent)
	if err != nil {
		return err
	}
	if r.source.InRecovery {
		r.fail(AreaPostgres, "", "Postgres is a standby, but capture=wal needs the primary", "name the primary in DATABASE_URL, or poll")
	}
	if level != "logical" {
		r.fail(AreaPostgres, "", "wal_level is "+level+", but capture=wal needs logical", "ALTER SYSTEM SET wal_level = logical, then restart Postgres")
	}
	if !replication {
		r.fail(AreaPostgres, "", "the role may not read the WAL", fmt.Sprintf("as a superuser: ALTER ROLE %s REPLICATION", pgx.Identifier{r.Postgres.Role}.Sanitize()))
	}
	switch want := "logical pgoutput " + r.Postgres.Database; {
	case slot == "" && slots < 1:
		r.fail(AreaPostgres, "", "all replication slots are in use", "raise max_replication_slots, or drop a slot that nobody reads; see pg_replication_slots")
	case slot == "":
	case slot != want:
		r.fail(AreaPostgres, "BRIDGE_NAME", fmt.Sprintf("the replication slot %s is not the bridge's (%s)", r.cfg.Name, slot), "choose another BRIDGE_NAME")
	case status == "lost":
		r.warn(AreaPostgres, "", "Postgres has removed WAL that the slot needed: the bridge will make a new slot, and compare every relation with its stream", "raise max_slot_wal_keep_size, or stop the bridge for shorter times")
	case r.cfg.MaxLag > 0 && kept > r.cfg.MaxLag:
		r.warn(AreaPostgres, "BRIDGE_SLOT_MAX_LAG", fmt.Sprintf("Postgres keeps %d MiB of WAL for the slot, more than BRIDGE_SLOT_MAX_LAG (%d MiB): the bridge will drop it, and compare every relation with its stream; a relation with history=log or actions= loses the changes in that WAL, and is read as it is now",
			kept>>20, r.cfg.MaxLag>>20), "raise BRIDGE_SLOT_MAX_LAG until the bridge has caught up")
	}
	if senders < 1 {
		r.fail(AreaPostgres, "", "all WAL senders are in use", "raise max_wal_senders; see pg_stat_replication")
	}
	if keep == "-1" {
		r.warn(AreaPostgres, "", "max_slot_wal_keep_size is not set: while no bridge runs, Postgres keeps WAL for the slot until the disk is full (BRIDGE_SLOT_MAX_LAG works only while a bridge runs)",
			"ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf()")
	}
	if !published && !create {
		r.fail(AreaPostgres, "", fmt.Sprintf("there is no publication %s, and the role may not create it", r.cfg.Name), "as the owner of each relation, run what bridge sql prints for it; the owner needs CREATE on the database")
	}
	for _, s := range specs {
		if !published || !byWAL(s) {
			continue
		}
		if p := s.LeftOut(r.cfg.Name, sent); p != nil {
			r.warn(AreaRelation, p.Relation.Quoted(), p.What, p.Do)
		}
	}
	return r.published(ctx, conn, specs, published)
}

func byWAL(s relation.Spec) bool { return s.Capture == relation.CaptureWAL }

const idleSlotSQL = `
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_replication_slots
   WHERE slot_name = $1 AND slot_type = 'logical' AND plugin = 'pgoutput' AND database = current_database() AND NOT active)`

// idleSlot warns about a slot that no relation needs any more. One that is read is
// another bridge's, which has another BRIDGE_TABLES.
func (r *run) idleSlot(ctx context.Context, conn *pgx.Conn) error {
	if r.wrongTables() {
		return nil
	}
	var idle bool
	if err := conn.QueryRow(ctx, idleSlotSQL, r.cfg.Name).Scan(&idle); err != nil || !idle {
		return err
	}
	r.warn(AreaPostgres, "BRIDGE_NAME", fmt.Sprintf("no relation has capture=wal, but Postgres keeps WAL for the replication slot %s, which nobody reads", r.cfg.Name),
		fmt.Sprintf("if no bridge that is away now needs it: SELECT pg_drop_replication_slot('%s')", r.cfg.Name))
	return nil
}

// publishedSQL has no row for what is not a table. It lists the tables above a
// partition, the nearest first.
const publishedSQL = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1 AND schemaname = $2 AND tablename = $3),
       pg_has_role(c.relowner, 'USAGE') AND ($4 = false OR EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $1 AND pg_has_role(p.pubowner, 'USAGE'))),
       COALESCE((SELECT json_agg(json_build_object('schema', rn.nspname, 'table', rc.relname, 'published', EXISTS (
                   SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1 AND schemaname = rn.nspname AND tablename = rc.relname)))
          FROM pg_catalog.pg_partition_ancestors(CASE WHEN c.relispartition THEN c.oid END) a
          JOIN pg_catalog.pg_class rc ON rc.oid = a.relid JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace WHERE rc.oid <> c.oid), '[]')
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $2 AND c.relname = $3 AND c.relkind IN ('r', 'p')`

// published checks that each relation is in the publication, or that the bridge
// may add it. About what is not a table, Load has its own problem.
func (r *run) published(ctx context.Context, conn *pgx.Conn, specs []relation.Spec, exists bool) error {
	for _, s := range specs {
		if !byWAL(s) {
			continue
		}
		var is, may bool
		var roots []struct {
			Schema, Table string
			Published     bool
		}
		err := conn.QueryRow(ctx, publishedSQL, r.cfg.Name, s.Name.Schema, s.Name.Table, exists).Scan(&is, &may, &roots)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		if err != nil {
			return err
		}
		root := ""
		for _, c := range roots {
			n := relation.Name{Schema: c.Schema, Table: c.Table}
			if c.Published || slices.ContainsFunc(specs, func(s relation.Spec) bool { return s.Name == n && byWAL(s) }) {
				root = n.Quoted()
			}
		}
		switch {
		case is:
		case root != "":
			r.fail(AreaRelation, s.Name.Quoted(), fmt.Sprintf("it is a partition, and published as %s", root),
				fmt.Sprintf("name %s in BRIDGE_TABLES, and remove %s", root, s.Name.Quoted()))
		case !may:
			r.fail(AreaRelation, s.Name.Quoted(), fmt.Sprintf("it is not in publication %s, and the role may not add it", r.cfg.Name),
				"as its owner, run the SQL that this prints: "+relation.SetupCommand(s))
		}
	}
	return nil
}
