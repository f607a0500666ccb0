//go:build stack

package stacktest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// crowd is how many clients are connected through nginx when an edge is killed.
const crowd = 200

// The cluster: two bridges, three NATS servers, and nginx in front of two edges.
// The test makes a fault of each kind that a stack of one machine can't survive
// (I1, I6, I7, I8).
func TestStack_Cluster(t *testing.T) {
	s := up(t, []string{"demo", "cluster"}, "nginx", "writer")
	first := overHTTP(t, "HTTP client", s.ports["NGINX_PORT"])
	s.heal("nothing", time.Now(), first)

	leader, standby := s.leader()
	dead := s.container(leader)
	s.docker("update", "--restart", "no", dead) // otherwise it might be back before the other one notices
	begun := time.Now()
	s.kill(leader)
	if took := s.heal("leading bridge killed, the other took over", begun, first); took > 5*time.Second {
		t.Errorf("I6: the other bridge wrote after %s, want 5s", took)
	}
	if state := s.state(standby); state != "live" {
		t.Errorf("%s is %q", standby, state)
	}
	s.docker("update", "--restart", "unless-stopped", dead)
	s.docker("start", dead)
	s.healthy()

	begun = time.Now()
	s.wipe("nats-2")
	s.heal("one of three NATS servers stopped and wiped", begun, first)
	begun = time.Now()
	s.run("up", "-d", "--no-deps", "nats-2")
	s.healthy()
	s.heal("the wiped server back, and healthy", begun, first)

	leader, standby = s.leader()
	network := "lockstep-test_broker"
	id := s.container(leader)
	begun = time.Now()
	s.docker("network", "disconnect", network, id)
	s.heal("leading bridge cut off from NATS, the other took over", begun, first)
	if state := s.state(standby); state != "live" {
		t.Errorf("%s is %q", standby, state)
	}
	begun = time.Now()
	s.docker("network", "connect", "--alias", leader, network, id)
	testenv.Eventually(t, healWithin, func() error {
		if state := s.state(leader); state != "standby" {
			return fmt.Errorf("%s, cut off before, is %s", leader, state)
		}
		return nil
	})
	s.heal("the bridge that was cut off is back, and stands by", begun, first)

	clients := []*reader{first}
	for n := range crowd {
		clients = append(clients, overHTTP(t, fmt.Sprint("client ", n), s.ports["NGINX_PORT"]))
	}
	s.heal(fmt.Sprint(crowd, " more clients came"), time.Now(), clients...)
	before := cuts(clients)
	begun = time.Now()
	s.kill("edge-1")
	s.heal(fmt.Sprintf("one edge killed under %d clients", crowd), begun, clients...)
	if moved := cuts(clients) - before; moved < crowd/2 {
		t.Errorf("%d streams were cut, want at least %d: the killed edge served too few clients", moved, crowd/2)
	} else {
		t.Logf("%d streams were cut and resumed through nginx", moved)
	}
	s.healthy()
	s.compare(clients...)
	s.reproducible()
}

// reproducible compares two builds of the same source. It compiles everything a
// second time, so it stands here and not in the test that CI runs.
func (s *stack) reproducible() {
	s.t.Helper()
	const image, binary = "lockstep-bridge", "/bridge"
	s.docker("build", "-q", "--no-cache", "--target", "bridge", "-t", image+":again", filepath.Join("..", ".."))
	defer s.docker("image", "rm", image+":again")
	if a, b := s.digest(image, binary), s.digest(image+":again", binary); a != b {
		s.t.Errorf("two builds of %s have the digests %s and %s", binary, a, b)
	}
}

// digest returns the SHA-256 of a file in an image.
func (s *stack) digest(image, path string) string {
	s.t.Helper()
	id := s.docker("create", image)
	defer s.docker("rm", id)
	file := filepath.Join(s.t.TempDir(), "file")
	s.docker("cp", id+":"+path, file)
	data, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func cuts(readers []*reader) (n int) {
	for _, r := range readers {
		r.mu.Lock()
		n += r.cuts
		r.mu.Unlock()
	}
	return n
}

// leader returns the bridge that captures products, and the other one.
func (s *stack) leader() (leader, other string) {
	s.t.Helper()
	testenv.Eventually(s.t, healWithin, func() error {
		a, b := s.state("bridge-1"), s.state("bridge-2")
		switch "live" {
		case a:
			leader, other = "bridge-1", "bridge-2"
		case b:
			leader, other = "bridge-2", "bridge-1"
		default:
			return fmt.Errorf("bridge-1 is %q, bridge-2 %q", a, b)
		}
		return nil
	})
	return leader, other
}

// state asks a bridge for its state of products. The bridge's port is not
// published, so state asks at the container's own address.
func (s *stack) state(bridge string) string {
	s.t.Helper()
	addresses := s.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", s.container(bridge))
	for _, ip := range strings.Fields(addresses) {
		body, err := fetch("http://" + ip + ":8081/readyz")
		if err != nil {
			continue
		}
		var r struct {
			Ready     bool
			Reason    string
			Relations map[string]struct{ State, Reason string }
		}
		if err := json.Unmarshal(body, &r); err != nil {
			return err.Error()
		}
		if r.Reason != "" {
			return r.Reason
		}
		return r.Relations["products"].State
	}
	return "not reached at " + addresses
}

// wipe stops a NATS server and removes its files.
func (s *stack) wipe(service string) {
	s.t.Helper()
	s.run("rm", "-f", "-s", service)
	s.docker("volume", "rm", "lockstep-test_"+service)
}
