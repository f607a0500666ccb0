package publish_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"bridge/internal/publish"
	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/internal/topic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// listener is a subscriber of core NATS that keeps what it got.
type listener struct {
	nc  *nats.Conn
	mu  sync.Mutex
	got []*nats.Msg
}

func listen(t *testing.T, url, subject string) *listener {
	t.Helper()
	l := &listener{nc: testenv.NATSConn(t, url)}
	if _, err := l.nc.Subscribe(subject, func(m *nats.Msg) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.got = append(l.got, m)
	}); err != nil {
		t.Fatal(err)
	}
	if err := l.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *listener) messages() []*nats.Msg {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*nats.Msg(nil), l.got...)
}

// subjects returns the subjects that the listener got messages on, in order.
func (l *listener) subjects() string {
	var out []string
	for _, m := range l.messages() {
		out = append(out, m.Subject)
	}
	return strings.Join(out, " ")
}

// TestIngest_SubscribersSeeWhatIsStored_I6: a subscriber of the stream's subjects gets exactly what the stream stores, in
// its order and with the place in it, and no subject to reply to. It never gets a row of a writer that was deposed.
func TestIngest_SubscribersSeeWhatIsStored_I6(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) {
			t.Parallel()
			url := broker(t, replicas)
			sub := listen(t, url, "lockstep.>")
			a, b := newWriter(t, url, "same"), newWriter(t, url, "same")
			a.beginSoon(t)
			a.mustRow(t, 1, 5)
			a.mustHeartbeat(t, 6)
			a.awaitContents(t, "fence 1@5 heartbeat")
			b.beginSoon(t)
			b.mustRow(t, 2, 7)
			b.awaitContents(t, "1@5 heartbeat fence 2@7")
			a.awaitFault(t, change(1, 9, "of a deposed writer"))
			b.mustRow(t, 3, 8)
			b.mustHeartbeat(t, 9)
			b.awaitContents(t, "1@5 fence 2@7 3@8 heartbeat")
			s, err := b.js.Stream(t.Context(), "LOCKSTEP-public-t")
			if err != nil {
				t.Fatal(err)
			}
			last := s.CachedInfo().State.LastSeq
			testenv.Eventually(t, testenv.Patience(), func() error {
				if n := len(sub.messages()); n != int(last) {
					return fmt.Errorf("the subscriber has %d messages, the stream stored %d", n, last)
				}
				return nil
			})
			for i, m := range sub.messages() {
				if strings.Contains(string(m.Data), "deposed") || m.Reply != "" || m.Header.Get(jetstream.SequenceHeader) != strconv.Itoa(i+1) ||
					m.Header.Get(jetstream.StreamHeader) != "LOCKSTEP-public-t" || m.Subject != m.Header.Get(jetstream.SubjectHeader) {
					t.Errorf("message %d: subject %s, reply %q, headers %v, %s", i+1, m.Subject, m.Reply, m.Header, m.Data)
				}
			}
		})
	}
}

// broker returns the address of a broker with that many servers.
func broker(t *testing.T, servers int) string {
	t.Helper()
	if servers == 1 {
		return testenv.NATSProcess(t).URL()
	}
	return testenv.NATSCluster(t, servers)[0].URL()
}

// beginSoon begins as soon as a cluster has leaders.
func (w *writer) beginSoon(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, testenv.Patience(), func() error {
		_, err := w.Begin(t.Context(), source, func() {})
		return err
	})
}

