//go:build !linux

package source

import (
	"context"
	"net"
)

// dial returns a connection that fails if the server vanishes from the network:
// by keepalives or, with unacknowledged data, when TCP gives up.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: keepAlive}
	return d.DialContext(ctx, network, address)
}
