package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
)

// A broker that is killed brings back the version of a row before its deletion, if the deletion was removed from the stream:
// it keeps no record of what it removed because a newer message came. The bridge compares when it comes back, before its first
// heartbeat, and deletes the row again (I1, I2).
func TestBridge_DeletedRowThatTheBrokerBringsBack_I1(t *testing.T) {
	needServers(t)
	for name, c := range map[string]struct {
		options, remove string
		rel             table
	}{
		"polled":       {"tombstones=2s", "UPDATE t SET deleted = true WHERE id = 1", table{schema: "public", name: "t", txid: "txid", deleted: "deleted"}},
		"from the WAL": {"capture=wal;tombstones=2s", "DELETE FROM t WHERE id = 1", bare("t")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
			conn := connect(t, db)
			if c.rel.txid == "" {
				newBare(t, db, "t", 3)
			} else {
				newTable(t, db, "t", 3)
				run(t, conn, "ALTER TABLE t ADD deleted boolean NOT NULL DEFAULT false")
			}
			b := startWAL(t, db, broker.URL(), "t("+c.options+")")
			f := follow(t, testenv.NATSConn(t, broker.URL()), c.rel)
			f.converge(conn)
			run(t, conn, "UPDATE t SET v = 'changed' WHERE id = 1")
			f.converge(conn)
			run(t, conn, c.remove)
			f.converge(conn)
			js := testenv.JetStream(t, broker.URL())
			subject, _ := c.rel.layout().AppendRowSubject(nil, [][]byte{[]byte("1")})
			// last returns the last message of the row, nil for none.
			last := func() (*lockstep.Row, error) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				s, err := js.Stream(ctx, c.rel.layout().Stream)
				if err != nil {
					return nil, err
				}
				msg, err := s.GetLastMsgForSubject(ctx, string(subject))
				if errors.Is(err, jetstream.ErrMsgNotFound) {
					return nil, nil
				}
				if err != nil {
					return nil, err
				}
				m, err := lockstep.Decode(msg.Data)
				return m.Row, err
			}
			testenv.Eventually(t, long, func() error {
				if row, err := last(); row != nil || err != nil {
					return fmt.Errorf("the deletion was not removed: %+v, %v", row, err)
				}
				return nil
			})
			b.Kill()
			broker.Kill()
			broker.Start()
			testenv.Eventually(t, long, func() error {
				if row, err := last(); row == nil || row.Deleted {
					return fmt.Errorf("the broker has not brought the row back: %+v, %v; if it never does, no comparison is needed", row, err)
				}
				return nil
			})
			b.start()
			b.awaitReady() // it has published a heartbeat
			if row, err := last(); err != nil || row != nil && !row.Deleted {
				t.Errorf("after the first heartbeat the stream has %+v, %v", row, err)
			}
			f.converge(conn)
		})
	}
}
