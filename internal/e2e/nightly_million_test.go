//go:build nightly

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go/jetstream"
)

// Two transactions write a million rows each. One aborts, and nothing of it is seen; one commits, and all of it arrives.
// The bridge's memory stays below 100 MB (I9). The test does not run in parallel, because others would starve.
func TestWAL_MillionRows_I9(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	const (
		rows     = 1_000_000
		most     = 100.0 // MB
		patience = 5 * time.Minute
	)
	c, broker := testenv.NewCluster(t), testenv.NATSProcess(t)
	db := c.Database()
	newBare(t, db, "t", 100)
	conn := connect(t, db)
	b := newBridge(t, db, broker.URL(), "t(capture=wal)", "BRIDGE_NAME="+slotOf(db))
	b.program = testenv.BuildShipped(t, "./cmd/bridge")
	b.start()
	b.awaitReady()

	insert := func(from int) string {
		return fmt.Sprintf("INSERT INTO t SELECT g, repeat('x', 150) FROM generate_series(%d, %d) g", from, from+rows-1)
	}
	run(t, conn, "BEGIN", insert(10_000_000), "ROLLBACK", "BEGIN", insert(1000))
	txid := query[uint64](t, conn, "SELECT txid_current()")
	run(t, conn, "COMMIT")
	js := testenv.JetStream(t, broker.URL())
	layout := bare("t").layout()
	testenv.Eventually(t, patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s, err := js.Stream(ctx, layout.Stream)
		if err != nil {
			return err
		}
		msg, err := s.GetLastMsgForSubject(ctx, layout.Heartbeat())
		if err != nil {
			return err
		}
		if hb, err := stream.ParseHeartbeat(msg.Header, msg.Data); err != nil || hb.Since <= txid {
			return fmt.Errorf("the last heartbeat is %+v (%w), want since above %d", hb, err, txid)
		}
		return nil
	})
	if peak := b.PeakMB(t); peak >= most {
		t.Errorf("the bridge's memory grew to %.0f MB, want less than %.0f", peak, most)
	}
	n, sum := streamed(t, js, layout)
	if want := query[uint64](t, conn, "SELECT count(*) FROM t"); n != want {
		t.Errorf("%d rows in the stream, %d in Postgres", n, want)
	}
	if want := query[uint64](t, conn, "SELECT sum(id)::bigint FROM t"); sum != want {
		t.Errorf("the sum of the keys is %d in the stream, %d in Postgres", sum, want)
	}
}

// streamed counts the rows of a quiet stream, and adds up their keys. Each key is one number.
func streamed(t *testing.T, js jetstream.JetStream, layout stream.Layout) (n, sum uint64) {
	t.Helper()
	c, err := js.OrderedConsumer(t.Context(), layout.Stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{layout.Rows()}, HeadersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(10_000))
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextMaxWait(long))
		if err != nil {
			t.Fatal(err)
		}
		md, err := msg.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		key, err := layout.Key(msg.Subject(), msg.Headers().Get(stream.KeyHeader))
		if err == nil && len(key) != 1 {
			err = errors.New("its key is not one value")
		}
		if err != nil {
			t.Fatalf("subject %s: %v", msg.Subject(), err)
		}
		id, err := strconv.ParseUint(string(key[0]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		n, sum = n+1, sum+id
		if md.NumPending == 0 {
			return n, sum
		}
	}
}
