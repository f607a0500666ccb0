package poller_test

import (
	"fmt"
	"testing"

	"bridge/internal/capture"
	"bridge/internal/poller"
	"bridge/internal/relation"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// A probe sees each row that its snapshot does not show: a later one, and one of a transaction that ran. It sees no other
// row, if there are not many of the same time.
func TestProbe_SeesWhatASnapshotDoesNot_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	for _, txid := range []string{"bigint", "xid8"} {
		t.Run(txid, func(t *testing.T) {
			t.Parallel()
			db := testenv.NewCluster(t).Database()
			now := map[string]string{"bigint": "txid_current()", "xid8": "pg_current_xact_id()"}[txid]
			testenv.Exec(t, db, fmt.Sprintf("CREATE TABLE t (id int PRIMARY KEY, txid %s NOT NULL DEFAULT %s)", txid, now),
				"CREATE INDEX ON t (txid)", "INSERT INTO t SELECT generate_series(1, 1000)")
			conn, early := testenv.Conn(t, db), testenv.Conn(t, db)
			exec(t, early, "BEGIN")
			exec(t, early, "INSERT INTO t VALUES (2001)")
			exec(t, conn, "INSERT INTO t VALUES (2002)")
			p := probe(t, conn, "t")
			previous := snapshotOf(t, conn)
			if len(previous.Xip) != 1 {
				t.Fatalf("the snapshot is %s: the test shows nothing", previous)
			}
			want := func(unchanged bool, what string) {
				t.Helper()
				if got, err := p.Unchanged(t.Context(), previous); got != unchanged || err != nil {
					t.Errorf("%s: unchanged is %t, %v; want %t", what, got, err, unchanged)
				}
			}
			want(true, "nothing has ended")
			exec(t, early, "COMMIT")
			want(false, "the transaction that ran has ended")
			previous = snapshotOf(t, conn)
			want(true, "the snapshot shows all")
			exec(t, conn, "INSERT INTO t VALUES (2003)")
			want(false, "a row came later")
			previous = snapshotOf(t, conn)
			previous.Xmin-- // as if another transaction still ran
			want(true, "the snapshot shows all, and few rows are as new as it")
			exec(t, conn, "INSERT INTO t SELECT generate_series(3001, 3100)")
			next := snapshotOf(t, conn)
			next.Xmin = previous.Xmax
			previous = next
			want(false, "too many rows are as new as the snapshot")
		})
	}
}

// A relation is probed only if Postgres reads the new rows by an index, however many others there are.
func TestProbe_OnlyByAnIndex_I9(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE TABLE bare (id int PRIMARY KEY, txid bigint NOT NULL)", "CREATE TABLE t (id int PRIMARY KEY, txid bigint NOT NULL)",
		"CREATE INDEX ON t (txid)", "CREATE TABLE other (id int PRIMARY KEY, txid bigint NOT NULL, v int)", "CREATE INDEX ON other (txid)",
		"CREATE TABLE parts (id int, txid bigint NOT NULL, PRIMARY KEY (id)) PARTITION BY HASH (id)", "CREATE INDEX ON parts (txid)",
		"CREATE TABLE many (id int, txid bigint NOT NULL, PRIMARY KEY (id)) PARTITION BY HASH (id)", "CREATE INDEX ON many (txid)",
		"CREATE VIEW filtered AS SELECT * FROM t WHERE id % 2 = 0",
		"CREATE VIEW both_of AS SELECT id, txid FROM t UNION ALL SELECT -id, txid FROM other",
		"CREATE VIEW feed AS SELECT id, txid FROM t UNION ALL SELECT id, txid FROM other o WHERE NOT EXISTS (SELECT FROM t WHERE t.id = o.id)",
		"CREATE VIEW looked_up AS SELECT t.id, t.txid, other.v FROM t JOIN other ON other.id = t.id",
		"CREATE VIEW latest AS SELECT t.id, greatest(t.txid, o.txid) AS txid FROM t JOIN other o ON o.id = t.id",
		"CREATE VIEW groups AS SELECT id % 10 AS id, max(txid) AS txid FROM t GROUP BY 1",
		"CREATE VIEW unindexed AS SELECT * FROM bare")
	for n := range 4 {
		testenv.Exec(t, db, fmt.Sprintf("CREATE TABLE parts%d PARTITION OF parts FOR VALUES WITH (MODULUS 4, REMAINDER %[1]d)", n))
	}
	for n := range 20 {
		testenv.Exec(t, db, fmt.Sprintf("CREATE TABLE many%d PARTITION OF many FOR VALUES WITH (MODULUS 20, REMAINDER %[1]d)", n))
	}
	for _, rows := range []int{0, 10_000} {
		for _, table := range []string{"bare", "t", "parts", "many"} {
			testenv.Exec(t, db, fmt.Sprintf("INSERT INTO %s SELECT g, 700 FROM generate_series(1, %d) g", table, rows))
		}
		testenv.Exec(t, db, fmt.Sprintf("INSERT INTO other SELECT g, 700, g FROM generate_series(1, %d) g", rows), "ANALYZE")
		for name, used := range map[string]bool{
			"t": true, "parts": true, "filtered": true, "both_of": true, "feed": true, "looked_up": true,
			"bare": false, "many": false, "latest": false, "groups": false, "unindexed": false,
		} {
			if used && rows == 0 {
				continue // Postgres may read all of it instead
			}
			p := probe(t, testenv.Conn(t, db), name+"(key=id)")
			if unchanged, err := p.Unchanged(t.Context(), capture.Snapshot{Xmin: 1 << 40, Xmax: 1 << 40}); unchanged != used || p.Refused() == used || err != nil {
				t.Errorf("%s with %d rows: used %t, refused %t, %v; want used %t", name, rows, unchanged, p.Refused(), err, used)
			}
		}
	}
}

func probe(t *testing.T, conn *pgx.Conn, entry string) *poller.Prober {
	t.Helper()
	specs, err := relation.ParseSpecs(entry)
	if err != nil {
		t.Fatal(err)
	}
	rel, _, err := relation.Load(t.Context(), conn, specs.List[0])
	if err != nil {
		t.Fatal(err)
	}
	p, err := poller.Probe(t.Context(), conn, rel)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func snapshotOf(t *testing.T, conn *pgx.Conn) capture.Snapshot {
	t.Helper()
	text, err := relation.QueryOne[string](t.Context(), conn, "SELECT pg_current_snapshot()::text")
	if err != nil {
		t.Fatal(err)
	}
	sn, err := capture.ParseSnapshot(text)
	if err != nil {
		t.Fatal(err)
	}
	return sn
}
