package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// The health checks of the images ask whether a program runs. While a relation is not live, for example in its first
// load, both programs are healthy and not ready.
func TestPrograms_HealthIsNotReadiness(t *testing.T) {
	needServers(t)
	listen := func() string {
		t.Helper()
		port, err := testenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("127.0.0.1:%d", port)
	}
	broker := testenv.NATS(t).URL()
	db := testenv.Postgres(t)
	newTable(t, db, "t", 1)
	conn := connect(t, db)
	run(t, conn, "BEGIN", "LOCK TABLE t") // the first load waits
	bridgeEnv, edgeEnv := []string{"BRIDGE_LISTEN=" + listen()}, []string{"HTTPEDGE_LISTEN=" + listen(), "NATS_URL=" + broker}
	b := startBridge(t, db, broker, "t", bridgeEnv...)
	b.awaitReason("t", "locked")
	testenv.Start(t, testenv.Build(t, "./cmd/httpedge"), edgeEnv)

	check := func(program string, env []string, args ...string) (int, string) {
		t.Helper()
		p := testenv.Start(t, testenv.Build(t, "./cmd/"+program), env, append([]string{"healthcheck"}, args...)...)
		code, err := p.Wait(long)
		if err != nil {
			t.Fatal(err)
		}
		return code, p.Stdout() + p.Stderr()
	}
	if code, out := check("bridge", bridgeEnv); code != 0 {
		t.Errorf("bridge healthcheck: exit status %d\n%s", code, out)
	}
	if code, out := check("bridge", bridgeEnv, "--ready"); code != 1 || !strings.Contains(out, "locked") {
		t.Errorf("bridge healthcheck --ready: exit status %d, want 1 and the reason\n%s", code, out)
	}
	testenv.Eventually(t, long, func() error {
		if code, out := check("httpedge", edgeEnv); code != 0 {
			return fmt.Errorf("httpedge healthcheck: exit status %d\n%s", code, out)
		}
		return nil
	})
	run(t, conn, "COMMIT")
	b.awaitReady()
	for program, env := range map[string][]string{"bridge": bridgeEnv, "httpedge": edgeEnv} {
		if code, out := check(program, env, "--ready"); code != 0 {
			t.Errorf("%s healthcheck --ready: exit status %d\n%s", program, code, out)
		}
		if code, _ := check(program, env, "--redy"); code != 2 {
			t.Errorf("%s healthcheck --redy: exit status %d, want 2", program, code)
		}
	}
	b.Kill()
	if code, _ := check("bridge", bridgeEnv); code != 1 {
		t.Errorf("bridge healthcheck without a bridge: exit status %d, want 1", code)
	}
}
