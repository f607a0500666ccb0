package relation

import "fmt"

// wal writes what a table needs to be captured from the WAL: nothing in the
// table itself but a replica identity.
func (s *setup) wal(o *object) {
	s.use = s.l.spec
	s.read = []Name{o.name()}
	name, t := s.opt.Name, o.name().SQL()
	s.part("The server must write its WAL for logical decoding; else, as a superuser, with a restart of Postgres:",
		"ALTER SYSTEM SET wal_level = logical;",
		"DO below fails where it does not.")
	s.p("DO $lockstep$ BEGIN")
	s.p("  IF current_setting('wal_level') <> 'logical' THEN RAISE EXCEPTION 'wal_level is %%, and must be logical', current_setting('wal_level'); END IF;")
	s.p("END $lockstep$;")
	if key := s.l.checkKey(); key == nil {
		s.part("It has no key that the bridge could use. Give it one, and run bridge sql again:", s.l.problems[len(s.l.problems)-1].Error())
	} else {
		s.identity(key)
	}
	s.part("The publication, which names the tables of one bridge (BRIDGE_NAME). Only a table's owner who owns the publication, too, may add it;",
		"partitions are published as their root.")
	s.p("DO $lockstep$ BEGIN")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = %s) THEN", sqlLiteral(name))
	s.p("    CREATE PUBLICATION %s WITH (publish_via_partition_root = true);", sqlIdent(name))
	s.p("  END IF;")
	s.p("  IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s) THEN",
		sqlLiteral(name), sqlLiteral(o.Schema), sqlLiteral(o.Table))
	s.p("    ALTER PUBLICATION %s ADD TABLE %s;", sqlIdent(name), t)
	s.p("  END IF;")
	s.p("END $lockstep$;")
	s.part("The replication slot. While no bridge reads it, Postgres keeps WAL for it: drop it when the bridge is gone for good,",
		fmt.Sprintf("SELECT pg_drop_replication_slot(%s). max_slot_wal_keep_size bounds it on the server; BRIDGE_SLOT_MAX_LAG in the bridge.", sqlLiteral(name)),
		"Making it waits for transactions that have written to end, and needs a superuser or a role with REPLICATION; the bridge makes it itself, too.")
	s.p("SELECT pg_create_logical_replication_slot(%[1]s, 'pgoutput') WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %[1]s);", sqlLiteral(name))
}

// identity gives the table a replica identity with the key, if it needs one.
func (s *setup) identity(key []int) {
	before := len(s.l.problems)
	rel := &Relation{Key: key}
	s.l.checkWAL(rel)
	if len(s.l.problems) == before {
		return
	}
	p := s.l.problems[len(s.l.problems)-1]
	s.part("Its replica identity, which says in the WAL which row was changed or deleted: " + p.What + ".")
	s.p("%s;", p.Do)
}
