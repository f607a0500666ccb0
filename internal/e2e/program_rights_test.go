package e2e_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// rightsInNATS returns the configuration that docs/nats.md gives for the users of a server.
func rightsInNATS(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/nats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```\nauthorization {")
	config, _, more := strings.Cut(rest, "```")
	if !ok || !more {
		t.Fatal("docs/nats.md has no block that begins with authorization {")
	}
	return "authorization {" + strings.ReplaceAll(config, `"…"`, `"secret"`)
}

func as(t *testing.T, broker, user string) string {
	t.Helper()
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, "secret")
	return u.String()
}

// The rights of docs/nats.md are enough for bridge and edge, through a first load, changes, a restart and a comparison. A
// subscriber with those rights gets what is stored. It can't write into a stream, in any of the ways that there are, and
// ends no epoch.
func TestPrograms_RightsInNATS_I10(t *testing.T) {
	needServers(t)
	db := testenv.Postgres(t)
	broker := testenv.NATSProcess(t, testenv.NATSConfig{Extra: rightsInNATS(t), Login: "bridge:secret"}).URL()
	newTable(t, db, "t", 100)
	newBare(t, db, "u", 100)
	conn := connect(t, db)
	var violations []string
	var mu sync.Mutex
	nc := testenv.NATSConn(t, as(t, broker, "subscriber"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		mu.Lock()
		defer mu.Unlock()
		violations = append(violations, err.Error())
	}))
	var copies []*nats.Msg
	if _, err := nc.Subscribe("lockstep.>", func(m *nats.Msg) {
		mu.Lock()
		copies = append(copies, m)
		mu.Unlock()
		if m.Reply != "" {
			_ = m.Respond([]byte(`{"stream":"LOCKSTEP-public-t","seq":1}`))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	b := startWAL(t, db, as(t, broker, "bridge"), "t,u(capture=wal)")
	_, addr := start(t, as(t, broker, "edge"))
	b.awaitReady()
	bridgeConn := testenv.NATSConn(t, as(t, broker, "bridge"))
	f, g := follow(t, bridgeConn, named("t")), follow(t, bridgeConn, bare("u"))
	f.converge(conn)
	g.converge(conn)
	b.restart()
	run(t, conn, "UPDATE t SET v = 'new' WHERE id <= 10", "DELETE FROM u WHERE id <= 10")
	f.converge(conn)
	g.converge(conn)
	reconciled(t, as(t, broker, "bridge"), "t", "100 rows compared: 0 missing, 0 stale, 0 zombies")
	if status, _, body := get(t, "http://"+addr+"/t?follow=0"); status != 200 || strings.Count(body, `"data":`) != 100 {
		t.Errorf("the edge answers %d, with %d rows; want 100", status, strings.Count(body, `"data":`))
	}
	testenv.Eventually(t, long, func() error {
		mu.Lock()
		defer mu.Unlock()
		rows := 0
		for _, m := range copies {
			if f.layout.KindOf(m.Subject) == stream.KindRow {
				rows++
			}
		}
		if rows < 110 {
			return fmt.Errorf("the subscriber got %d rows of t, want 110", rows)
		}
		return nil
	})
	fences := len(f.messages(stream.KindFence, 0))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"a row":           func() error { return nc.Publish("_lockstep.public.t.row.1", []byte("{}")) },
		"a row, in place": func() error { return nc.Publish("lockstep.public.t.row.1", []byte("{}")) },
		"a lease":         func() error { return nc.Publish("$KV.LOCKSTEP_LEASES.LOCKSTEP-public-t", []byte("me")) },
		"an inbox":        func() error { return nc.Publish("_INBOX.x", []byte("{}")) },
		"a request":       func() error { return nc.Publish("_lockstep.reconcile.LOCKSTEP-public-t", nil) },
		"a consumer": func() error {
			return nc.Publish("$JS.API.CONSUMER.CREATE.LOCKSTEP-public-t.x", []byte(`{"stream_name":"LOCKSTEP-public-t","config":{"deliver_subject":"_lockstep.public.u.row.1"}}`))
		},
		"a purge":          func() error { return nc.Publish("$JS.API.STREAM.PURGE.LOCKSTEP-public-t", nil) },
		"a stream":         func() error { return nc.Publish("$JS.API.STREAM.CREATE.x", []byte(`{"name":"x","subjects":["x"]}`)) },
		"what is ingested": func() error { _, err := nc.SubscribeSync("_lockstep.>"); return err },
		"all":              func() error { _, err := nc.SubscribeSync(">"); return err },
		"inboxes":          func() error { _, err := nc.SubscribeSync("_INBOX.>"); return err },
	} {
		mu.Lock()
		before := len(violations)
		mu.Unlock()
		if err := errors.Join(try(), nc.Flush()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		testenv.Eventually(t, long, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(violations) == before {
				return fmt.Errorf("the subscriber may have %s", name)
			}
			return nil
		})
	}
	if _, err := js.Stream(t.Context(), "LOCKSTEP-public-t"); err == nil {
		t.Error("the subscriber may look a stream up")
	}
	run(t, conn, "UPDATE t SET v = 'newest' WHERE id <= 10")
	f.converge(conn)
	if n := len(f.messages(stream.KindFence, 0)); n != fences {
		t.Errorf("an epoch ended: %d fences, then %d", fences, n)
	}
}
