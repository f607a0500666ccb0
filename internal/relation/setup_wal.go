package relation

import (
	"context"
	"fmt"
	"strings"
)

// otherSlotSQL finds a slot under the bridge's name that is not the bridge's.
const otherSlotSQL = `
SELECT COALESCE((SELECT concat_ws(' ', slot_type, plugin, database) FROM pg_catalog.pg_replication_slots
  WHERE slot_name = $1 AND (slot_type <> 'logical' OR plugin <> 'pgoutput' OR database <> current_database())), '')`

// wal returns the script for capture=wal. In the table itself it changes at most
// the replica identity. A table that is not fit for a publication gets only
// comments: in a publication its own UPDATE and DELETE would fail.
func (s *setup) wal(ctx context.Context, q Querier) (string, *Spec, error) {
	l := s.l
	if err := l.lookPublications(ctx, q, s.opt.Name); err != nil {
		return "", nil, err
	}
	l.check()
	var unfit []*Problem
	for _, p := range l.problems {
		if p.shape { // the others are missing rights, and the script grants these
			unfit = append(unfit, p)
		}
	}
	if l.self.Kind == "v" {
		return "", nil, unfit[len(unfit)-1]
	}
	identity := ""
	if len(unfit) == 1 && unfit[0].identity {
		identity, unfit = unfit[0].Do, nil
	}
	if len(unfit) > 0 {
		var or []string
		if !l.needsIdentity() {
			or = []string{
				"Or, if the bridge shall have a publication of inserts only, first make that:",
				fmt.Sprintf("  CREATE PUBLICATION %s WITH (publish = 'insert', publish_via_partition_root = true);", sqlIdent(s.opt.Name)),
			}
		}
		return s.notYet("The table is not fit for a publication: in one, its own UPDATE and DELETE could fail.", unfit, or...)
	}
	slot, err := QueryOne[string](ctx, q, otherSlotSQL, s.opt.Name)
	if err != nil {
		return "", nil, fmt.Errorf("look up the replication slot: %w", err)
	}
	if slot != "" {
		return s.notYet("The bridge needs a replication slot of its own.", []*Problem{{
			Relation: l.spec.Name, Severity: SeverityError,
			What: fmt.Sprintf("the replication slot %s is not the bridge's (%s)", s.opt.Name, slot), Do: "choose another BRIDGE_NAME",
		}})
	}
	if err := s.lookMine(ctx, q, nil); err != nil {
		return "", nil, err
	}
	if list := s.roleObstacle(); len(list) > 0 {
		return s.inTheWay(list)
	}
	s.use, s.read = l.spec, []Name{l.self.name()}
	s.walHead()
	for _, w := range l.warnings() {
		s.note("Not required: " + w.What + ". Consider: " + w.Do)
	}
	s.unsent()
	s.publication(identity)
	s.walRole()
	return s.script(), &s.use, nil
}

// oldRows says how a log shows rows as they were before a change.
func (s *setup) oldRows() {
	l := s.l
	if l.spec.History != HistoryLog || !l.needsIdentity() || l.fullOldRows() || l.self.Kind == "p" {
		return
	}
	if ways := l.harmless(l.fullWay(l.self.name())); len(ways) == 1 && ways[0].alone {
		s.note("Of the row before a change, the stream will have its key. For all of it, at the cost of more WAL, also run:")
		s.note(ways[0].sql + ";")
	}
}

// unsent names the columns that documents will not have.
func (s *setup) unsent() {
	var names []string
	for _, c := range s.l.self.Columns {
		if !s.l.sent(&c) {
			names = append(names, quoteIdent(c.Name))
		}
	}
	if len(names) > 0 {
		poll := s.l.spec
		poll.Capture = CapturePoll
		s.note("Documents will lack what the publication does not send, because it is generated: "+strings.Join(names, ", ")+".",
			"If clients need that, poll the table: "+SetupCommand(poll))
	}
}

func (s *setup) walHead() {
	s.note("Set-up of "+s.l.spec.String()+" for the lockstep bridge. Run it on the primary: psql -v ON_ERROR_STOP=1 -f THIS_FILE",
		"You may run it again. A superuser may run all of it. Without a superuser:",
		"The first part, up to COMMIT, is for the owner of the table. To make the publication, the owner needs CREATE on the database, and then owns it.",
		"Only a role that owns both publication and table may add the table later. ALTER PUBLICATION … OWNER TO gives the publication to another role.",
		"In the second part, making a role needs CREATEROLE; only the owner of the table may grant SELECT; only a superuser may grant REPLICATION.")
}

// publication writes the statement for the replica identity, if one is needed,
// and the publication. They are one transaction: both happen or neither, even if
// psql goes on after errors.
func (s *setup) publication(identity string) {
	o, name := s.l.self, s.opt.Name
	s.part("The publication. It lists the tables of one bridge (BRIDGE_NAME). Partitions are published as their root.",
		"wal_level must be logical. If it is not, run this as a superuser, and restart Postgres:",
		"ALTER SYSTEM SET wal_level = logical;")
	s.p("BEGIN;")
	s.p("SET LOCAL lock_timeout = '5s'; -- fail rather than make others wait; then run this again")
	if identity != "" {
		s.note("With the replica identity, the WAL says which row was changed or deleted.")
		s.p("%s;", identity)
	}
	s.oldRows()
	s.p("DO \x00 BEGIN")
	s.p("  IF current_setting('wal_level') <> 'logical' THEN RAISE EXCEPTION 'wal_level is %%, and must be logical', current_setting('wal_level')")
	s.p("    USING HINT = 'Run ALTER SYSTEM SET wal_level = logical as a superuser. Then restart Postgres, and run this again.'; END IF;")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = %s) THEN", sqlLiteral(name))
	s.p("    %s;", CreatePublication(name, s.l.publications.Version))
	s.p("    COMMENT ON PUBLICATION %s IS %s;", sqlIdent(name), sqlLiteral(MarkPublication))
	s.p("  END IF;")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s) THEN",
		sqlLiteral(name), sqlLiteral(o.Schema), sqlLiteral(o.Table))
	s.p("    ALTER PUBLICATION %s ADD TABLE ONLY %s;", sqlIdent(name), o.name().SQL())
	s.p("  END IF;")
	s.p("END \x00;")
	s.p("COMMIT;")
	s.part("The bridge makes its slot when it first starts. Do not make it by hand: it would keep WAL until then; and a slot that is made again",
		"may be ahead of the streams, and then all clients start over. While no bridge reads the slot, Postgres keeps WAL for it.",
		"max_slot_wal_keep_size limits that on the server, BRIDGE_SLOT_MAX_LAG in the bridge. When you remove the bridge for good:",
		fmt.Sprintf("SELECT pg_drop_replication_slot(%s);", sqlLiteral(name)))
}

func (s *setup) walRole() {
	role := sqlIdent(s.opt.Role)
	s.part("The role of the bridge: it may log in, and read "+joinNames(s.read)+".", s.passwordNote(),
		"To read the WAL it needs REPLICATION. Postgres can't limit that to some tables: such a role may read the changes of every table of the",
		"cluster, and copy the cluster (pg_basebackup). In pg_hba.conf, allow the role from the bridge's host only; see SECURITY.md.")
	s.role()
	s.p("DO \x00 BEGIN")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s AND (rolreplication OR rolsuper)) THEN", sqlLiteral(s.opt.Role))
	s.p("    ALTER ROLE %s REPLICATION;", role)
	s.p("  END IF;")
	s.p("END \x00;")
}
