//go:build stack

package stacktest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// relations are those of the sample, with SQL for their live rows: the key, and
// the data as Postgres encodes it.
var relations = map[string]string{
	"products":    "SELECT id::text, (to_jsonb(t) - 'txid' - 'deleted')::text FROM products t WHERE NOT deleted",
	"orders_feed": "SELECT id::text, (to_jsonb(t) - 'txid' - 'deleted')::text FROM orders_feed t WHERE NOT deleted",
	"order_lines": "SELECT id::text, (to_jsonb(t) - 'txid' - 'deleted')::text FROM order_lines t WHERE NOT deleted",
}

const (
	// upWithin is how long the stack may take to be healthy once its images are
	// built.
	upWithin = 3 * time.Minute
	// healWithin is how long a fault may take to heal.
	healWithin = time.Minute
)

// stack is the running stack.
type stack struct {
	t       *testing.T
	compose []string
	env     []string
	ports   map[string]int
	// marks counts the rows that mark wrote.
	marks int
	heals []string
}

// up starts services of the profiles, and returns when all of them are healthy.
// The stack is removed when the test ends.
func up(t *testing.T, profiles []string, services ...string) *stack {
	t.Helper()
	s := &stack{t: t, compose: []string{"docker-compose"}, env: os.Environ(), ports: map[string]int{}}
	if exec.Command("docker", "compose", "version").Run() == nil {
		s.compose = []string{"docker", "compose"}
	}
	s.compose = append(s.compose, "-p", "lockstep-test", "--project-directory", filepath.Join("..", ".."), "-f", filepath.Join("..", "..", "docker-compose.yml"))
	for _, p := range profiles {
		s.compose = append(s.compose, "--profile", p)
	}
	for _, name := range []string{"HTTPEDGE_PORT", "BRIDGE_PORT", "NATS_PORT", "NGINX_PORT", "PROMETHEUS_PORT"} {
		port, err := testenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		s.ports[name] = port
		s.env = append(s.env, fmt.Sprintf("%s=%d", name, s.ports[name]))
	}
	s.down()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.try("logs", "--no-color", "--tail", "60")
			t.Logf("the stack's logs:\n%s", out)
		}
		s.down()
	})
	begun := time.Now()
	s.run(append([]string{"build"}, s.built(services)...)...)
	t.Logf("images built in %s", time.Since(begun).Round(time.Second))
	begun = time.Now()
	s.run(append([]string{"up", "-d"}, services...)...)
	s.healthy()
	t.Logf("up and healthy in %s", time.Since(begun).Round(100*time.Millisecond))
	return s
}

// built returns the services whose images must be built.
func (s *stack) built(services []string) []string {
	for _, name := range services {
		if name == "nginx" {
			return []string{"nats-1", "bridge-1", "edge-1"}
		}
	}
	return []string{"nats", "bridge", "httpedge"}
}

