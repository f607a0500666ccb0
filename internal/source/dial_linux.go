package source

import (
	"context"
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dial connects so that a server that vanished from the network is noticed within
// goneAfter, also where something was sent to it: keepalives only probe a
// connection on which nothing is under way, and TCP itself sends again for some
// 15 minutes (tcp(7): TCP_USER_TIMEOUT, tcp_retries2).
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: keepAlive, Control: func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		return c.Control(func(fd uintptr) {
			// Where the system does not know it, the connection works without.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(goneAfter.Milliseconds()))
		})
	}}
	return d.DialContext(ctx, network, address)
}
