package edge

import (
	"fmt"
	"net"
	"sync"
)

// places bounds the clients that are served at a time.
type places struct {
	// Static after construction; 0 is no bound.
	most, perAddress int

	mu sync.Mutex
	// Guarded by mu.
	taken     int
	addresses map[string]int
}

func newPlaces(most, perAddress int) *places {
	return &places{most: most, perAddress: perAddress, addresses: make(map[string]int)}
}

// take takes a place for a client at an address, host and port. The caller gives it back
// with leave. If there is none, take returns a refusal.
func (p *places) take(remote string) *Refusal {
	host := hostOf(remote)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.most > 0 && p.taken >= p.most:
		return &Refusal{Code: TooManyClients, Message: "this server has as many clients as it takes; try again later"}
	case p.perAddress > 0 && p.addresses[host] >= p.perAddress:
		return &Refusal{Code: TooManyClients, Message: fmt.Sprintf("your address has %d clients here, and may have no more", p.perAddress)}
	}
	p.taken++
	if p.perAddress > 0 {
		p.addresses[host]++
	}
	return nil
}

// leave gives the place of a client back.
func (p *places) leave(remote string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.perAddress == 0 {
		return
	}
	host := hostOf(remote)
	if p.addresses[host]--; p.addresses[host] == 0 {
		delete(p.addresses, host)
	}
}

// count returns how many places are taken.
func (p *places) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

func hostOf(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	return host
}
