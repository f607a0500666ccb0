package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// The example of docs/nats.md keeps its copy right while rows are deleted, the bridge is killed, and the broker comes
// back with older files: it then reads the stream from the start (I8).
func TestExample_FollowKeepsItsCopyRight_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	newBare(t, db, "t", 100)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal)")
	b.awaitReady()
	b.stop()
	broker.Stop()
	older := broker.CopyStore()
	broker.Start()
	b.start()
	example := testenv.Start(t, testenv.Build(t, "./docs/examples/follow"), []string{"NATS_URL=" + broker.URL()}, "LOCKSTEP-public-t")
	// holds waits until the example says, after what it has said before, that its copy is consistent with n rows.
	holds := func(n int, said string) {
		t.Helper()
		testenv.Eventually(t, long, func() error {
			log := strings.TrimPrefix(example.Stderr(), said)
			if !strings.Contains(log, fmt.Sprintf(": %d rows\n", n)) {
				return fmt.Errorf("it does not hold %d rows: …%s", n, log[max(0, len(log)-500):])
			}
			return nil
		})
	}
	holds(100, "")
	run(t, conn, "DELETE FROM t WHERE id <= 40")
	holds(60, "")
	b.restart()
	run(t, conn, "DELETE FROM t WHERE id <= 50")
	holds(50, "")

	// While it does not look, rows are deleted in places of the stream that it has read already.
	example.Pause()
	said := example.Stderr()
	b.Kill()
	broker.Stop()
	broker.ReplaceStore(older)
	broker.Start()
	b.start()
	run(t, conn, "DELETE FROM t WHERE id <= 60")
	follow(t, testenv.NATSConn(t, broker.URL()), bare("t")).converge(conn)
	example.Resume()
	holds(40, said)
	if log := example.Stderr(); strings.HasSuffix(log, ": 100 rows\n") {
		t.Errorf("the example holds what was deleted:\n%s", log)
	}
}
