package simtest

import (
	"context"
	"slices"
	"time"

	"bridge/internal/testenv"

	"github.com/jackc/pgx/v5"
)

// walFaults returns the faults that only a run with capture=wal has.
func walFaults() []string {
	return []string{"walsender", "terminate", "restart", "advance", "drop", "drop in a load"}
}

// walPlan puts the faults of walFaults between the others: each once a minute, and each minute in another order. So a run
// that ends before its last faults, because the machine is slow, has seen each. A short run has only some.
func (s *Sim) walPlan(faults []string) []string {
	var specials []string
	for range (s.cfg.Seconds + 59) / 60 {
		minute := walFaults()
		s.rnd.Shuffle(len(minute), func(i, j int) { minute[i], minute[j] = minute[j], minute[i] })
		specials = append(specials, minute...)
	}
	if s.cfg.Seconds < 60 {
		specials = specials[:1+s.cfg.Seconds*len(specials)/60]
	}
	for i, special := range specials {
		faults = slices.Insert(faults, (i+1)*len(faults)/(len(specials)+1), special)
	}
	return faults
}

// walFault runs the fault if it is one of walFaults, and says whether it is.
func (s *Sim) walFault(ctx context.Context, name string, short func()) bool {
	switch name {
	case "walsender":
		s.endSender(ctx)
	case "terminate":
		s.terminateBridges(short)
	case "restart":
		s.restartPostgres(ctx, short)
	case "advance":
		s.advanceSlot(ctx)
	case "drop":
		s.dropSlot(ctx)
	case "drop in a load":
		s.killNATS("wipe", short)
		sleep(ctx, time.Duration(s.rnd.IntN(3000))*time.Millisecond)
		s.dropSlot(ctx)
	default:
		return false
	}
	return true
}

// sql runs a statement as an administrator would, until it succeeds.
func (s *Sim) sql(ctx context.Context, sql string) {
	s.T.Helper()
	testenv.Eventually(s.T, recovery, func() error {
		conn, err := pgx.Connect(ctx, s.URL)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
		return err
	})
}

// ofSlot makes a statement do nothing if there is no slot. There is none if the bridge was cut while it created it.
const ofSlot = ` FROM pg_replication_slots WHERE slot_name = '` + slot + `'`

const cutSender = `SELECT pg_terminate_backend(active_pid, 5000)` + ofSlot + ` AND active_pid IS NOT NULL`

// endSender ends the connection that reads the slot.
func (s *Sim) endSender(ctx context.Context) {
	s.sql(ctx, cutSender)
	s.Note("end the walsender")
}

// terminateBridges stops one bridge or several by SIGTERM, as a supervisor that stops a service does.
func (s *Sim) terminateBridges(short func()) {
	s.T.Helper()
	first, n := s.rnd.IntN(len(s.Bridges)), 1+s.rnd.IntN(len(s.Bridges))
	for i := range n {
		b := s.Bridges[(first+i)%len(s.Bridges)]
		begun := time.Now()
		if err := b.Terminate(); err != nil {
			s.T.Errorf("I7: %v", err)
		}
		s.Note("%s stopped %v after SIGTERM", b.Name, time.Since(begun).Round(time.Millisecond))
	}
	short()
	for i := range n {
		s.Bridges[(first+i)%len(s.Bridges)].Start()
	}
}

// restartPostgres stops Postgres gracefully, and starts it again. On its stop Postgres waits until the bridge has
// confirmed everything that it was sent.
func (s *Sim) restartPostgres(ctx context.Context, short func()) {
	begun := time.Now()
	s.Cluster.Stop()
	s.Note("postgres stopped gracefully after %v", time.Since(begun).Round(time.Millisecond))
	s.writers.Crashed()
	short()
	s.StartPostgres(ctx)
}

// advanceSlot moves the slot to the end of the WAL while no bridge runs. Postgres never sends the changes in between.
func (s *Sim) advanceSlot(ctx context.Context) {
	for _, b := range s.Bridges {
		b.Kill()
		s.Note("kill %s", b.Name)
		s.kills["bridge"]++
	}
	sleep(ctx, time.Duration(s.rnd.IntN(300))*time.Millisecond) // after this some changes may be missing, or none
	s.lose()
	s.sql(ctx, cutSender)
	s.sql(ctx, `SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn())`+ofSlot)
	s.Note("advance the slot")
	for _, b := range s.Bridges {
		b.Start()
	}
}

// dropSlot drops the slot while bridges run.
func (s *Sim) dropSlot(ctx context.Context) {
	s.lose()
	s.sql(ctx, cutSender+`; SELECT pg_drop_replication_slot(slot_name)`+ofSlot)
	s.Note("drop the slot")
}
