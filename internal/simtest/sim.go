package simtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// Config configures a run.
type Config struct {
	Seconds int
	Seed    uint64
	// Capture is how the bridges capture the relations.
	Capture Capture
	// Kills is the number of kills; 0 for one every 5 s, which is also the least.
	Kills int
	// Writers and Clients are their numbers; 0 for 5 writers and for 9 clients.
	Writers, Clients int
	// Shipped says that the programs are those that users build.
	Shipped bool
}

// Sim is one run.
type Sim struct {
	*World
	cfg     Config
	rnd     *rand.Rand // of the test's goroutine
	writers *Writers
	clients []*Client
	// journal reads the log; nil if the run has none.
	journal *Journal

	mu sync.Mutex
	// Guarded by mu: the logs of clients that only fetched, and the time before which tokens are barred.
	fetched []*Log
	bar     time.Duration

	kills, done map[string]int // done counts all faults
	damaged     int            // files of a cache on disk; owned by damage while that runs
	pauses      int
	copied      string // the place of a copy of the broker's files
	slowest     time.Duration
	slow        []string // recoveries that took long
	violations  []Violation
	counts      Counts
	logEvents   int // that the journal was shown
	logGaps     int
	resumed     int
	lost        int
}

const (
	// recovery is how long a fault may take to heal.
	recovery = time.Minute
	// slow is the time after which a recovery is reported as a slow one.
	slow = 5 * time.Second
)

// NewSim prepares Postgres and starts bridges and edges.
func NewSim(w *World, cfg Config) (*Sim, error) {
	cfg.Kills = max(cfg.Kills, (cfg.Seconds+4)/5)
	if cfg.Writers == 0 {
		cfg.Writers = 5
	}
	if cfg.Clients == 0 {
		cfg.Clients = 9
	}
	s := &Sim{World: w, cfg: cfg, rnd: rand.New(rand.NewPCG(cfg.Seed, 1)), kills: map[string]int{}, done: map[string]int{}}
	s.writers = NewWriters(w.URL, cfg.Writers, 60*time.Millisecond, cfg.Seed, w.Elapsed)
	s.writers.Capture = cfg.Capture
	if err := s.writers.Prepare(w.T.Context()); err != nil {
		return nil, err
	}
	w.T.Cleanup(func() {
		if w.T.Failed() && len(s.violations) == 0 {
			path, err := s.dump()
			w.T.Log("all events:", path, err)
		}
	})
	w.StartAll()
	edges := func() []string { return w.Addrs }
	for i := range cfg.Clients {
		relation := cfg.Capture.relations()[i%3/2]
		c := NewClient(fmt.Sprintf("c%d", i), relation, edges, w.Elapsed, cfg.Seed)
		if i/3%3 == 1 {
			c.ByCursor()
		}
		if i%2 == 1 {
			c.ResumeFrom(func(rnd *rand.Rand) *Token { return s.token(rnd, relation) })
		}
		s.clients = append(s.clients, c)
	}
	if cfg.Capture == WAL {
		s.journal = NewJournal(edges, cfg.Seed)
	}
	return s, nil
}

// Run does the whole run, except for Judge.
func (s *Sim) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients, writers sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	for _, c := range s.clients {
		clients.Go(func() { c.Run(ctx) })
	}
	if s.journal != nil {
		clients.Go(func() { s.journal.Run(ctx) })
	}
	s.recover("at first", time.Now())
	writing, stop := context.WithCancel(ctx)
	defer writers.Wait()
	defer stop()
	writers.Go(func() { s.writers.Run(writing) })
	writers.Go(func() { s.damage(writing) })
	s.torment(ctx)
	stop()
	writers.Wait()
	if err := s.writers.Resolve(ctx); err != nil {
		return err
	}
	for _, c := range s.clients {
		c.Calm(true)
	}
	return s.settle(ctx)
}

// settle waits until every client holds what Postgres holds (I1), and then resumes from tokens (I3).
func (s *Sim) settle(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.URL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	final := map[string]map[string]FinalRow{}
	for _, relation := range s.cfg.Capture.relations() {
		if final[relation], err = s.cfg.Capture.Final(ctx, conn, relation); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(recovery)
	for _, c := range s.clients {
		for time.Now().Before(deadline) && len(Differences(final[c.Log.Relation], c.Log.State())) > 0 {
			sleep(ctx, 20*time.Millisecond)
		}
	}
	for s.journal != nil && time.Now().Before(deadline) {
		found, err := s.checkJournal(ctx)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			break
		}
		sleep(ctx, 100*time.Millisecond)
	}
	s.Note("settled")
	s.resumeAll(ctx)
	return nil
}