// try runs a compose command.
func (s *stack) try(args ...string) (string, error) {
	args = append(s.compose[1:len(s.compose):len(s.compose)], args...)
	cmd := exec.Command(s.compose[0], args...)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *stack) run(args ...string) {
	s.t.Helper()
	if out, err := s.try(args...); err != nil {
		s.t.Fatalf("compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (s *stack) down() {
	s.t.Helper()
	s.run("down", "--volumes", "--remove-orphans", "--timeout", "5")
}

// docker runs a docker command and returns what it printed.
func (s *stack) docker(args ...string) string {
	s.t.Helper()
	out, err := s.tryDocker(args...)
	if err != nil {
		s.t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (s *stack) tryDocker(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("docker", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// container returns the ID of a service's container.
func (s *stack) container(service string) string {
	s.t.Helper()
	id := s.docker("ps", "-aq", "--filter", "label=com.docker.compose.project=lockstep-test", "--filter", "label=com.docker.compose.service="+service)
	if id == "" || strings.Contains(id, "\n") {
		s.t.Fatalf("service %s has the containers %q, want one", service, id)
	}
	return id
}

// healthy waits until every container runs and, if it has a health check, is
// healthy.
func (s *stack) healthy() {
	s.t.Helper()
	testenv.Eventually(s.t, upWithin, func() error {
		ids := strings.Fields(s.docker("ps", "-aq", "--filter", "label=com.docker.compose.project=lockstep-test"))
		for _, id := range ids {
			state := s.docker("inspect", "-f", "{{.Name}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}healthy{{end}}", id)
			if !strings.HasSuffix(state, " running healthy") {
				return errors.New(state)
			}
		}
		return nil
	})
}

// kill ends a service's process as the kernel's out-of-memory killer would. docker
// kill would count as a manual stop, after which no restart policy applies.
func (s *stack) kill(service string) {
	s.t.Helper()
	pid, err := strconv.Atoi(s.docker("inspect", "-f", "{{.State.Pid}}", s.container(service)))
	if err != nil || pid < 2 {
		s.t.Fatalf("process ID of %s: %d, %v", service, pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("kill %s (%d): %v; the test needs an engine on this machine", service, pid, err)
	}
}

// sql runs a statement as the sample's owner. It returns lines of tab-separated
// values.
func (s *stack) sql(statement string) (string, error) {
	return s.tryDocker("exec", "-e", "PGTZ=UTC", "-e", "PGPASSWORD=sample", s.container("postgres"),
		"psql", "-h", "127.0.0.1", "-U", "postgres", "-d", "shop", "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1",
		"-c", statement)
}

// mark inserts a row with a new name, as soon as Postgres accepts it, and returns
// the name.
func (s *stack) mark() string {
	s.t.Helper()
	s.marks++
	name := fmt.Sprintf("mark %d", s.marks)
	testenv.Eventually(s.t, healWithin, func() error {
		_, err := s.sql(fmt.Sprintf("INSERT INTO products (name, price) SELECT '%s', 1 WHERE NOT EXISTS (SELECT FROM products WHERE name = '%[1]s')", name))
		return err
	})
	return name
}

// heal waits until a row that is written now reaches all readers. It logs how long
// that took since the fault.
func (s *stack) heal(fault string, since time.Time, readers ...*reader) time.Duration {
	s.t.Helper()
	name := s.mark()
	for _, r := range readers {
		r.await(s.t, name)
	}
	took := time.Since(since)
	s.t.Logf("HEALED %-60s %s", fault, took.Round(10*time.Millisecond))
	s.heals = append(s.heals, fmt.Sprintf("%s: %s", fault, took.Round(10*time.Millisecond)))
	return took
}

// truth returns a relation's live rows by key.
func (s *stack) truth(relation string) (map[string]any, error) {
	out, err := s.sql(relations[relation])
	if err != nil {
		return nil, err
	}
	rows := map[string]any{}
	for line := range strings.Lines(out) {
		key, data, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok {
			return nil, fmt.Errorf("not a row: %q", line)
		}
		if rows[key], err = decode([]byte(data)); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func decode(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// compare stops the writer and compares every reader's state with Postgres.
func (s *stack) compare(readers ...*reader) {
	s.t.Helper()
	s.run("stop", "writer")
	name := s.mark()
	truth := map[string]map[string]any{}
	for relation := range relations {
		var err error
		if truth[relation], err = s.truth(relation); err != nil {
			s.t.Fatal(err)
		}
	}
	begun, rows := time.Now(), 0
	for _, r := range readers {
		r.await(s.t, name)
		r.beats(s.t, begun)
		for relation := range relations {
			testenv.Eventually(s.t, healWithin, func() error {
				n, err := r.differs(relation, truth[relation])
				if err == nil {
					rows += n
				}
				return err
			})
		}
	}
	if rows == 0 {
		s.t.Error("no row was compared")
	}
	s.t.Logf("COMPARED %d rows of %d readers with Postgres: equal, and heartbeats come", rows, len(readers))
}

// fetch returns the body of an answer, with any status.
func fetch(url string) ([]byte, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	return body.Bytes(), err
}
