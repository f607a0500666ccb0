package e2e_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// primaryAndStandby starts a cluster with a table, and its standby. db is the database's URL in the primary, copied its
// URL in the standby.
func primaryAndStandby(t *testing.T, rows int) (standby *testenv.Cluster, db, copied string) {
	t.Helper()
	c := testenv.NewCluster(t)
	db = c.Database()
	newTable(t, db, "t", rows)
	standby = c.Standby(t)
	return standby, db, standby.URL(db[strings.LastIndex(db, "/")+1 : strings.Index(db, "?")])
}

// replayed waits until the standby has replayed everything that the primary has written.
func replayed(t *testing.T, primary, standby *pgx.Conn) {
	t.Helper()
	lsn := query[string](t, primary, "SELECT pg_current_wal_lsn()::text")
	testenv.Eventually(t, long, func() error {
		if !query[bool](t, standby, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn) {
			return errors.New("the standby lags")
		}
		return nil
	})
}

// A standby's snapshots do not list the transactions that were running. A row that commits late, with a low txid, arrives
// all the same. Until then, what is read twice makes nothing wrong.
func TestBridge_StandbyLosesNoLateRow_I3(t *testing.T) {
	needServers(t)
	_, db, copied := primaryAndStandby(t, 1500)
	broker := testenv.NATS(t)
	primary, standby := connect(t, db), connect(t, copied)
	open := connect(t, db)
	run(t, open, "BEGIN", "UPDATE t SET v = 'late' WHERE id = 1")
	xid := query[uint64](t, open, "SELECT txid_current()")
	run(t, primary, "UPDATE t SET v = 'early' WHERE id = 2")
	b := startBridge(t, copied, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(standby)
	run(t, primary, "UPDATE t SET v = 'early' WHERE id IN (2, 3)", "INSERT INTO t VALUES (2000, 'early')")
	replayed(t, primary, standby)
	if hb := f.converge(standby); hb.since > xid {
		t.Errorf("the heartbeat's since is %d, want at most %d, the transaction that is open", hb.since, xid)
	}
	// For 7 s, in which connections come and go, nothing becomes wrong.
	begun := time.Now()
	f.await("heartbeat 7 s from now", f.last(), func(s seen) bool { return s.kind == stream.KindHeartbeat && s.at.Sub(begun) > 7*time.Second })
	if err := f.differs(standby); err != nil {
		t.Error(err)
	}
	run(t, open, "COMMIT")
	replayed(t, primary, standby)
	f.converge(standby)
	f.await("late row", 0, func(s seen) bool { return s.kind == stream.KindRow && s.row.Txid == xid })
	b.running()
}

// A bridge moves from a standby to its primary and back, and the same stream goes on. While the standby lags, the bridge
// publishes nothing from it.
func TestBridge_StandbyThenItsPrimaryAndBack_I3(t *testing.T) {
	needServers(t)
	_, db, copied := primaryAndStandby(t, 1500)
	broker := testenv.NATS(t)
	primary, standby := connect(t, db), connect(t, copied)
	b := startBridge(t, copied, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(standby)
	life := f.meta().Incarnation
	b.stop()
	b = startBridge(t, db, broker.URL(), "t")
	run(t, primary, "UPDATE t SET v = 'on the primary' WHERE id <= 1200")
	f.converge(primary)

	replayed(t, primary, standby)
	run(t, standby, "SELECT pg_wal_replay_pause()")
	testenv.Eventually(t, long, func() error {
		if s := query[string](t, standby, "SELECT pg_get_wal_replay_pause_state()"); s != "paused" {
			return errors.New("replay is " + s)
		}
		return nil
	})
	run(t, primary, "UPDATE t SET v = 'newer' WHERE id <= 5", "DELETE FROM t WHERE id = 1500", "INSERT INTO t VALUES (1500, 'back')")
	f.converge(primary)
	b.stop()
	end := f.caughtUp()
	b = startBridge(t, copied, broker.URL(), "t")
	f.await("fence of the bridge on the standby", end+1, func(s seen) bool { return s.kind == stream.KindFence })
	// A sign of life shows that the bridge's session is past the fence and waits.
	f.await("sign of life", end+3, func(s seen) bool { return s.kind == stream.KindAlive && s.seq > end+3 })
	if rows := f.messages(stream.KindRow, end+1); len(rows) > 0 {
		t.Errorf("%d rows were published from a standby that lags", len(rows))
	}
	run(t, primary, "UPDATE t SET v = 'newest' WHERE id = 7")
	run(t, standby, "SELECT pg_wal_replay_resume()")
	replayed(t, primary, standby)
	f.converge(standby)
	if got := f.meta().Incarnation; got != life {
		t.Errorf("incarnation is %s, want %s still", got, life)
	}
	b.running()
}

// A bridge on the primary is killed in the middle of its first load, and one on a lagging standby continues it. Rows that
// the standby does not show yet are not lost.
func TestBridge_LaggingStandbyContinuesABatch_I7(t *testing.T) {
	needServers(t)
	_, db, copied := primaryAndStandby(t, big)
	broker := testenv.NATS(t)
	primary, standby := connect(t, db), connect(t, copied)
	replayed(t, primary, standby)
	run(t, standby, "SELECT pg_wal_replay_pause()")
	run(t, primary, "UPDATE t SET v = 'newer' WHERE id <= 10", "INSERT INTO t VALUES (-1, 'new')", "CHECKPOINT")
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.killAt(b, f.end(), big/6)
	b = startBridge(t, copied, broker.URL(), "t")
	end := f.end()
	f.await("fence of the bridge on the standby", end+1, func(s seen) bool { return s.kind == stream.KindFence })
	f.await("sign of life", end+3, func(s seen) bool { return s.kind == stream.KindAlive && s.seq > end+3 })
	run(t, standby, "SELECT pg_wal_replay_resume()")
	replayed(t, primary, standby)
	f.converge(standby)
	b.running()
}