// checkJournal checks the log.
func (s *Sim) checkJournal(ctx context.Context) ([]Violation, error) {
	wrote, err := s.writers.wrote(ctx)
	if err != nil {
		return nil, err
	}
	seen, odd := s.journal.Seen()
	found := CheckJournal(wrote, seen)
	for _, what := range odd {
		found = append(found, Violation{Invariant: "I11", Text: "log: " + what})
	}
	s.logEvents, s.logGaps = 0, 0
	for _, h := range seen {
		switch {
		case h.ID != "":
			s.logEvents++
		case s.logEvents > 0: // a log may begin with a gap, if one bridge made the publication and another one the slot
			s.logGaps++
		}
	}
	lossy := s.done["older"] + s.done["wipe"] + s.done["advance"] + s.done["drop"] + s.done["drop in a load"]
	if lossy == 0 && s.logGaps > 0 {
		found = append(found, Violation{Invariant: "I8", Text: "log: there is a gap, and nothing was lost"})
	}
	return found, nil
}

// tokens is how many tokens are resumed at the end.
func (c Config) tokens() int { return max(20, 2*c.Seconds) }

// resumeAll resumes from a sample of all tokens that were shown.
func (s *Sim) resumeAll(ctx context.Context) {
	work := make(chan int, s.cfg.tokens()) // filled and closed here, before the goroutines begin
	for i := range s.cfg.tokens() {
		work <- i
	}
	close(work)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range work {
				s.resume(ctx, i)
			}
		})
	}
	wg.Wait()
}

func (s *Sim) resume(ctx context.Context, i int) {
	rnd := rand.New(rand.NewPCG(s.cfg.Seed, uint64(1e6+i)))
	relation := s.cfg.Capture.relations()[i%4/3]
	t := s.token(rnd, relation)
	if t == nil {
		return
	}
	c := NewClient(fmt.Sprintf("t%d", i), relation, nil, s.Elapsed, s.cfg.Seed)
	if i%3 == 1 {
		c.ByCursor()
	}
	c.Adopt(*t)
	// Cuts and temporary refusals are allowed, but a whole answer must come in the end.
	for deadline := time.Now().Add(recovery); ; {
		err := c.Fetch(ctx, s.Addrs[rnd.IntN(len(s.Addrs))])
		var o *OddError
		if err == nil || errors.As(err, &o) || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		sleep(ctx, 50*time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched = append(s.fetched, c.Log)
}

// token picks a token from all that clients of the relation were shown, or returns nil. After a crash of Postgres,
// tokens from before it hold only as long as the broker's files are not lost: see barTokens.
func (s *Sim) token(rnd *rand.Rand, relation string) *Token {
	for range 50 {
		c := s.clients[rnd.IntN(len(s.clients))]
		n := len(c.Log.Events())
		if c.Log.Relation != relation || n == 0 {
			continue
		}
		if t, ok := c.Log.Token(rnd.IntN(n)); ok && !s.barred(t.At) {
			return &t
		}
	}
	return nil
}

// Judge checks everything. It is called when nothing runs.
func (s *Sim) Judge(ctx context.Context) error {
	for _, relation := range s.cfg.Capture.relations() {
		truth, err := s.writers.Truth(ctx, relation)
		if err != nil {
			return err
		}
		s.Tell(truth)
		s.lost = s.writers.LostTx(truth)
		logs := s.logs(relation)
		for _, l := range logs {
			truth.Observe(l)
		}
		for _, l := range logs {
			n, found := Check(truth, l)
			s.counts.add(n)
			s.violations = append(append(s.violations, found...), CheckFinal(truth, l)...)
		}
	}
	if s.journal != nil {
		found, err := s.checkJournal(ctx)
		if err != nil {
			return err
		}
		s.violations = append(s.violations, found...)
	}
	for _, c := range s.clients {
		s.resumed += int(c.Resumed.Load())
	}
	s.resumed += len(s.fetched)
	return nil
}

func (s *Sim) logs(relation string) []*Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	var logs []*Log
	for _, c := range s.clients {
		logs = append(logs, c.Log)
	}
	logs = append(logs, s.fetched...)
	n := 0
	for _, l := range logs {
		if l.Relation == relation {
			logs[n], n = l, n+1
		}
	}
	return logs[:n]
}

// recover waits until every client has seen a heartbeat from after since. It fails if a process has died (I7).
func (s *Sim) recover(what string, since time.Time) {
	s.T.Helper()
	s.await(what, since, (*Client).Newest)
}

func (s *Sim) await(what string, since time.Time, beat func(*Client) int64) {
	s.T.Helper()
	begun := time.Now()
	testenv.Eventually(s.T, recovery, func() error {
		if err := s.Died(); err != nil {
			return err
		}
		for _, c := range s.clients {
			if beat := beat(c); beat <= since.Unix() {
				return fmt.Errorf("I7: %s: client %s of %s has no heartbeat after %d, its last one is from %d", what, c.Log.Client, c.Log.Relation, since.Unix(), beat)
			}
		}
		return nil
	})
	d := time.Since(begun)
	if s.slowest = max(s.slowest, d); d > slow {
		s.slow = append(s.slow, fmt.Sprintf("%v after %s at %v", d.Round(100*time.Millisecond), what, s.Elapsed().Round(100*time.Millisecond)))
	}
	s.Note("healed after %v (%s)", time.Since(begun).Round(time.Millisecond), what)
}
