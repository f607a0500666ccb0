package publish_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"bridge/internal/capture"
	"bridge/internal/publish"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestPublish_OversizeRow (I10): a row that the broker would refuse becomes a
// control row on the key's own subject, and the relation goes on.
func TestPublish_OversizeRow(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.begin(t)
	w.mustRow(t, 1, 5)
	if err := w.Row(t.Context(), change(1, 6, strings.Repeat("y", 2<<20))); err != nil {
		t.Fatal(err)
	}
	w.mustRow(t, 2, 7)
	w.awaitContents(t, "fence 1@6 2@7")
	l := stream.NewLayout("lockstep", "public", "t", false)
	s, err := w.js.Stream(t.Context(), l.Stream)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.GetLastMsgForSubject(t.Context(), "lockstep.public.t.row.1")
	if err != nil {
		t.Fatal(err)
	}
	m, err := lockstep.Decode(msg.Data)
	if err != nil || m.Control == nil || m.Control.Type != lockstep.Oversize {
		t.Fatalf("got %s, want an oversize control row", msg.Data)
	}
	if c := m.Control; c.Txid != 6 || string(c.Key) != `{"id":1}` || c.Bytes < 2<<20 || c.Limit > 1<<20 {
		t.Errorf("got %+v", c)
	}
}

// sized returns a change whose document has exactly n bytes.
func sized(id int, txid uint64, n int) capture.Change {
	return change(id, txid, strings.Repeat("y", n-len(change(id, txid, "").Line)))
}

// row returns the last document of a row's subject.
func (w *writer) row(t *testing.T, id int) (lockstep.Message, error) {
	t.Helper()
	s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
	if err != nil {
		return lockstep.Message{}, err
	}
	msg, err := s.GetLastMsgForSubject(t.Context(), fmt.Sprintf("lockstep.public.t.row.%d", id))
	if err != nil {
		return lockstep.Message{}, err
	}
	return lockstep.Decode(msg.Data)
}

// mark waits for the oversize control row of the row.
func (w *writer) mark(t *testing.T, id int) (c lockstep.Control) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		m, err := w.row(t, id)
		if err != nil || m.Control == nil || m.Control.Type != lockstep.Oversize {
			return fmt.Errorf("row %d is %+v, %v; want an oversize control row", id, m, err)
		}
		c = *m.Control
		return nil
	})
	return c
}

// wantRow waits for the row's document.
func (w *writer) wantRow(t *testing.T, id int) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if m, err := w.row(t, id); err != nil || m.Row == nil {
			return fmt.Errorf("row %d is %+v, %v; want its document", id, m, err)
		}
		return nil
	})
}

