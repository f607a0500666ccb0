package doctor

import (
	"context"
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
       EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $1)
  FROM pg_catalog.pg_roles r LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1
 WHERE r.rolname = current_user`

// wal checks what capture from the WAL needs of the server, if a relation is
// captured so.
func (r *run) wal(ctx context.Context, conn *pgx.Conn, specs []relation.Spec) error {
	if !slices.ContainsFunc(specs, func(s relation.Spec) bool { return s.Capture == relation.CaptureWAL }) {
		return nil
	}
	var level, keep, slot, status string
	var replication, create, published bool
	var slots, senders int
	err := conn.QueryRow(ctx, walSQL, r.cfg.Name).Scan(&level, &replication, &create, &slots, &senders, &keep, &slot, &status, &published)
	if err != nil {
		return err
	}
	if r.source.InRecovery {
		r.fail(AreaPostgres, "", "it is a standby, and capture=wal reads the primary", "name the primary in DATABASE_URL, or poll")
	}
	if level != "logical" {
		r.fail(AreaPostgres, "", "wal_level is "+level+", and capture=wal needs logical", "ALTER SYSTEM SET wal_level = logical; and restart Postgres")
	}
	if !replication {
		r.fail(AreaPostgres, "", "the role may not read the WAL", fmt.Sprintf("as a superuser: ALTER ROLE %s REPLICATION", pgx.Identifier{r.Postgres.Role}.Sanitize()))
	}
	switch want := "logical pgoutput " + r.Postgres.Database; {
	case slot == "" && slots < 1:
		r.fail(AreaPostgres, "", "all replication slots are in use", "raise max_replication_slots, or drop one that nobody reads; see pg_replication_slots")
	case slot == "":
	case slot != want:
		r.fail(AreaPostgres, "BRIDGE_NAME", fmt.Sprintf("the replication slot %s is another's (%s)", r.cfg.Name, slot), "choose another BRIDGE_NAME")
	case status == "lost":
		r.warn(AreaPostgres, "", "Postgres has removed WAL that the slot needed: the bridge will make it anew, and compare every relation with its stream", "raise max_slot_wal_keep_size, or run the bridge more often")
	}
	if senders < 1 {
		r.fail(AreaPostgres, "", "all WAL senders are in use", "raise max_wal_senders; see pg_stat_replication")
	}
	if keep == "-1" {
		r.warn(AreaPostgres, "", "while no bridge reads its slot, Postgres keeps WAL without a bound, until the disk is full: BRIDGE_SLOT_MAX_LAG holds only while a bridge runs",
			"ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf()")
	}
	if !published && !create {
		r.fail(AreaPostgres, "", fmt.Sprintf("there is no publication %s, and the role may not make it", r.cfg.Name), "run what bridge sql prints for each relation, as its owner")
	}
	return r.published(ctx, conn, specs, published)
}

const publishedSQL = `
SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1 AND schemaname = $2 AND tablename = $3),
       COALESCE(pg_has_role(c.relowner, 'USAGE'), false) AND ($4 = false OR EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $1 AND pg_has_role(p.pubowner, 'USAGE')))
  FROM (SELECT to_regclass($5) AS oid) o LEFT JOIN pg_catalog.pg_class c ON c.oid = o.oid`

// published checks that each relation is in the publication, or can be added by
// the bridge.
func (r *run) published(ctx context.Context, conn *pgx.Conn, specs []relation.Spec, exists bool) error {
	for _, s := range specs {
		if s.Capture != relation.CaptureWAL {
			continue
		}
		var is, may bool
		err := conn.QueryRow(ctx, publishedSQL, r.cfg.Name, s.Name.Schema, s.Name.Table, exists, s.Name.SQL()).Scan(&is, &may)
		if err != nil {
			return err
		}
		if !is && !may {
			r.fail(AreaRelation, s.Name.Quoted(), fmt.Sprintf("it is not in publication %s, and the role may not add it", r.cfg.Name),
				"run what this prints, as its owner: bridge sql '"+s.Name.Quoted()+"(capture=wal)'")
		}
	}
	return nil
}
