package edge

import (
	"errors"
	"net"
	"syscall"
)

// peer is what a look at a connection shows of the client's side.
type peer int

const (
	// peerOpen: the client is there, as far as one sees.
	peerOpen peer = iota
	// peerSilent: the client sends nothing more. It may still read, or be gone: only an
	// answer to what is written to it tells.
	peerSilent
	// peerGone: the connection is broken.
	peerGone
)

// lookReads bounds the reads of one look. What they read into is on the stack of each
// client, which it must not make larger.
const lookReads = 128

// look reads what the client has sent, which is not heard, and does not wait. No client
// has a goroutine that reads. What was not read when the connection is closed would
// destroy what was written and not yet taken (RFC 9112, section 9.6).
func look(conn net.Conn) peer {
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return peerOpen
	}
	c, err := raw.SyscallConn()
	if err != nil {
		return peerGone
	}
	found := peerOpen
	err = c.Read(func(fd uintptr) bool {
		found = drain(int(fd))
		return true
	})
	if err != nil {
		return peerGone
	}
	return found
}

func drain(fd int) peer {
	var buf [512]byte
	for range lookReads {
		n, _, err := syscall.Recvfrom(fd, buf[:], syscall.MSG_DONTWAIT)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return peerOpen
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return peerGone
		case n == 0:
			return peerSilent
		}
	}
	return peerOpen
}
