package e2e_test

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"bridge/internal/testenv"

	"github.com/nats-io/nats-server/v2/server"
)

// Bridge and edge connect to a leaf node, and the streams are in the JetStream domain of the hub (NATS_JS_DOMAIN). The
// leaf node has a JetStream of its own, so that a request without the domain would go there. A bridge that is killed goes
// on in the hub.
func TestDomain_StreamsAreBehindALeafNode_I3(t *testing.T) {
	needServers(t)
	var leaves net.Addr
	hub := testenv.NATS(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "hub", "hub"
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		leaves = l.Addr()
		_ = l.Close()
		o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", leaves.(*net.TCPAddr).Port
	})
	leaf := testenv.NATS(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "leaf", "leaf"
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats", Host: leaves.String()}}}}
	}).URL()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, append([]string{stampSQL}, tableSQL("t", 3)...)...)
	conn := connect(t, db)
	const domain = "NATS_JS_DOMAIN=hub"
	b := startBridge(t, db, leaf, "t", domain)
	b.awaitReady()
	_, addr := start(t, leaf, domain)
	client := follow(t, testenv.NATSConn(t, hub.URL()), named("t"))
	client.converge(conn)
	b.restart()
	run(t, conn, "UPDATE t SET v = 'after the kill' WHERE id = 1")
	client.converge(conn)
	if status, _, body := get(t, "http://"+addr+"/t?follow=0"); status != http.StatusOK || !strings.Contains(body, "after the kill") {
		t.Errorf("the edge: status %d %s", status, body)
	}
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + leaf, domain, "BRIDGE_TABLES=t"}
	if code, out, stderr := command(t, env, "check"); code != 0 || strings.Contains(out, "left over") {
		t.Errorf("bridge check: exit status %d\n%s%s", code, out, stderr)
	}
	tail := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), env, "tail", "t")
	testenv.Eventually(t, long, func() error {
		if !strings.Contains(tail.Stdout(), "after the kill") {
			return errors.New("bridge tail does not show the row")
		}
		return nil
	})
	tail.Kill()
	env[2] = "NATS_JS_DOMAIN=nowhere"
	if code, out, _ := command(t, env, "check"); code == 0 || !strings.Contains(out, `no server answers for the JetStream domain "nowhere"`) {
		t.Errorf("bridge check with a domain that is not there: exit status %d\n%s", code, out)
	}
	env[2] = "NATS_JS_DOMAIN=a.b"
	if code, out, _ := command(t, env, "check"); code != 2 || !strings.Contains(out, "NATS_JS_DOMAIN") {
		t.Errorf("bridge check with a wrong name: exit status %d\n%s", code, out)
	}
}
