package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/testenv"
)

// The embedded NATS server keeps its streams when the bridge is killed: the same incarnation goes on.
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
		f.stop()
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
