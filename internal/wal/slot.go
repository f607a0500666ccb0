package wal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"bridge/internal/health"
	"bridge/internal/relation"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// slot is what Postgres says of the bridge's slot.
type slot struct {
	exists           bool
	Plugin, Database string
	PID              int64
	// Sender says that PID is a walsender's.
	Sender    bool
	Confirmed uint64
	Lost      bool
	// Kept is the WAL that Postgres keeps for it, Behind that since Confirmed.
	Kept, Behind int64
}

const slotSQL = `
SELECT COALESCE(plugin, '')::text, COALESCE(database, '')::text, COALESCE(active_pid, 0)::int8,
       EXISTS (SELECT FROM pg_catalog.pg_stat_replication WHERE pid = active_pid),
       COALESCE(confirmed_flush_lsn - '0/0', 0)::int8, COALESCE(wal_status = 'lost', false),
       COALESCE(pg_current_wal_lsn() - restart_lsn, 0)::int8, COALESCE(pg_current_wal_lsn() - confirmed_flush_lsn, 0)::int8
  FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`

func (c *Capture) slot(ctx context.Context) (slot, error) {
	rows, err := c.pool.Query(ctx, slotSQL, c.opt.Name)
	if err != nil {
		return slot{}, fmt.Errorf("look up slot: %w", err)
	}
	var s slot
	var confirmed int64
	_, err = pgx.ForEachRow(rows, []any{&s.Plugin, &s.Database, &s.PID, &s.Sender, &confirmed, &s.Lost, &s.Kept, &s.Behind}, func() error {
		s.exists, s.Confirmed = true, uint64(confirmed)
		return nil
	})
	if err != nil {
		return slot{}, fmt.Errorf("look up slot: %w", err)
	}
	c.metrics.lag.Set(float64(s.Kept))
	c.metrics.confirmed.Set(float64(s.Behind))
	return s, nil
}

// errSlotInUse says that another connection reads the slot.
var errSlotInUse = errors.New("the replication slot is in use")

// inUse says who has the slot.
func (c *Capture) inUse(ctx context.Context, sl slot) error {
	if sl.beingMade() {
		return fmt.Errorf("%w: the session with PID %d is still making slot %s, and %s; if that bridge no longer runs: SELECT pg_terminate_backend(%[2]d)", errSlotInUse, sl.PID, c.opt.Name, c.slotWaits(ctx, sl.PID))
	}
	return fmt.Errorf("%w: slot %s is read by the session with PID %d: another bridge with the same BRIDGE_NAME, or a connection that Postgres has not yet given up (wal_sender_timeout); waiting. If no heartbeats come to this broker, the other bridge writes to another broker: give one of the two another BRIDGE_NAME", errSlotInUse, c.opt.Name, sl.PID)
}

// foreign says whose the slot is that has the bridge's name.
func (c *Capture) foreign(sl slot, src relation.Source) error {
	if sl.Database != "" && sl.Database != src.Database {
		return fmt.Errorf("replication slot %s is of database %s (all databases of a server share the names of slots); to do: give this bridge another BRIDGE_NAME", c.opt.Name, sl.Database)
	}
	return fmt.Errorf("replication slot %s was not made by a bridge (plugin %q); to do: give this bridge another BRIDGE_NAME or, if nobody needs the slot: SELECT pg_drop_replication_slot('%[1]s')", c.opt.Name, sl.Plugin)
}

// errRival says that another bridge of the name has just made what this one was
// about to make.
var errRival = fmt.Errorf("%w: another bridge with the same BRIDGE_NAME is starting; waiting", errSlotInUse)

// rival returns errRival for Postgres' duplicate_object, and other errors as
// they are.
func rival(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42710" {
		return errRival
	}
	return err
}

// claimSlot makes sure that the slot, as it was found, exists and can be read.
func (s *session) claimSlot(ctx context.Context, sl slot) error {
	c := s.c
	switch {
	case sl.Lost:
		c.log.Error().Str("slot", c.opt.Name).
			Msg("Postgres has removed WAL that the slot needed (max_slot_wal_keep_size), making a new slot and comparing every relation with its stream")
	case sl.exists && c.unreadable != "":
		c.log.Error().Str("slot", c.opt.Name).
			Msg(string(c.unreadable) + ", making a new slot and comparing every relation with its stream")
	case c.tooFar(sl):
		c.log.Error().Str("slot", c.opt.Name).Int64("bytes", sl.Kept).Int64("limit", c.opt.MaxLag).
			Msg("the slot kept more WAL than BRIDGE_SLOT_MAX_LAG, making a new slot and comparing every relation with its stream")
	case sl.exists:
		return nil
	}
	if sl.exists {
		if err := c.dropSlot(ctx); err != nil {
			return err
		}
	}
	if err := s.createSlot(ctx); err != nil {
		return err
	}
	for _, r := range c.relations {
		r.first = !sl.exists && r.stored == 0
	}
	return nil
}

// isOf says whether a slot of the bridge's name can be that of a bridge of src.
func (sl slot) isOf(src relation.Source) bool {
	return sl.Plugin == "pgoutput" && sl.Database == src.Database
}

// tooFar says whether there is a slot that keeps more WAL than it may.
func (c *Capture) tooFar(sl slot) bool {
	return sl.exists && c.opt.MaxLag > 0 && sl.Kept > c.opt.MaxLag
}

// beingMade says whether a session that is no walsender has yet to find the
// slot's beginning: a bridge's, also one that was killed meanwhile.
func (sl slot) beingMade() bool { return sl.PID != 0 && !sl.Sender && sl.Confirmed == 0 }

