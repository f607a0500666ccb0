package simtest

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// torment breaks things until the run's time is over and enough has happened. To get enough it may take longer, by half
// the run's time or a minute, whichever is more.
func (s *Sim) torment(ctx context.Context) {
	begun := time.Now()
	length := time.Duration(s.cfg.Seconds) * time.Second
	faults := s.plan()
	step := length / time.Duration(s.cfg.Kills)
	if s.cfg.Capture == WAL {
		step = length / time.Duration(len(faults))
	}
	for i := 0; ; i++ {
		spent := time.Since(begun)
		if ctx.Err() != nil || spent > length+max(length/2, time.Minute) || spent > length && s.enough() == nil {
			return
		}
		at := time.Now()
		if i < len(faults) {
			s.fault(ctx, faults[i])
			// Sometimes the next fault comes before this one has healed. Not if the broker lost its files: if Postgres
			// took something back then, nothing would know it any more.
			if !lossy(faults[i]) && s.rnd.IntN(3) == 0 {
				continue
			}
		}
		what := "nothing"
		if i < len(faults) {
			what = faults[i]
		}
		s.recover(what, time.Now())
		sleep(ctx, step-time.Since(at))
	}
}

// lossy says whether a fault loses files of the broker.
func lossy(fault string) bool { return fault == "wipe" || fault == "older" }

// plan returns the order of the faults. Each process is killed about equally often. Faults of other kinds come in
// between.
func (s *Sim) plan() []string {
	processes := []string{"bridge", "edge", "nats", "postgres"}
	var faults []string
	for len(faults) < s.cfg.Kills {
		s.rnd.Shuffle(4, func(i, j int) { processes[i], processes[j] = processes[j], processes[i] })
		faults = append(faults, processes...)
	}
	faults = faults[:s.cfg.Kills]
	// Each of these, except a pause, also kills the broker.
	specials := []string{"pause", "storm", "copy", "older", "pause", "storm", "wipe"}
	if s.cfg.Capture == WAL { // another order, because a run may end before its last faults
		specials = []string{"pause", "copy", "wipe", "storm", "older", "pause", "storm"}
	}
	if s.cfg.Seconds < 60 {
		specials = []string{"storm"}
	}
	for i, special := range specials {
		faults = slices.Insert(faults, (i+1)*len(faults)/(len(specials)+1), special)
	}
	if s.cfg.Capture == WAL {
		return s.walPlan(faults)
	}
	return faults
}

func (s *Sim) fault(ctx context.Context, name string) {
	short := func() { sleep(ctx, time.Duration(s.rnd.IntN(600))*time.Millisecond) }
	s.done[name]++
	if s.walFault(ctx, name, short) {
		return
	}
	switch name {
	case "bridge":
		s.killBridges(short)
	case "edge":
		s.killEdge(short)
	case "postgres":
		s.writers.AsyncOnly(s.rnd.IntN(3) > 0)
		sleep(ctx, time.Duration(300+s.rnd.IntN(700))*time.Millisecond)
		s.KillPostgres()
		s.writers.AsyncOnly(false)
		s.writers.Crashed()
		s.kills["postgres"]++
		s.StartPostgres(ctx)
	case "pause":
		s.pause(ctx)
	case "storm":
		s.storm(ctx, short)
	default:
		s.killNATS(name, short)
	}
}

func (s *Sim) killEdge(short func()) {
	i := s.rnd.IntN(len(s.Edges))
	s.KillEdge(i)
	s.kills["edge"]++
	short()
	s.Edges[i].Start()
}

// storm kills edges, and then the broker, while very much is written.
func (s *Sim) storm(ctx context.Context, short func()) {
	s.Note("a storm begins")
	s.writers.Storm(true)
	defer s.writers.Storm(false)
	for range 3 {
		sleep(ctx, 500*time.Millisecond)
		s.killEdge(func() {})
	}
	s.killNATS("in a storm", short)
	sleep(ctx, 500*time.Millisecond)
	s.Note("the storm is over")
}

