package relation_test

import (
	"testing"

	"bridge/internal/relation"
	"bridge/internal/testenv"
)

// Only what changes by transactions of the database may rest while none ends.
func TestChangesByTransactions(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db,
		"CREATE TABLE t (id int PRIMARY KEY, txid bigint NOT NULL, at timestamptz)",
		"CREATE FUNCTION fixed(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
		"CREATE FUNCTION looks(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1'",
		"CREATE FUNCTION rolls(int) RETURNS int VOLATILE LANGUAGE sql AS 'SELECT $1'",
		"CREATE TABLE parted (id int, txid bigint) PARTITION BY RANGE (id)",
		"CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10)",
		"CREATE TABLE mixed (id int, txid bigint) PARTITION BY RANGE (id)",
		"CREATE FOREIGN DATA WRAPPER w", "CREATE SERVER s FOREIGN DATA WRAPPER w",
		"CREATE FOREIGN TABLE far PARTITION OF mixed FOR VALUES FROM (0) TO (10) SERVER s",
		"CREATE TABLE guarded (id int, txid bigint)", "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY",
		"CREATE VIEW plain AS SELECT id, txid, to_char(at, 'YYYY') AS y FROM t WHERE id > 3 AND id = ANY (ARRAY[5, 6])",
		"CREATE VIEW lockstep_old AS SELECT *, pg_snapshot_xmin(pg_current_snapshot()) AS current_xmin FROM t",
		"CREATE VIEW sums AS SELECT max(txid) AS txid, count(*) AS n FROM t",
		"CREATE VIEW v_fixed AS SELECT fixed(id) AS id, txid FROM t",
		"CREATE VIEW v_looks AS SELECT looks(id) AS id, txid FROM t",
		"CREATE VIEW v_rolls AS SELECT t.id, t.txid FROM t, LATERAL rolls(id) x",
		"CREATE VIEW random AS SELECT id, txid FROM t WHERE random() < 0.5",
		"CREATE VIEW today AS SELECT id, txid FROM t WHERE at < CURRENT_TIMESTAMP",
		"CREATE VIEW past AS SELECT id, txid FROM t WHERE at < now()",
		"CREATE VIEW sampled AS SELECT id, txid FROM t TABLESAMPLE SYSTEM (10)",
		"CREATE VIEW on_random AS SELECT * FROM random", "CREATE VIEW on_mixed AS SELECT * FROM mixed", "CREATE VIEW on_guarded AS SELECT * FROM guarded",
		"CREATE VIEW on_plain AS SELECT * FROM plain UNION ALL SELECT id, txid, 'x' FROM parted",
	)
	conn := testenv.Conn(t, db)
	defer conn.Close(t.Context())
	for name, want := range map[string]bool{
		"t": true, "parted": true, "plain": true, "lockstep_old": true, "sums": true, "v_fixed": true, "on_plain": true,
		"mixed": false, "guarded": false, "v_looks": false, "v_rolls": false, "random": false, "today": false, "past": false,
		"sampled": false, "on_random": false, "on_mixed": false, "on_guarded": false,
	} {
		oid, err := relation.QueryOne[uint32](t.Context(), conn, "SELECT to_regclass($1)::oid", name)
		if err != nil {
			t.Fatal(err)
		}
		n := relation.Name{Schema: "public", Table: name}
		if got, err := relation.ChangesByTransactions(t.Context(), conn, &relation.Relation{Name: n, OID: oid}); err != nil || got != want {
			t.Errorf("%s: got %t (%v), want %t", name, got, err, want)
		}
	}
}