// update changes the stream's configuration, as an operator may.
func (w *writer) update(t *testing.T, change func(*jetstream.StreamConfig)) {
	t.Helper()
	s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	change(&cfg)
	if _, err := w.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// capture sends rows and a heartbeat, as captures do: after a fault it begins again,
// with all of them. It returns how many epochs that took. Epochs that end because the
// machine is slow don't count.
func (w *writer) capture(t *testing.T, limit int, rows ...capture.Change) int {
	t.Helper()
	for epochs, slow := 1, 0; epochs <= limit && slow < 10; epochs++ {
		w.begin(t)
		err := w.sendAll(t, rows...)
		switch {
		case err == nil:
			return epochs
		case !errors.Is(err, publish.ErrFault):
			t.Fatal(err)
		case !strings.Contains(err.Error(), "API error"): // the lease was lost, or an answer did not come in time
			epochs, slow = epochs-1, slow+1
		}
		t.Log(err)
	}
	t.Fatalf("not captured in %d epochs", limit)
	return 0
}

// sendAll sends rows and a heartbeat, and waits until all is stored.
func (w *writer) sendAll(t *testing.T, rows ...capture.Change) error {
	t.Helper()
	for _, c := range rows {
		if err := w.Row(t.Context(), c); err != nil {
			return err
		}
	}
	if err := w.Heartbeat(t.Context(), heartbeat(1000)); err != nil {
		return err
	}
	// Scan waits until everything is stored.
	return w.Scan(t.Context(), func(capture.StoredRow) error { return nil })
}

// TestPublish_LargestRow (I10): the limit that an oversize row names is exact, for each
// kind of limit: a row of that size is published, and one with a byte more is not.
// Above 32 MiB it is the file store's own.
func TestPublish_LargestRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		maxPayload int32
		update     func(*jetstream.StreamConfig)
		near       int64
	}{
		"max_payload":  {maxPayload: 1 << 20, near: 1 << 20},
		"file store":   {maxPayload: 64 << 20, near: 32 << 20},
		"max_msg_size": {maxPayload: 1 << 20, update: func(cfg *jetstream.StreamConfig) { cfg.MaxMsgSize = 100_000 }, near: 100_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWriter(t, testenv.NATS(t, func(o *server.Options) { o.MaxPayload = c.maxPayload }).URL(), "a")
			w.begin(t)
			if c.update != nil {
				w.update(t, c.update)
				w.begin(t)
			}
			for range 10 { // so that numbers in headers keep their lengths
				w.mustHeartbeat(t, 1000)
			}
			if err := w.sendAll(t, sized(1, 1000, int(c.near))); err != nil {
				t.Fatal(err)
			}
			limit := w.mark(t, 1).Limit
			if limit >= c.near || limit < c.near-200 {
				t.Fatalf("the limit is %d, want a little less than %d", limit, c.near)
			}
			if err := w.sendAll(t, sized(1, 1000, int(limit))); err != nil {
				t.Fatalf("a row of %d bytes: %v", limit, err)
			}
			w.wantRow(t, 1)
			if err := w.sendAll(t, sized(1, 1000, int(limit)+1)); err != nil {
				t.Fatal(err)
			}
			w.mark(t, 1)
		})
	}
}

// TestPublish_RowAboveTheFileStoresLimit (I10): the file store of nats-server takes no
// record above 32 MiB, whatever max_payload allows. Such a row is replaced among
// ordinary ones, and the epoch goes on.
func TestPublish_RowAboveTheFileStoresLimit(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t, func(o *server.Options) { o.MaxPayload = 64 << 20 }).URL(), "a")
	if n := w.capture(t, 1, change(1, 5, "x"), sized(2, 6, 33<<20), change(3, 7, "x")); n != 1 {
		t.Errorf("%d epochs, want 1", n)
	}
	w.awaitContents(t, "fence 1@5 2@6 3@7 heartbeat")
	if c := w.mark(t, 2); c.Bytes != 33<<20 || c.Limit > 32<<20 || c.Reason != "" {
		t.Errorf("got %+v", c)
	}
}

// TestPublish_RefusedRow (I10): the broker has a limit that this version does not know.
// It refuses one row in the middle of others, with the store's error and with that of a
// limit. Only that row is replaced, by a mark with the broker's words, and everything
// else is stored in its order. A new process finds the row, too.
func TestPublish_RefusedRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		maxPayload int32
		update     func(*jetstream.StreamConfig)
		size       int
		words      string
	}{
		"store":    {maxPayload: 64 << 20, size: 33 << 20, words: "message too large (error 10077)"},
		"max size": {maxPayload: 1 << 20, update: func(cfg *jetstream.StreamConfig) { cfg.MaxMsgSize = 10_000 }, size: 20_000, words: "message size exceeds maximum allowed (error 10054)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testenv.NATS(t, func(o *server.Options) { o.MaxPayload = c.maxPayload }).URL()
			start := func(holder string) *writer {
				w := newWriter(t, url, holder)
				w.KnowOnly(jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
				return w
			}
			w := start("a")
			w.begin(t)
			if c.update != nil {
				w.update(t, c.update)
			}
			var rows []capture.Change
			var want []string
			for id := range 40 {
				rows = append(rows, change(id, uint64(10+id), "x"))
				want = append(want, fmt.Sprintf("%d@%d", id, 10+id))
			}
			rows[20] = sized(20, 30, c.size)
			if err := w.sendAll(t, rows...); !errors.Is(err, publish.ErrFault) {
				t.Fatalf("got %v, want a fault", err)
			}
			w.stop() // a restart in between: the new process knows nothing of the refusal
			w = start("b")
			if n := w.capture(t, 2, rows...); n != 2 {
				t.Errorf("the new process took %d epochs, want 2: one is refused, the next finds the row", n)
			}
			w.awaitContents(t, "fence "+strings.Join(want, " ")+" heartbeat")
			if m := w.mark(t, 20); m.Reason != c.words || m.Limit != 0 || m.Bytes != int64(c.size) || m.Txid != 30 || string(m.Key) != `{"id":20}` {
				t.Errorf("got %+v", m)
			}
			w.wantRow(t, 19)
			w.wantRow(t, 21)
			if err := w.sendAll(t, rows...); err != nil {
				t.Errorf("the row again, in the same epoch: %v", err)
			}
			w.mark(t, 20)
			if c.update == nil {
				return
			}
			w.update(t, func(cfg *jetstream.StreamConfig) { cfg.MaxMsgSize = -1 })
			if err := w.sendAll(t, rows...); err != nil {
				t.Errorf("the row without the limit: %v", err)
			}
			w.wantRow(t, 20)
		})
	}
}

