package broker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// minServer is the first nats-server whose streams with one message for each subject keep every last one, and whose
// batches hold what the writer relies on.
const minServer = "2.14.5"

// ErrOldServer is in the error of CheckServer about a server that is too old.
var ErrOldServer = errors.New("nats-server is too old")

// CheckServer refuses a server that loses rows. It looks at the one server that the connection is with, so it is
// called again after each reconnect: another member of a cluster may be older.
func CheckServer(nc *nats.Conn) error {
	got := nc.ConnectedServerVersion()
	if got == "" {
		return nats.ErrDisconnected
	}
	if older(got, minServer) {
		return fmt.Errorf("%w: %s runs %s, and before %s it loses rows when it compacts a stream; upgrade every "+
			"server of the cluster to %s or later", ErrOldServer, nc.ConnectedAddr(), got, minServer, minServer)
	}
	return nil
}

// older compares versions like 2.14.5 and 2.15.0-RC.1; a pre-release is older than its release, and what is not a
// version is older than all.
func older(got, than string) bool {
	g, pre, ok := parseVersion(got)
	if !ok {
		return true
	}
	t, _, _ := parseVersion(than)
	for i := range g {
		if g[i] != t[i] {
			return g[i] < t[i]
		}
	}
	return pre
}

func parseVersion(s string) (v [3]int, pre, ok bool) {
	s = strings.TrimPrefix(s, "v")
	s, _, _ = strings.Cut(s, "+")
	s, _, pre = strings.Cut(s, "-")
	parts := strings.Split(s, ".")
	if len(parts) != len(v) {
		return v, pre, false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return v, pre, false
		}
		v[i] = n
	}
	return v, pre, true
}
