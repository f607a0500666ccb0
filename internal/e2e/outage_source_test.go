package e2e_test

import (
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// A bridge does not fill a stream from another database: it stops and names both. After bridge adopt, the running bridge
// fills the stream, in a new incarnation with a floor above everything that was shown.
func TestBridge_OtherSourceStopsUntilAdopted_I8(t *testing.T) {
	needServers(t)
	db, other, broker := testenv.Postgres(t), testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 20)
	newTable(t, other, "t", 5)
	conn, otherConn := connect(t, db), connect(t, other)
	b := startBridge(t, db, broker.URL(), "t")
	f := follow(t, testenv.NATSConn(t, broker.URL()), named("t"))
	f.converge(conn)
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL()}
	if code, stdout, _ := command(t, env, "adopt", "t"); code != 0 || !strings.Contains(stdout, "nothing to adopt") {
		t.Errorf("bridge adopt of its own stream: exit status %d, %s", code, stdout)
	}
	b.stop()
	end := f.caughtUp()
	shown := f.messages(stream.KindHeartbeat, 0)
	before := f.meta()

	b = startBridge(t, other, broker.URL(), "t")
	const name = "SELECT current_database()"
	b.awaitReason("t", query[string](t, conn, name), query[string](t, otherConn, name), "bridge adopt")
	if got := f.caughtUp(); got != end {
		t.Errorf("the stream of the other database grew from %d to %d", end, got)
	}
	env = []string{"DATABASE_URL=" + other, "NATS_URL=" + broker.URL()}
	if code, stdout, stderr := command(t, env, "adopt", "t"); code != 0 || !strings.Contains(stdout, "starts over") {
		t.Fatalf("bridge adopt: exit status %d\n%s%s", code, stdout, stderr)
	}
	f.convergeLate(otherConn)
	after, last := f.meta(), shown[len(shown)-1]
	if after.Incarnation == before.Incarnation || after.Floor <= last.since || after.Floor <= last.high {
		t.Errorf("got incarnation %s with floor %d, want another one than %s, and a floor above %d", after.Incarnation, after.Floor, before.Incarnation, last.high)
	}
	b.awaitReady()
}
