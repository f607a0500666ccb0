package source

import (
	"context"
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dial returns a connection that fails within goneAfter if the server vanishes
// from the network. Keepalives are not enough: they probe only a connection
// without unacknowledged data, and TCP itself sends such data again for some 15
// minutes (tcp(7): TCP_USER_TIMEOUT, tcp_retries2).
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: keepAlive, Control: func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		return c.Control(func(fd uintptr) {
			// A system without this option still gets a connection.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(goneAfter.Milliseconds()))
		})
	}}
	return d.DialContext(ctx, network, address)
}
