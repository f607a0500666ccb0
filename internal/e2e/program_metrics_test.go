package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bridge/internal/testenv"
)

// The bridge has every metric that the documents and the dashboard name, also before anything went wrong. Only the time of
// the last comparison is missing before the first one.
func TestBridge_MetricsThatAreNamed(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newTable(t, db, "t", 10)
	newBare(t, db, "w", 10)
	conn := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t,w(capture=wal)")
	nc := testenv.NATSConn(t, broker.URL())
	follow(t, nc, named("t")).converge(conn)
	follow(t, nc, bare("w")).converge(conn)
	before := b.metrics()
	reconciled(t, broker.URL(), "t", "10 rows compared: 0 missing, 0 stale, 0 zombies")
	compared := b.metrics()
	for _, file := range []string{"README.md", "docs/operations.md", "deploy/grafana/lockstep.json"} {
		text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(file)))
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`lockstep_(?:bridge|build)_\w+`).FindAllString(string(text), -1)
		if len(names) == 0 && file != "README.md" {
			t.Errorf("%s names no metric: the test shows nothing", file)
		}
		for _, name := range names {
			metrics := before
			if name == "lockstep_bridge_reconcile_last_success_timestamp_seconds" {
				metrics = compared
			}
			if !strings.Contains(metrics, "\n# TYPE "+strings.TrimSuffix(name, "_bucket")+" ") {
				t.Errorf("%s names the metric %s, which the bridge does not have", file, name)
			}
		}
	}
}