// TestIngest_RepliesEndNoEpoch_I10: a subscriber that answers every message which it can see, with garbage or with what
// the broker's acknowledgements look like, ends no epoch and makes nothing count as stored.
func TestIngest_RepliesEndNoEpoch_I10(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	nc := testenv.NATSConn(t, url)
	for _, answer := range []string{
		"", "thanks", "+OK", `{"stream":"LOCKSTEP-public-t","seq":18446744073709551615}`,
		`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 1"}}`,
		`{"type":"ack","seq":1000000,"msgs":1000000}`, `{"type":"err","seq":1,"error":{"code":400,"err_code":10077}}`,
		`{"type":"gap","last_seq":1,"seq":7}`, `{"stream":"LOCKSTEP-public-t","seq":1,"batch":"x","count":1}`,
	} {
		if _, err := nc.Subscribe("lockstep.>", func(m *nats.Msg) {
			if m.Reply != "" {
				_ = nc.Publish(m.Reply, []byte(answer))
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, url, "a")
	w.begin(t)
	for id := range 3000 { // more than the broker acknowledges together
		w.mustRow(t, id, 10)
	}
	w.mustHeartbeat(t, 11)
	if rows := w.scan(t); len(rows) != 3000 { // it waits until everything is stored
		t.Errorf("the stream has %d rows, want 3000", len(rows))
	}
	select {
	case <-w.Ended():
		t.Error("the epoch ended")
	default:
	}
}

// TestIngest_TakesOverAnEarlierStream_I7: a stream of a bridge that published on the stream's own subjects is continued,
// with its messages, its incarnation and its floor. That bridge stores nothing in it any more.
func TestIngest_TakesOverAnEarlierStream_I7(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas, " replicas"), func(t *testing.T) {
			t.Parallel()
			url := broker(t, replicas)
			w := newWriter(t, url, "a")
			w.beginSoon(t)
			w.mustRow(t, 1, 5)
			w.mustHeartbeat(t, 6)
			w.awaitContents(t, "fence 1@5 heartbeat")
			w.stop()
			s, err := w.js.Stream(t.Context(), "LOCKSTEP-public-t")
			if err != nil {
				t.Fatal(err)
			}
			old := s.CachedInfo().Config
			old.Subjects, old.SubjectTransform, old.RePublish = []string{"lockstep.public.t.>"}, nil, nil
			if _, err := w.js.UpdateStream(t.Context(), old); err != nil {
				t.Fatal(err)
			}
			if list, err := stream.List(t.Context(), w.js, "lockstep"); err != nil || len(list) != 1 {
				t.Errorf("readers find the streams %v, %v", list, err)
			}
			b := newWriter(t, url, "b")
			b.beginSoon(t)
			b.mustRow(t, 2, 7)
			b.mustHeartbeat(t, 8)
			b.awaitContents(t, "1@5 fence 2@7 heartbeat")
			if s, err = b.js.Stream(t.Context(), "LOCKSTEP-public-t"); err != nil {
				t.Fatal(err)
			}
			now, err := stream.ReadMeta(s.CachedInfo().Config)
			if err != nil {
				t.Fatal(err)
			}
			if before, err := stream.ReadMeta(old); err != nil || now.Incarnation != before.Incarnation || now.Floor != before.Floor {
				t.Errorf("the stream is %+v now and was %+v, %v", now, before, err)
			}
			foreign := change(1, 9, "of the earlier bridge")
			msg := &nats.Msg{Subject: "lockstep.public.t.row.1", Data: foreign.Line, Header: nats.Header{stream.HighHeader: {"9"}}}
			if ack, err := b.js.PublishMsg(t.Context(), msg, jetstream.WithRetryAttempts(0)); err == nil {
				t.Errorf("the stream stored a message on its own subject: %+v", ack)
			}
			if list, err := stream.List(t.Context(), b.js, "lockstep"); err != nil || len(list) != 1 {
				t.Errorf("readers find the streams %v, %v", list, err)
			}
		})
	}
}

