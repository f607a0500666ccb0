package edge_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/internal/testenv"
)

// dialFrom connects from one of the loopback addresses.
func dialFrom(t *testing.T, from, addr string) *conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, c)
}

// quiet is a source whose streams have nothing.
func quiet() *fake {
	return &fake{open: func(context.Context, edge.Request) (edge.Stream, error) { return newFeed(), nil }}
}

// TestServer_MaxClients_I9: more clients than the edge takes are refused before the first byte, and are taken when others have
// left. Requests that are no streams are always answered.
func TestServer_MaxClients_I9(t *testing.T) {
	t.Parallel()
	r := serve(t, quiet(), edge.Options{MaxClients: 3, KeepAlive: 50 * time.Millisecond})
	clients := []*conn{get(t, r.addr, "/users"), get(t, r.addr, "/users"), get(t, r.addr, "/users")}
	ask := func(target string) string {
		c := dial(t, r.addr)
		c.send(t, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
		return c.head(t)
	}
	if head := ask("/users"); !strings.HasPrefix(head, "HTTP/1.1 503 ") || !strings.Contains(head, "\r\nRetry-After: ") {
		t.Errorf("a fourth client got\n%s", head)
	}
	if head := ask("/healthz"); !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		t.Errorf("/healthz got\n%s", head)
	}
	r.awaitMetric(t, "lockstep_edge_refusals_total", "too_many_clients", 1)
	_ = clients[0].Close()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if head := ask("/users"); !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			return fmt.Errorf("after a client left, another got\n%s", head)
		}
		return nil
	})
}

// TestServer_RefusedRequestsTakeNoPlace_I9: the place of a request that is not served is free again.
func TestServer_RefusedRequestsTakeNoPlace_I9(t *testing.T) {
	t.Parallel()
	src := &fake{}
	r := serve(t, src, edge.Options{MaxClients: 1, MaxClientsPerAddress: 1})
	for range 3 {
		for _, method := range []string{"GET", "HEAD"} {
			c := dial(t, r.addr)
			c.send(t, method+" /users HTTP/1.1\r\nHost: x\r\n\r\n")
			if head := c.head(t); !strings.HasPrefix(head, "HTTP/1.1 404 ") {
				t.Fatalf("got %s", head)
			}
		}
	}
}

// TestServer_MaxClientsPerAddress_I10: an address that has as many clients as it may have keeps no other address out.
func TestServer_MaxClientsPerAddress_I10(t *testing.T) {
	t.Parallel()
	r := serve(t, quiet(), edge.Options{MaxClientsPerAddress: 2})
	for _, tt := range []struct{ from, want string }{
		{"127.0.0.2", "200"}, {"127.0.0.2", "200"}, {"127.0.0.2", "503"}, {"127.0.0.3", "200"}, {"127.0.0.2", "503"}, {"127.0.0.3", "200"},
	} {
		c := dialFrom(t, tt.from, r.addr)
		c.send(t, "GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
		if head := c.head(t); !strings.HasPrefix(head, "HTTP/1.1 "+tt.want) {
			t.Errorf("%s got %s, want %s", tt.from, head, tt.want)
		}
	}
}

// TestServer_DrainIsSpread: if there are many clients, a server that stops sends them away in parts, so that other edges do not
// get all of them at the same time.
func TestServer_DrainIsSpread(t *testing.T) {
	t.Parallel()
	const clients = edge.FewClients + 100
	r := serve(t, quiet(), edge.Options{})
	conns := make([]*conn, clients)
	for i := range conns {
		conns[i] = get(t, r.addr, "/users")
	}
	r.stop()
	ends := make(chan time.Time, clients)
	for _, c := range conns {
		go func() {
			_, _ = c.chunk()
			ends <- time.Now()
		}()
	}
	first := <-ends
	var last time.Time
	for range clients - 1 {
		last = <-ends
	}
	if spread := last.Sub(first); spread < (edge.DrainBatches-1)*edge.DrainPause/2 {
		t.Errorf("all clients were sent away within %s", spread)
	}
	<-r.done
}
