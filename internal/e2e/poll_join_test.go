package e2e_test

import (
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A row of a join has several writers, and its txid is the highest of theirs. So a transaction with a lower txid that
// commits later changes the row, but not its txid. That is why views are read from xmin on. Rows that did not change are
// not sent again.
func TestBridge_JoinMissesNoLateWrite_I1(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t)
	db, broker := c.Database(), testenv.NATS(t)
	newTable(t, db, "a", 3)
	testenv.Exec(t, db, tableSQL("b", 3)...)
	testenv.Exec(t, db, `CREATE VIEW j AS
		SELECT a.id, a.v AS av, b.v AS bv, greatest(a.txid, b.txid) AS txid FROM a JOIN b USING (id)`)
	conn, early := connect(t, db), connect(t, db)
	startBridge(t, db, broker.URL(), "j(key=id)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("j"))
	first := f.converge(conn)
	run(t, early, "BEGIN", "UPDATE b SET v = 'early' WHERE id = 1")
	run(t, conn, "UPDATE a SET v = 'late' WHERE id = 1")
	f.converge(conn)
	run(t, early, "COMMIT")
	f.converge(conn)
	// While a transaction is open, every poll reads this row again. The bridge sends it once, or twice if the pool made
	// another connection.
	run(t, early, "BEGIN", "UPDATE b SET v = 'open' WHERE id = 2")
	run(t, conn, "BEGIN", "UPDATE a SET v = 'once' WHERE id = 3")
	xid := query[uint64](t, conn, "SELECT txid_current()")
	run(t, conn, "COMMIT")
	f.converge(conn)
	for range 3 {
		run(t, conn, "UPDATE a SET v = v || '+' WHERE id = 1")
		f.converge(conn)
	}
	once := 0
	for _, m := range f.messages(stream.KindRow, first.seq) {
		if m.row.Txid == xid {
			once++
		}
	}
	if once != 1 && once != 2 {
		t.Errorf("a row that changed once was sent %d times", once)
	}
	run(t, early, "ROLLBACK")
}
