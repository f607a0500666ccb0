package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// embeddedURL is where the server in the bridge listens, as the log says.
func (b *bridge) embeddedURL() string {
	b.t.Helper()
	var url string
	testenv.Eventually(b.t, long, func() error {
		_, rest, ok := strings.Cut(b.Stderr(), `"component":"nats-server","remote":"`)
		addr, _, ok2 := strings.Cut(rest, `"`)
		if !ok || !ok2 {
			return fmt.Errorf("the embedded server is not up")
		}
		url = "nats://" + addr
		return nil
	})
	return url
}

// The embedded server keeps its streams when the bridge is killed.
func TestBridge_EmbeddedServerSurvivesKill_I7(t *testing.T) {
	needServers(t)
	db := testenv.Postgres(t)
	newTable(t, db, "t", 3000)
	conn := connect(t, db)
	b := startBridge(t, db, "", "t", "BRIDGE_NATS_LISTEN=127.0.0.1:0", "BRIDGE_NATS_DIR="+t.TempDir())
	f := follow(t, testenv.NATSConn(t, b.embeddedURL()), named("t"))
	f.converge(conn)
	life := f.meta().Incarnation
	for i := range 2 {
		run(t, conn, fmt.Sprintf("UPDATE t SET v = 'changed %d' WHERE id <= 1500", i))
		b.restart()
		f = follow(t, testenv.NATSConn(t, b.embeddedURL()), named("t"))
		f.converge(conn)
		b.awaitReady()
	}
	if got := f.meta().Incarnation; got != life {
		t.Errorf("incarnation is %s, want %s still", got, life)
	}
	b.stop()
}

// Twenty relations share fewer connections, and all are live, busy or idle.
func TestBridge_MoreRelationsThanConnections_I10(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, stampSQL)
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("t%d", i))
		run(t, conn, tableSQL(names[i], 1200)...)
	}
	b := startBridge(t, db, broker.URL(), strings.Join(names, ","))
	nc := testenv.NATSConn(t, broker.URL())
	var all []*follower
	for _, n := range names {
		all = append(all, follow(t, nc, named(n)))
	}
	for _, f := range all {
		f.converge(conn)
	}
	for _, n := range names {
		run(t, conn, "UPDATE "+n+" SET v = 'changed' WHERE id <= 1100")
	}
	for _, f := range all {
		f.converge(conn)
	}
	b.awaitReady()
	for _, f := range all {
		f.heartbeatFrom(f.last() + 1)
	}
	if n := query[int](t, conn, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lockstep bridge'"); n > 12 {
		t.Errorf("the bridge has %d connections: %s", n, query[string](t, conn, "SELECT string_agg(concat(pid, ' ', backend_start, ' ', state, ' ', left(query, 60)), E'\n') FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lockstep bridge'"))
	}
	b.stop()
}

// BRIDGE_TABLES=* takes every table that qualifies, and leaves out the rest.
func TestBridge_StarTakesWhatQualifies(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, stampSQL, "CREATE TABLE bare (id int PRIMARY KEY)")
	for i := range 6 {
		run(t, conn, tableSQL(fmt.Sprintf("t%d", i), 1200)...)
	}
	b := startBridge(t, db, broker.URL(), "*,-t5")
	nc := testenv.NATSConn(t, broker.URL())
	for i := range 5 {
		follow(t, nc, named(fmt.Sprintf("t%d", i))).converge(conn)
	}
	b.awaitReady()
	r, err := b.readyz()
	if err != nil || len(r.Relations) != 5 {
		t.Errorf("got %+v, %v; want 5 relations", r, err)
	}
	b.logged("bare", "no column txid")
}