// TestPublish_ManyRefusedRows: the broker refuses every other row of many. The first is
// searched for, and the others cost no epoch.
func TestPublish_ManyRefusedRows(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	w.KnowOnly(jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	w.begin(t)
	w.update(t, func(cfg *jetstream.StreamConfig) { cfg.MaxMsgSize = 10_000 })
	var rows []capture.Change
	for id := range 400 {
		size := 1000
		if id%2 == 1 {
			size = 20_000 + id
		}
		rows = append(rows, sized(id, uint64(1000+id), size))
	}
	w.capture(t, 3, rows...)
	for id := range 10 {
		if id%2 == 1 {
			w.mark(t, id)
		} else {
			w.wantRow(t, id)
		}
	}
}

// TestPublish_NoRoomIsNoFaultOfTheRow (I1): a broker that has no room for a row may have
// it for a small message. The relation waits, and no row is replaced.
func TestPublish_NoRoomIsNoFaultOfTheRow(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fill, free func(*testing.T, *writer)
		limit      int64 // of the account's files, if not 0
	}{
		"max_file": {
			fill: func(t *testing.T, w *writer) {
				if err := w.Row(t.Context(), sized(1, 5, 600_000)); err != nil {
					t.Fatal(err)
				}
				w.wantRow(t, 1)
			},
			limit: 1 << 20,
			free:  func(*testing.T, *writer) {},
		},
		"max_bytes": {
			fill: func(t *testing.T, w *writer) {
				w.update(t, func(cfg *jetstream.StreamConfig) { cfg.MaxBytes, cfg.Discard = 1<<20, jetstream.DiscardNew })
				w.begin(t)
				if err := w.Row(t.Context(), sized(1, 5, 600_000)); err != nil {
					t.Fatal(err)
				}
				w.wantRow(t, 1)
			},
			free: func(t *testing.T, w *writer) {
				w.update(t, func(cfg *jetstream.StreamConfig) { cfg.MaxBytes, cfg.Discard = -1, jetstream.DiscardOld })
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := testenv.NATS(t)
			limit := func(n int64) {
				account := server.JetStreamAccountLimits{MaxStore: n, MaxMemory: -1, MaxStreams: -1, MaxConsumers: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1, MaxAckPending: -1}
				if err := broker.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"": account}); err != nil {
					t.Fatal(err)
				}
			}
			w := newWriter(t, broker.URL(), "a")
			w.begin(t)
			c.fill(t, w)
			if c.limit != 0 {
				limit(c.limit)
			}
			big := sized(2, 6, 800_000)
			for range 3 {
				w.begin(t)
				err := w.sendAll(t, big)
				if !errors.Is(err, publish.ErrFault) {
					t.Fatalf("without room: got %v, want a fault", err)
				}
				t.Log(err)
				if m, err := w.row(t, 2); !errors.Is(err, jetstream.ErrMsgNotFound) {
					t.Fatalf("without room: got %+v, %v", m, err)
				}
			}
			c.free(t, w)
			if c.limit != 0 {
				limit(-1)
			}
			w.begin(t)
			if err := w.sendAll(t, big); err != nil {
				t.Fatal(err)
			}
			w.wantRow(t, 2)
		})
	}
}

