package testenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// claims keeps other test processes from taking the ports that this process has chosen. A claim is an abstract unix
// socket, named after the port and held until this process ends.
var claims struct {
	sync.Mutex
	held []net.Listener
}

// FreePort finds a TCP port on loopback, for a server that may be killed and started again on it. The port is below the
// range from which the kernel takes ports for outgoing connections. No other test gets it while this process lives.
func FreePort() (int, error) {
	for range 1000 {
		port := 12000 + rand.IntN(20000)
		claim, err := net.Listen("unix", "@lockstep-test-port-"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			claim.Close()
			continue
		}
		l.Close()
		claims.Lock()
		claims.held = append(claims.held, claim)
		claims.Unlock()
		return port, nil
	}
	return 0, errors.New("find a free TCP port on 127.0.0.1: none of 1000 tried")
}