// dropSlot drops the slot, unless somebody, the watch or a rival, has just done
// it.
func (c *Capture) dropSlot(ctx context.Context) error {
	_, err := c.count(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = $1", c.opt.Name)
	if err != nil {
		return fmt.Errorf("drop slot %s: %w", c.opt.Name, err)
	}
	return nil
}

// remedy says what to do about what Postgres says when it is asked for
// replication, empty for nothing that is known.
func remedy(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return ""
	}
	switch pg.Code {
	case "42501": // insufficient_privilege
		return "; to do, as a superuser: ALTER ROLE … REPLICATION, as bridge sql prints it"
	case "53400": // configuration_limit_exceeded
		return "; to do: raise max_replication_slots, or drop a slot that nobody reads; see pg_replication_slots"
	case "53300": // too_many_connections
		return "; to do: raise max_wal_senders, or max_connections; see pg_stat_replication"
	case "08P01", "42601": // protocol_violation, syntax_error
		return "; to do: name Postgres itself in DATABASE_URL, not a connection pooler"
	}
	return ""
}

// createSlot makes the slot. Postgres waits for every running transaction that
// has written.
func (s *session) createSlot(ctx context.Context) error {
	conn, err := s.c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	waits := errSlotWaits
	feeds, told := s.feedsByName(), make(chan struct{})
	slow := time.AfterFunc(3*time.Second, func() {
		defer close(told)
		waits = s.c.slotWaits(ctx, int64(conn.Conn().PgConn().PID()))
		if s.c.waits.isNews(waits.Error()) {
			s.c.log.Warn().Err(waits).Str("slot", s.c.opt.Name).Msg("making the replication slot takes long")
		}
		for _, f := range feeds {
			f.r.update(func(st *health.Status) { st.State, st.Err = health.StateStarting, waits })
		}
	})
	var confirmed int64
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = 0"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT (lsn - '0/0')::int8 FROM pg_create_logical_replication_slot($1, 'pgoutput')", s.c.opt.Name).Scan(&confirmed)
	})
	if !slow.Stop() {
		<-told
	}
	switch err = rival(err); {
	case errors.Is(err, errRival):
		return err
	case isCanceled(err):
		return fmt.Errorf("make replication slot %s: %w; the bridge gave it up, because it kept more WAL than BRIDGE_SLOT_MAX_LAG", s.c.opt.Name, waits)
	case err != nil:
		return fmt.Errorf("make replication slot %s: %w%s", s.c.opt.Name, err, remedy(err))
	}
	s.c.unreadable, s.c.decoding = "", decoding{}
	for _, r := range s.c.relations {
		r.released = true
	}
	s.c.log.Info().Str("slot", s.c.opt.Name).Stringer("lsn", lsn(confirmed)).Msg("replication slot made")
	return nil
}

// anyEncoding is that of a database whose text Postgres does not look into.
const anyEncoding = "SQL_ASCII"

// connect opens the replication connection and starts reading the slot.
func (s *session) connect(ctx context.Context) error {
	conn, err := s.c.pool.ConnectReplication(ctx, func(cfg *pgconn.Config) {
		if s.unchecked {
			// Postgres would refuse to send what is no UTF-8, and the slot would be
			// stuck; so the relation that has it is taken out here.
			cfg.RuntimeParams["client_encoding"] = anyEncoding
		}
		cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
			return pgproto3.NewFrontend(bufio.NewReaderSize(newPacedReader(r), readBytes), w)
		}
	})
	if err != nil {
		return fmt.Errorf("connect for replication: %w%s", err, remedy(err))
	}
	s.conn = conn
	args := []string{"proto_version '1'", "publication_names '" + quotePublication(s.c.opt.Name) + "'", "messages 'true'"}
	err = pglogrepl.StartReplication(ctx, conn, pgx.Identifier{s.c.opt.Name}.Sanitize(), 0,
		pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: args})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55006" { // object_in_use
		sl, _ := s.c.slot(ctx)
		return s.c.inUse(ctx, sl)
	}
	if err != nil {
		return fmt.Errorf("read slot %s: %w", s.c.opt.Name, err)
	}
	return nil
}

// quotePublication writes a name as an element of publication_names, inside of
// a string literal.
func quotePublication(name string) string {
	quoted := pgx.Identifier{name}.Sanitize()
	return strings.ReplaceAll(quoted, "'", "''")
}

// closeConn closes the connection, so that the slot is free at once.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// unusedEvery is how often it is said that the slot is unused.
const unusedEvery = time.Hour

// warnUnused warns until ctx ends, once an hour, of a slot that was left when
// the last relation was moved to polling: it makes Postgres keep WAL.
func (c *Capture) warnUnused(ctx context.Context) error {
	t := time.NewTicker(c.opt.SlotInterval)
	defer t.Stop()
	var warned time.Time
	for {
		// Where Postgres is away, the pollers say so.
		if sl, err := c.unused(ctx); err == nil && sl.exists && time.Since(warned) > unusedEvery {
			warned = time.Now()
			c.log.Warn().Str("slot", c.opt.Name).Int64("bytes", sl.Kept).
				Msg("no relation has capture=wal, but Postgres keeps WAL for a slot that is left over; drop it with pg_drop_replication_slot")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// unused returns the slot if it is a bridge's of this database, and nobody reads
// it.
func (c *Capture) unused(ctx context.Context) (slot, error) {
	sl, err := c.slot(ctx)
	if err != nil || !sl.exists || sl.PID != 0 {
		return slot{}, err
	}
	src, err := relation.LoadSource(ctx, c.pool)
	if err != nil || !sl.isOf(src) {
		return slot{}, err
	}
	return sl, nil
}
