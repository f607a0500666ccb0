package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// example is a running docs/examples/follow that follows the table t.
type example struct {
	*testenv.Process
	t *testing.T
}

func startExample(t *testing.T, nats string) example {
	t.Helper()
	return example{testenv.Start(t, testenv.Build(t, "./docs/examples/follow"), []string{"NATS_URL=" + nats}, "LOCKSTEP-public-t"), t}
}

// holds waits until the example says, after what it has said before, that its copy is consistent with n rows.
func (e example) holds(n int, said string) {
	e.t.Helper()
	testenv.Eventually(e.t, long, func() error {
		log := strings.TrimPrefix(e.Stderr(), said)
		if !strings.Contains(log, fmt.Sprintf(": %d rows\n", n)) {
			return fmt.Errorf("it does not hold %d rows: …%s", n, log[max(0, len(log)-500):])
		}
		return nil
	})
}

// The broker loses its store. The bridge makes the stream again, and the new one ends below or above the example's place.
// The example reads the new one from its start, also if it did not look meanwhile (I8).
func TestExample_FollowNoticesALostStore_I8(t *testing.T) {
	needServers(t)
	for name, c := range map[string]struct{ away, longer bool }{
		"running, the new stream is shorter": {},
		"running, the new stream is longer":  {longer: true},
		"away, the new stream is shorter":    {away: true},
		"away, the new stream is longer":     {away: true, longer: true},
	} {
		t.Run(name, func(t *testing.T) {
			needServers(t)
			db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
			newTable(t, db, "t", 100) // polled: its new stream has no floor that would tell the example to read again
			conn := connect(t, db)
			b := startBridge(t, db, broker.URL(), "t")
			last := func() uint64 {
				t.Helper()
				return newFollower(t, testenv.NATSConn(t, broker.URL()), named("t")).end()
			}
			example := startExample(t, broker.URL())
			example.holds(100, "")
			run(t, conn, "UPDATE t SET v = v || 'x'", "UPDATE t SET v = v || 'y'", "INSERT INTO t VALUES (101, 'new')")
			example.holds(101, "")
			if c.away {
				example.Pause()
			}
			place, said := last(), example.Stderr()
			broker.Stop()
			broker.ReplaceStore("")
			// No message tells the example that these rows are gone: they are not in the new stream.
			run(t, conn, "DELETE FROM t WHERE id <= 60")
			broker.Start()
			follow(t, testenv.NATSConn(t, broker.URL()), named("t")).converge(conn)
			if c.longer {
				run(t, conn, slices.Repeat([]string{"UPDATE t SET v = v || 'z'"}, 1+int(place)/40)...)
			} else if end := last(); end >= place {
				t.Fatalf("the new stream ends at %d, want it below %d", end, place)
			}
			example.Resume()
			example.holds(41, said)
			run(t, conn, "INSERT INTO t VALUES (102, 'newer')")
			example.holds(42, said)
			b.running()
		})
	}
}

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
	example := startExample(t, broker.URL())
	example.holds(100, "")
	run(t, conn, "DELETE FROM t WHERE id <= 40")
	example.holds(60, "")
	b.restart()
	run(t, conn, "DELETE FROM t WHERE id <= 50")
	example.holds(50, "")

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
	example.holds(40, said)
	if log := example.Stderr(); strings.HasSuffix(log, ": 100 rows\n") {
		t.Errorf("the example holds what was deleted:\n%s", log)
	}
}
