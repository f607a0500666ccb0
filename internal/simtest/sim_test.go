package simtest_test

import (
	"errors"
	"flag"
	"math/rand/v2"
	"testing"

	"bridge/internal/simtest"
	"bridge/internal/testenv"
)

var (
	seconds = flag.Int("seconds", 20, "how long TestSim breaks things")
	seed    = flag.Uint64("seed", 0, "seed of its random numbers; 0 for a random one")
	kills   = flag.Int("kills", 0, "how many processes it kills; 0 for one every 5 s")
	writers = flag.Int("writers", 0, "how many connections write; 0 for 5")
	clients = flag.Int("clients", 0, "how many clients follow; 0 for 9")
	by      = flag.String("capture", "", "how the bridges of TestSim capture, poll or wal; if empty, the seed decides")
	shipped = flag.Bool("shipped", false, "run the programs of TestSim as users build them, with production's timings")
)

func TestMain(m *testing.M) { testenv.Main(m) }

func needServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs servers")
	}
}

// TestSim runs the whole system under faults and checks I1 to I8, I11 and I12; see the package comment. The seed
// decides whether its bridges poll or read the WAL. The schedules and the nightly suite always do both.
func TestSim(t *testing.T) {
	needServers(t)
	cfg := simtest.Config{Seconds: *seconds, Seed: *seed, Kills: *kills, Writers: *writers, Clients: *clients, Shipped: *shipped}
	if cfg.Seed == 0 {
		cfg.Seed = uint64(rand.Uint32())
	}
	captures := simtest.Captures()
	cfg.Capture = captures[cfg.Seed%uint64(len(captures))]
	if *by != "" {
		var err error
		if cfg.Capture, err = simtest.ParseCapture(*by); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("capture %s, seed %d", cfg.Capture, cfg.Seed)
	// This runs last, so that the error is at the end of the output.
	var wrong error
	t.Cleanup(func() {
		if wrong != nil {
			t.Error(wrong)
		}
		if t.Failed() {
			t.Logf("to repeat the run: %s", cfg.Again())
		}
	})
	w := simtest.NewWorld(t, simtest.WorldOptions{
		Bridges: 2, Edges: 2, Tables: cfg.Capture.Tables(), Shipped: cfg.Shipped, Postgres: []string{"log_min_messages=fatal", "track_commit_timestamp=on"},
	})
	s, err := simtest.NewSim(w, cfg)
	if err == nil {
		err = s.Run(t.Context())
	}
	if err == nil {
		err = s.Judge(t.Context())
	}
	if err != nil {
		wrong = err
		t.FailNow()
	}
	table, err := s.Report()
	t.Log("\n" + table)
	if found := s.Violations(); found != "" {
		err = errors.Join(err, errors.New(found))
	}
	if wrong = err; err != nil {
		t.Fail()
	}
}
