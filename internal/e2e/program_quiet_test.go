package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"bridge/internal/health"
	"bridge/internal/testenv"
)

// A warning means that somebody must look. So the recommended path has none: the script of bridge sql, the first start,
// ALTER TABLE, a restart, a standby that takes over, an edge, SIGTERM. A stream that was lost does have one, if the slot
// tells that there was one.
func TestPrograms_RecommendedPathLogsNoWarning(t *testing.T) {
	needServers(t)
	c := testenv.NewCluster(t) // a transaction of another test would hold the slot back
	for _, capture := range []string{"poll", "wal"} {
		for _, broker := range []string{"embedded", "outside"} {
			t.Run(capture+", "+broker, func(t *testing.T) {
				needServers(t)
				q := newQuiet(t, c, capture)
				if broker == "outside" {
					q.natsURL = testenv.NATS(t).URL()
				}
				q.walk()
			})
		}
	}
}

// quiet walks the recommended path with one table.
type quiet struct {
	t                  *testing.T
	admin, db, natsURL string // natsURL is empty for the embedded broker
	capture, tables    string
	rel                table
	env                []string
	ran                []*testenv.Process
}

// newQuiet prepares a table as the README says.
func newQuiet(t *testing.T, c *testenv.Cluster, capture string) *quiet {
	t.Helper()
	db := c.Database()
	newBare(t, db, "users", 10)
	q := &quiet{t: t, admin: db, capture: capture, tables: "users(capture=wal)", rel: bare("users"), env: []string{"BRIDGE_NAME=" + slotOf(db)}}
	q.prepare()
	psql(t, db, fmt.Sprintf("ALTER ROLE %s PASSWORD 'sesame-3f9c'", q.role()))
	as, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.UserPassword(q.role(), "sesame-3f9c")
	q.db = as.String()
	if capture == "poll" {
		q.tables, q.rel = "users_lockstep(key=id)", table{schema: "public", name: "users_lockstep", txid: "txid", deleted: "deleted"}
	}
	// On a slow machine, ALTER TABLE holds its lock for longer than the tests' heartbeats take.
	q.env = append(q.env, "BRIDGE_HEARTBEAT_INTERVAL=3s", "BRIDGE_NATS_LISTEN=127.0.0.1:0", "BRIDGE_NATS_DIR="+t.TempDir())
	return q
}

func (q *quiet) role() string { return "quiet_" + databaseOf(q.admin) }

// prepare runs what bridge sql prints.
func (q *quiet) prepare() {
	q.t.Helper()
	code, sql, stderr := command(q.t, []string{"DATABASE_URL=" + q.admin, "BRIDGE_NAME=" + slotOf(q.admin)}, "sql", "-role", q.role(), "users(capture="+q.capture+")")
	if code != 0 {
		q.t.Fatalf("bridge sql: %s", stderr)
	}
	psql(q.t, q.admin, sql)
}

func (q *quiet) start() *bridge {
	q.t.Helper()
	b := startBridge(q.t, q.db, q.natsURL, q.tables, q.env...)
	q.ran = append(q.ran, b.Process)
	return b
}

func (q *quiet) walk() {
	t := q.t
	t.Helper()
	b := q.start()
	b.awaitReady()
	url := q.natsURL
	if url == "" {
		url = b.embeddedURL()
	} else {
		edge, _ := start(t, url)
		q.ran = append(q.ran, edge)
		defer edge.Kill()
	}
	owner := connect(t, q.admin)
	f := follow(t, testenv.NATSConn(t, url), q.rel)
	f.converge(owner)
	run(t, owner, "INSERT INTO users VALUES (11, 'new')", "DELETE FROM users WHERE id = 1")
	f.converge(owner)
	run(t, owner, "ALTER TABLE users ADD COLUMN extra text", "UPDATE users SET extra = 'x' WHERE id = 2",
		"ALTER TABLE users ADD COLUMN filled int NOT NULL DEFAULT 7", "INSERT INTO users (id, v) VALUES (12, 'newer')")
	q.prepare() // a view does not follow its table
	f.convergeLate(owner)
	f.stop()
	b.stop()

	b = q.start()
	b.awaitReady()
	if q.natsURL != "" {
		standby := q.start()
		testenv.Eventually(t, long, func() error {
			state := make(map[string]*bridge)
			for _, either := range []*bridge{b, standby} { // on a slow machine the second may take over
				r, err := either.readyz()
				if err != nil {
					return err
				}
				state[r.Relations[q.rel.name].State] = either
			}
			live, waits := state[string(health.StateLive)], state[string(health.StateStandby)]
			if live == nil || waits == nil {
				return fmt.Errorf("want one bridge that writes and one that stands by: %v", state)
			}
			b, standby = live, waits
			return nil
		})
		b.stop()
		b = standby
		testenv.Eventually(t, long, func() error {
			r, err := b.readyz()
			if err == nil && r.Relations[q.rel.name].State != string(health.StateLive) {
				err = fmt.Errorf("it has not taken over: %+v", r)
			}
			return err
		})
	}
	b.stop()
	for _, p := range q.ran {
		for _, line := range warnings(p) {
			if !slices.ContainsFunc(slowness, func(s string) bool { return strings.Contains(line, s) }) {
				t.Errorf("on the recommended path: %s", line)
			}
		}
	}

	if q.natsURL != "" && q.rel.name == "users" {
		if err := f.js.DeleteStream(t.Context(), f.layout.Stream); err != nil {
			t.Fatal(err)
		}
		b := q.start()
		b.awaitReady()
		if got := warnings(b.Process); !slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, "its stream was lost") }) {
			t.Errorf("the stream was lost, and the log does not warn of it: %q", got)
		}
	}
}

// warnings returns the lines of a program's log that have a level of warn or above.
func warnings(p *testenv.Process) (list []string) {
	for line := range strings.Lines(p.Stderr()) {
		var entry struct{ Level string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Level != "info" && entry.Level != "debug" {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}
