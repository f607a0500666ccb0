package e2e_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/testenv"
)

// SIGHUP is logged and ends neither program; SIGTERM and SIGINT end both with status 0.
func TestPrograms_SurviveSIGHUP(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		b := startBridge(t, testenv.Postgres(t), testenv.NATS(t).URL(), "users")
		e := testenv.Start(t, testenv.Build(t, "./cmd/httpedge"), []string{"NATS_URL=" + testenv.NATS(t).URL(), "HTTPEDGE_LISTEN=127.0.0.1:0"})
		for _, p := range []*testenv.Process{b.Process, e} {
			testenv.Eventually(t, long, func() error {
				if !strings.Contains(p.Stderr(), `"message":"listening"`) {
					return errors.New("the program does not listen yet")
				}
				return nil
			})
			for n := range 3 {
				p.Signal(syscall.SIGHUP)
				testenv.Eventually(t, long, func() error {
					if strings.Count(p.Stderr(), "SIGHUP changes nothing") <= n {
						return errors.New("SIGHUP is not logged")
					}
					return nil
				})
			}
			p.Signal(end)
			if code, err := p.Wait(5 * time.Second); code != 0 || err != nil {
				t.Errorf("after %v: exit status %d, %v; want 0 within 5 s", end, code, err)
			}
		}
	}
}