// TestIngest_Topics: copies of the rows go where the setting says. Each kind of subject is tried with a plain key, with one
// that is escaped, with one that is replaced by its hash, and with a composite key.
func TestIngest_Topics(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", 300)
	for _, tc := range []struct {
		to   topic.Topic
		log  bool
		keys [][]string
		want string
	}{
		{"a.{schema}_{table}", false, [][]string{{"1"}, {"x y"}, {long}}, "a.public_t a.public_t a.public_t"},
		{"a.{key}", false, [][]string{{"1"}, {"x y"}, {""}}, "a.1 a.x=20y a.="},
		{"a.{table}.{key}", false, [][]string{{"1", "2"}, {"x.y", ""}}, "a.t.1.2 a.t.x=2Ey.="},
		{"a.{key}.{table}", false, [][]string{{"1"}, {"x.y"}}, "a.1.t a.x=2Ey.t"},
		{"a.{table}", true, [][]string{{"1"}, {"1", "2"}, {long}}, "a.t a.t a.t"},
	} {
		t.Run(fmt.Sprintf("%s log %v", tc.to, tc.log), func(t *testing.T) {
			t.Parallel()
			url := testenv.NATS(t).URL()
			sub, own := listen(t, url, "a.>"), listen(t, url, "lockstep.>")
			w := startWriter(t, url, "a", publish.Options{Log: tc.log, Settings: stream.Settings{Republish: tc.to}})
			w.begin(t)
			for i, key := range tc.keys {
				c := change(i, 5, "x")
				c.Key = nil
				for _, k := range key {
					c.Key = append(c.Key, []byte(k))
				}
				if err := w.Row(t.Context(), c); err != nil {
					t.Fatal(err)
				}
			}
			w.mustHeartbeat(t, 6)
			testenv.Eventually(t, testenv.Patience(), func() error {
				if got := sub.subjects(); got != tc.want {
					return fmt.Errorf("copies came on %q, want %q", got, tc.want)
				}
				return nil
			})
			if got := own.subjects(); got != "" {
				t.Errorf("copies came on %q, too", got)
			}
		})
	}
}

// TestIngest_OtherTopicInPlace: a stream takes up another setting for its copies with the next epoch.
func TestIngest_OtherTopicInPlace(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	sub := listen(t, url, "*.>")
	var want []string
	for i, to := range []topic.Topic{"a.{table}", topic.Off, "b.{table}"} {
		w := startWriter(t, url, "a", publish.Options{Settings: stream.Settings{Republish: to}})
		w.begin(t)
		w.mustRow(t, i, uint64(5+i))
		w.mustHeartbeat(t, uint64(6+i))
		w.scan(t) // everything is stored
		w.stop()
		if to != topic.Off {
			want = append(want, string(to[:1])+".t")
		}
	}
	testenv.Eventually(t, testenv.Patience(), func() error {
		var got []string
		for _, m := range sub.messages() {
			if strings.HasSuffix(m.Subject, ".t") {
				got = append(got, m.Subject)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("copies came on %v, want %v", got, want)
		}
		return nil
	})
}

// TestIngest_TopicsThatAreRefused: no copy gets into the stream of a relation, of whatever bridge, nor to the broker.
func TestIngest_TopicsThatAreRefused(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	js := testenv.JetStream(t, url)
	other := stream.NewLayout("other", "public", "t", false)
	if _, err := js.CreateStream(t.Context(), stream.Config(other, stream.Meta{Schema: "public", Table: "t", Incarnation: "i"}, stream.Settings{})); err != nil {
		t.Fatal(err)
	}
	for _, to := range []topic.Topic{"lockstep.x", "_lockstep.public.t.row.1", "_INBOX.x", "_other.public.t.row.1", "other.public.t.row.{key}", "other.{schema}.{table}.row.1"} {
		w := startWriter(t, url, "a", publish.Options{Settings: stream.Settings{Republish: to}})
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience())
		if _, err := w.Begin(ctx, source, func() {}); err == nil || !strings.Contains(err.Error(), "republish="+string(to)) || ctx.Err() != nil {
			t.Errorf("%s: %v", to, err)
		}
		cancel()
		w.stop()
	}
}

// TestIngest_NoOtherStreamStoresCopies: docs/nats.md says so, and bridge check warns of it. If a later server strips the header
// of the condition, both can go.
func TestIngest_NoOtherStreamStoresCopies(t *testing.T) {
	t.Parallel()
	url := testenv.NATS(t).URL()
	js := testenv.JetStream(t, url)
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})
	if err != nil {
		t.Fatal(err)
	}
	sub := listen(t, url, "events.>")
	w := startWriter(t, url, "a", publish.Options{Settings: stream.Settings{Republish: "events.{table}"}})
	w.begin(t)
	for i := range 5 {
		w.mustRow(t, i, uint64(5+i))
	}
	testenv.Eventually(t, testenv.Patience(), func() error {
		if n := len(sub.messages()); n != 5 {
			return fmt.Errorf("%d copies came, want 5", n)
		}
		return nil
	})
	if info, err := s.Info(t.Context()); err != nil || info.State.Msgs != 0 {
		t.Errorf("stream EVENTS stored %d copies, %v", info.State.Msgs, err)
	}
}
