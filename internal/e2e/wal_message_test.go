package e2e_test

import (
	"fmt"
	"testing"

	"bridge/internal/stream"
)

// Every role may write messages into the WAL, also with the bridge's prefix and in the form of its own messages. Such
// messages stop nothing (I10), and the bridge believes none: every position in the stream is one that Postgres has
// reached (I3, I5).
func TestWAL_ForgedMessages_I5(t *testing.T) {
	s := newScene(t, 10)
	contents := []string{
		"'hello'", "''", "' '", `'\xff00'::bytea`, "'99999999999999999999999'", "'-1'",
		"'1000000000000000000'", "'18446744073709551615'", "'5000000000 '", // watermarks without a session's name; the last is beyond 2^32
		"'1000000000000000000 3w5e11264sgsf.1'", "'5000000000 hello'", "'5000000000 .1'", // markers of other sessions
	}
	id := 100
	for _, content := range contents {
		for _, transactional := range []bool{true, false} {
			emit := fmt.Sprintf("SELECT pg_logical_emit_message(%t, 'lockstep.%s', %s)", transactional, slotOf(s.db), content)
			id += 3
			s.run("SET ROLE pg_signal_backend", emit, "RESET ROLE", fmt.Sprintf("INSERT INTO t VALUES (%d, 'after it')", id),
				"BEGIN", fmt.Sprintf("INSERT INTO t VALUES (%d, 'before it')", id+1), emit, fmt.Sprintf("INSERT INTO t VALUES (%d, 'in one transaction')", id+2), "COMMIT")
		}
	}
	s.f.converge(s.conn)
	s.b.restart() // with all that in the WAL that the slot keeps, or before it
	s.run("UPDATE t SET v = 'after a restart' WHERE id = 1")
	s.f.converge(s.conn)
	s.whileAway(fmt.Sprintf("SELECT pg_logical_emit_message(true, 'lockstep.%s', '1000000000000000000')", slotOf(s.db)), "UPDATE t SET v = 'while it was away' WHERE id = 2")
	s.f.converge(s.conn)
	xmax := snapshot(t, s.conn).Xmax
	for _, kind := range []stream.Kind{stream.KindRow, stream.KindHeartbeat} {
		for _, m := range s.f.messages(kind, 0) {
			if m.since > xmax || m.row.Txid > xmax || m.high > xmax {
				t.Errorf("message %d has since %d, txid %d and High %d, but Postgres is only at %d", m.seq, m.since, m.row.Txid, m.high, xmax)
			}
		}
	}
}
