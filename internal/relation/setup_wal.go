package relation

import (
	"context"
	"fmt"
)

// publishesAllSQL says whether the publication has updates or deletes, as one
// that the script makes.
const publishesAllSQL = `
SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1 AND NOT pubupdate AND NOT pubdelete)`

// wal returns what a table needs to be captured from the WAL: nothing in the
// table itself but a replica identity. What is not fit for a publication gets
// comments only: its own UPDATE and DELETE would fail there.
func (s *setup) wal(ctx context.Context, q Querier) (string, error) {
	l := s.l
	var err error
	if l.allActions, err = QueryOne[bool](ctx, q, publishesAllSQL, s.opt.Name); err != nil {
		return "", fmt.Errorf("look up publication: %w", err)
	}
	l.check()
	var unfit []*Problem
	for _, p := range l.problems {
		if p.shape { // the others are rights, which the script gives
			unfit = append(unfit, p)
		}
	}
	if l.self.Kind == "v" {
		return "", unfit[len(unfit)-1]
	}
	identity := ""
	if len(unfit) == 1 && unfit[0].identity {
		identity, unfit = unfit[0].Do, nil
	}
	if len(unfit) > 0 {
		var or []string
		if !l.needsIdentity() {
			or = []string{
				"Or, if the bridge is to have a publication of inserts alone, make that before:",
				fmt.Sprintf("  CREATE PUBLICATION %s WITH (publish = 'insert', publish_via_partition_root = true);", sqlIdent(s.opt.Name)),
			}
		}
		return s.notYet("The table is not fit for a publication, where its own UPDATE and DELETE could fail.", unfit, or...)
	}
	s.use, s.read = l.spec, []Name{l.self.name()}
	s.walHead()
	for _, w := range l.warnings() {
		s.note("It might be better: " + w.What + ". Consider: " + w.Do)
	}
	s.publication(identity)
	s.walRole()
	s.foot()
	return s.b.String(), nil
}

func (s *setup) walHead() {
	s.note("Set-up of "+s.l.spec.String()+" for the lockstep bridge, to be run on the primary: psql -v ON_ERROR_STOP=1 -f THIS_FILE. It may be run again.",
		"A superuser may run all of it. Else the first part, up to COMMIT, is for the table's owner: making a publication needs CREATE on the database,",
		"and who makes it owns it; only who owns both publication and table may add the table later. ALTER PUBLICATION … OWNER TO hands it over.",
		"The second part: making a role needs CREATEROLE, granting SELECT the table's owner, and REPLICATION a superuser.")
}

// publication writes the replica identity, if a statement is needed for it, and
// the publication: both, or none, also where errors do not stop the script.
func (s *setup) publication(identity string) {
	o, name := s.l.self, s.opt.Name
	s.part("The publication, which names the tables of one bridge (BRIDGE_NAME). Partitions are published as their root.",
		"The server must write its WAL for logical decoding; else, as a superuser, with a restart of Postgres:",
		"ALTER SYSTEM SET wal_level = logical;")
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s'; -- rather fail than make others wait; run it again then")
	if identity != "" {
		s.note("The replica identity says in the WAL which row was changed or deleted.")
		s.p("%s;", identity)
	}
	s.p("DO $lockstep$ BEGIN")
	s.p("  IF current_setting('wal_level') <> 'logical' THEN RAISE EXCEPTION 'wal_level is %%, and must be logical', current_setting('wal_level'); END IF;")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = %s) THEN", sqlLiteral(name))
	s.p("    CREATE PUBLICATION %s WITH (publish_via_partition_root = true);", sqlIdent(name))
	s.p("  END IF;")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s) THEN",
		sqlLiteral(name), sqlLiteral(o.Schema), sqlLiteral(o.Table))
	s.p("    ALTER PUBLICATION %s ADD TABLE %s;", sqlIdent(name), o.name().SQL())
	s.p("  END IF;")
	s.p("END $lockstep$;")
	s.p("COMMIT;")
	s.part("The bridge makes its slot when it first starts; leave that to it. A slot made by hand keeps WAL until then, and one that is made again",
		"may be ahead of what the streams have, so that all clients begin anew. While no bridge reads the slot, Postgres keeps WAL for it:",
		"max_slot_wal_keep_size bounds that on the server, BRIDGE_SLOT_MAX_LAG in the bridge. When the bridge is gone for good:",
		fmt.Sprintf("SELECT pg_drop_replication_slot(%s);", sqlLiteral(name)))
}

func (s *setup) walRole() {
	role := sqlIdent(s.opt.Role)
	s.part("The bridge's role: it may log in, and read "+joinNames(s.read)+". "+s.passwordNote(),
		"To read the WAL it needs REPLICATION, which Postgres does not narrow: such a role may read the changes of every table of the cluster,",
		"and copy the cluster (pg_basebackup). Let it in by pg_hba.conf from the bridge's host alone; see SECURITY.md.")
	s.role()
	s.p("DO $lockstep$ BEGIN")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s AND (rolreplication OR rolsuper)) THEN", sqlLiteral(s.opt.Role))
	s.p("    ALTER ROLE %s REPLICATION;", role)
	s.p("  END IF;")
	s.p("END $lockstep$;")
}
