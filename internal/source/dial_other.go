//go:build !linux

package source

import (
	"context"
	"net"
)

// dial connects so that a server that vanished from the network is noticed, by
// keepalives or, where something was sent to it, when TCP gives up.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: keepAlive}
	return d.DialContext(ctx, network, address)
}