// refuseOne brings the writer into an epoch that sends rows alone.
func (w *writer) refuseOne(t *testing.T) {
	t.Helper()
	w.KnowOnly(jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	w.begin(t)
	w.update(t, func(cfg *jetstream.StreamConfig) { cfg.MaxMsgSize = 10_000 })
	if err := w.sendAll(t, sized(9, 5, 20_000)); !errors.Is(err, publish.ErrFault) {
		t.Fatalf("got %v, want a fault", err)
	}
	w.begin(t)
}

// moody is a broker that refuses the next messages that are published one by one, whatever
// they are, and then takes all. If it is mute, consumers are of a stream without messages.
type moody struct {
	jetstream.JetStream
	refusals atomic.Int32
	mute     atomic.Bool
}

func (m *moody) CreateConsumer(ctx context.Context, name string, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if m.mute.Load() {
		s, err := m.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "mute", Subjects: []string{"mute"}})
		if err != nil {
			return nil, err
		}
		name = s.CachedInfo().Config.Name
	}
	return m.JetStream.CreateConsumer(ctx, name, cfg)
}

func (m *moody) PublishMsg(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if m.refusals.Load() > 0 {
		m.refusals.Add(-1)
		return nil, fmt.Errorf("nats: %w", &jetstream.APIError{Code: 503, ErrorCode: 10008, Description: "JetStream system temporarily unavailable"})
	}
	return m.JetStream.PublishMsg(ctx, msg, opts...)
}

// TestPublish_RefusedWithEverythingElse (I1): the broker refuses a row that is sent alone,
// and then everything else for a while, or not even the row's second try. So it is no fault
// of the row.
func TestPublish_RefusedWithEverythingElse(t *testing.T) {
	t.Parallel()
	for refusals, fault := range map[int32]bool{1: false, 2: true, 3: true} {
		t.Run(fmt.Sprint(refusals), func(t *testing.T) {
			t.Parallel()
			w := newWriter(t, testenv.NATS(t).URL(), "a")
			w.refuseOne(t)
			w.broker.refusals.Store(refusals)
			if err := w.Row(t.Context(), change(1, 6, "x")); errors.Is(err, publish.ErrFault) != fault {
				t.Errorf("got %v, want a fault: %v", err, fault)
			}
			if m, err := w.row(t, 1); m.Control != nil {
				t.Errorf("got %+v, %v, want no mark", m, err)
			}
			w.broker.refusals.Store(0)
			w.capture(t, 1, change(1, 6, "x"))
			w.wantRow(t, 1)
		})
	}
}

// TestPublish_DeposedWriterStoresNothingAlone (I6): a row that is sent alone is fenced like
// all others.
func TestPublish_DeposedWriterStoresNothingAlone(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	a, b := newWriter(t, url, "same"), newWriter(t, url, "same")
	a.refuseOne(t)
	a.mustRow(t, 1, 5)
	a.awaitContents(t, "fence 1@5")
	b.begin(t)
	if err := a.Row(t.Context(), change(1, 9, "old")); !errors.Is(err, publish.ErrFault) {
		t.Errorf("got %v, want a fault", err)
	}
	b.mustRow(t, 2, 7)
	b.awaitContents(t, "1@5 fence 2@7")
}

// TestPublish_KeyTooLong (I10): a key that does not fit into the headers can't be
// published in any form. Its row is left out, and all others are published.
func TestPublish_KeyTooLong(t *testing.T) {
	t.Parallel()
	w := newWriter(t, testenv.NATS(t).URL(), "a")
	long := change(2, 6, "x")
	long.Key = [][]byte{[]byte(strings.Repeat("k", 70_000))}
	w.capture(t, 1, change(1, 5, "x"), long, change(3, 7, "x"))
	w.awaitContents(t, "fence 1@5 3@7 heartbeat")
	long.Key = [][]byte{[]byte(strings.Repeat("k", 60_000))}
	w.capture(t, 1, long)
	l := stream.NewLayout("lockstep", "public", "t", false)
	subject, _ := l.AppendRowSubject(nil, long.Key)
	s, err := w.js.Stream(t.Context(), l.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetLastMsgForSubject(t.Context(), string(subject)); err != nil {
		t.Errorf("a key that fits: %v", err)
	}
}
