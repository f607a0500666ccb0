//go:build stack

package stacktest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// The stack of one machine. Rows and heartbeats come through the published ports.
// After a kill of each process everything heals without help (I1, I7, I8).
func TestStack_Single(t *testing.T) {
	s := up(t, []string{"demo", "observe"}, "httpedge", "writer", "prometheus")
	http := overHTTP(t, "HTTP client", s.ports["HTTPEDGE_PORT"])
	nats := overNATS(t, s.ports["NATS_PORT"])
	s.heal("nothing", time.Now(), http, nats)
	for range 2 {
		for _, service := range []string{"bridge", "httpedge", "nats", "postgres"} {
			begun := time.Now()
			s.kill(service)
			s.heal(service+" killed", begun, http, nats)
		}
	}
	s.healthy()
	s.compare(http, nats)
	s.dashboard()
	for _, service := range []string{"httpedge", "bridge"} {
		s.stops(service)
	}
	s.images()
}

// stops asks a service to end. The service must do so soon, with status 0.
func (s *stack) stops(service string) {
	s.t.Helper()
	id := s.container(service)
	begun := time.Now()
	s.docker("stop", "-t", "10", id)
	took := time.Since(begun)
	if code := s.docker("inspect", "-f", "{{.State.ExitCode}}", id); code != "0" || took > 5*time.Second {
		s.t.Errorf("docker stop of %s took %s and left exit status %s; want less than 5s, and 0", service, took, code)
	}
}

// images checks the size of the images.
func (s *stack) images() {
	s.t.Helper()
	for _, service := range []string{"bridge", "httpedge"} {
		var size int64
		image := "lockstep-" + service
		if _, err := fmt.Sscan(s.docker("image", "inspect", "-f", "{{.Size}}", image), &size); err != nil || size > 40<<20 {
			s.t.Errorf("image %s has %d bytes (%v), want less than 40 MiB", image, size, err)
		}
		s.t.Logf("image %s: %d MB", image, size/1_000_000)
	}
}

// dashboard asks Prometheus every query of Grafana's dashboard.
func (s *stack) dashboard() {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "grafana", "lockstep.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		s.t.Fatal(err)
	}
	asked := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			testenv.Eventually(s.t, time.Minute, func() error {
				body, err := fetch(fmt.Sprintf("http://127.0.0.1:%d/api/v1/query?query=%s", s.ports["PROMETHEUS_PORT"], url.QueryEscape(target.Expr)))
				if err != nil {
					return err
				}
				var answer struct {
					Status string
					Data   struct{ Result []json.RawMessage }
				}
				if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
					return fmt.Errorf("panel %q: %s: %s", p.Title, target.Expr, body)
				}
				if len(answer.Data.Result) == 0 {
					return fmt.Errorf("panel %q shows nothing: %s", p.Title, target.Expr)
				}
				return nil
			})
			asked++
		}
	}
	s.t.Logf("dashboard: %d panels, Prometheus answered %d queries", len(board.Panels), asked)
}