// damage breaks the folder of an edge's cache on disk now and then, until ctx ends: it cuts files, changes a byte of them,
// or removes all. The edge must read what it had from the broker again.
func (s *Sim) damage(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(s.cfg.Seed, 2))
	for ctx.Err() == nil {
		sleep(ctx, time.Duration(500+rnd.IntN(2000))*time.Millisecond)
		if rnd.IntN(4) == 0 {
			_ = os.RemoveAll(s.CacheDir)
			s.Note("the cache of edge 0 is removed")
			continue
		}
		files, _ := filepath.Glob(filepath.Join(s.CacheDir, "blocks", "*"))
		for _, file := range files {
			switch info, err := os.Stat(file); {
			case err != nil || info.Size() == 0 || rnd.IntN(3) > 0:
			case rnd.IntN(2) == 0:
				_ = os.Truncate(file, rnd.Int64N(info.Size()))
				s.damaged++
			default:
				if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
					_, _ = f.WriteAt([]byte{byte(rnd.IntN(256))}, rnd.Int64N(info.Size()))
					_ = f.Close()
					s.damaged++
				}
			}
		}
	}
}

// killBridges kills one bridge or several.
func (s *Sim) killBridges(short func()) {
	first, n := s.rnd.IntN(len(s.Bridges)), 1+s.rnd.IntN(len(s.Bridges))
	for i := range n {
		b := s.Bridges[(first+i)%len(s.Bridges)]
		b.Kill()
		s.Note("kill %s", b.Name)
		s.kills["bridge"]++
	}
	short()
	for i := range n {
		s.Bridges[(first+i)%len(s.Bridges)].Start()
	}
}

// pause stops a bridge for longer than a lease lasts, and then lets it go on.
func (s *Sim) pause(ctx context.Context) {
	b := s.Bridges[s.rnd.IntN(len(s.Bridges))]
	b.Pause()
	s.Note("stop %s", b.Name)
	s.pauses++
	sleep(ctx, time.Duration(3500+s.rnd.IntN(1500))*time.Millisecond)
	if s.rnd.IntN(3) == 0 { // when it wakes, the broker has been restarted
		s.killNATS("while a bridge is stopped", func() {})
	}
	b.Resume()
	s.Note("let %s go on", b.Name)
}

// killNATS kills the broker, and starts it again. Before that it may copy or replace the broker's files (I8). If polls
// capture the relations, it first brings every client to a heartbeat before files are lost: see the package comment. No
// crash takes back what comes from the WAL.
func (s *Sim) killNATS(what string, short func()) {
	if lossy(what) && s.cfg.Capture == Poll {
		defer s.calm(false)
		s.calm(true)
		s.await("before the broker's files go", time.Now(), (*Client).Beat)
		s.barTokens()
	}
	at := s.Elapsed()
	s.NATS.Kill()
	s.Note("kill nats (%s)", what)
	s.kills["nats"]++
	switch what {
	case "copy":
		s.copied = s.CopyStore()
	case "older":
		s.ReplaceStore(s.copied)
	case "wipe":
		s.ReplaceStore("")
	default:
		short()
	}
	s.NATS.Start()
	s.brokerKilled(at)
	s.Note("nats is back")
}

func (s *Sim) calm(yes bool) {
	for _, c := range s.clients {
		c.Calm(yes)
	}
}

// barTokens bars all tokens shown until now, if Postgres ever took something back. The broker's files are about to be
// lost, and with them what the stream knows about that: an ID that was given out again may be below a since that was
// shown before, and so may a repaired row. Running clients were brought to a heartbeat before.
func (s *Sim) barTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kills["postgres"] > 0 {
		s.bar = s.Elapsed()
	}
}

// barred says whether a token that was shown at this time may no longer be used.
func (s *Sim) barred(at time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return at < s.bar
}
