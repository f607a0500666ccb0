package source

import (
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// A connection with unacknowledged data to a server that vanished fails soon (I9).
func TestConfigure_GivesUpWhatIsNotAcknowledged(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cfg, err := pgconn.ParseConfig("postgres://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	Configure(cfg)
	c, err := cfg.DialFunc(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if controlErr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	if got != int(goneAfter.Milliseconds()) {
		t.Errorf("given up after %d ms, want %s", got, goneAfter)
	}
}
