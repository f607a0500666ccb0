package broker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// minServer is the first nats-server that never loses the last message of a subject when it compacts a stream with one
// message per subject, and whose batches do what the writer relies on.
const minServer = "2.14.5"

// ErrOldServer is wrapped in the error of CheckServer about a server that is too old.
var ErrOldServer = errors.New("nats-server is too old")

// CheckServer refuses a server that loses rows. It checks only the server that the connection leads to. So the caller
// calls it again after each reconnect: another member of a cluster may be older.
func CheckServer(nc *nats.Conn) error {
	got := nc.ConnectedServerVersion()
	if got == "" {
		return nats.ErrDisconnected
	}
	if older(got, minServer) {
		return fmt.Errorf("%w: %s runs %s, and versions before %s lose rows when they compact a stream; upgrade every "+
			"server of the cluster to %s or later", ErrOldServer, nc.ConnectedAddr(), got, minServer, minServer)
	}
	return nil
}

// older compares versions such as 2.14.5 and 2.15.0-RC.1. A pre-release is older than its release. Text that is not a
// version is older than every version.
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
