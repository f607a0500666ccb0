package wal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// WatchSlot sees to it that the slot keeps no more WAL than it may, until ctx
// ends, whatever becomes of sessions meanwhile: they may wait for a lock, for a
// transaction or for the broker, or fail before they come to the slot. Run does
// it, too; it is for a capture that can't Run yet.
func (c *Capture) WatchSlot(ctx context.Context) {
	t := time.NewTicker(c.opt.SlotInterval)
	defer t.Stop()
	var said, failed news
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		sl, err := c.slot(ctx)
		if err != nil || !c.tooFar(sl) { // where Postgres is away, sessions say so
			continue
		}
		if err := c.relieve(ctx, sl, &said); err != nil && ctx.Err() == nil && failed.isNews(err.Error()) {
			c.log.Error().Err(err).Str("slot", c.opt.Name).Int64("bytes", sl.Kept).Msg("the slot keeps more WAL than BRIDGE_SLOT_MAX_LAG, and giving it up failed")
		}
	}
}

// tooFarSQL is what must still be so of the slot when something is done about
// it: it may have become another's since.
const tooFarSQL = `
  FROM pg_catalog.pg_replication_slots
 WHERE slot_name = $1 AND plugin = 'pgoutput' AND database = current_database() AND pg_current_wal_lsn() - restart_lsn > $2`

// relieve ends what makes Postgres keep too much WAL for the slot. One that another
// bridge reads is that bridge's business.
func (c *Capture) relieve(ctx context.Context, sl slot, said *news) error {
	switch s := c.reading.Load(); {
	case sl.PID == 0:
		return c.dropUnread(ctx, sl)
	case sl.beingMade():
		return c.stopMaking(ctx, sl, said)
	case s != nil:
		s.again(errTooFar)
	}
	return nil
}

// dropUnread drops a slot that nobody reads.
func (c *Capture) dropUnread(ctx context.Context, sl slot) error {
	n, err := c.count(ctx, "SELECT pg_drop_replication_slot(slot_name)"+tooFarSQL+" AND active_pid IS NULL", c.opt.Name, c.opt.MaxLag)
	if err != nil {
		return fmt.Errorf("drop slot: %w", err)
	}
	if n > 0 {
		c.log.Error().Str("slot", c.opt.Name).Int64("bytes", sl.Kept).Int64("limit", c.opt.MaxLag).
			Msg("slot dropped, it kept more WAL than BRIDGE_SLOT_MAX_LAG and nobody read it; when the WAL can be read again, a new slot is made and every relation compared with its stream")
	}
	return nil
}

// stopMaking cancels what makes the slot, whereupon Postgres drops it. The next
// try keeps WAL from then on only, and so each at most what a slot may.
func (c *Capture) stopMaking(ctx context.Context, sl slot, said *news) error {
	waits := c.slotWaits(ctx, sl.PID)
	n, err := c.count(ctx, "SELECT pg_cancel_backend(active_pid)"+tooFarSQL+" AND active_pid = $3 AND confirmed_flush_lsn IS NULL", c.opt.Name, c.opt.MaxLag, sl.PID)
	if err != nil {
		return fmt.Errorf("cancel PID %d, which makes the slot: %w", sl.PID, err)
	}
	if n > 0 && said.isNews(waits.Error()) {
		c.log.Error().Err(waits).Str("slot", c.opt.Name).Int64("bytes", sl.Kept).Int64("limit", c.opt.MaxLag).
			Msg("the slot kept more WAL than BRIDGE_SLOT_MAX_LAG before it was made, trying again; nothing is captured until it is made")
	}
	return nil
}

// count runs a statement and says how many rows it returned.
func (c *Capture) count(ctx context.Context, sql string, args ...any) (int64, error) {
	rows, err := c.pool.Query(ctx, sql, args...)
	if err != nil {
		return 0, err
	}
	rows.Close()
	return rows.CommandTag().RowsAffected(), rows.Err()
}

// errSlotWaits says why a slot is not made yet.
var errSlotWaits = errors.New("the replication slot waits for transactions that have written")

// waitsSQL finds the transaction that a session waits for, and whose it is.
const waitsSQL = `
SELECT w.transactionid::text, COALESCE(h.pid, 0)::int8, COALESCE(p.gid, '')
  FROM pg_catalog.pg_locks w
  LEFT JOIN pg_catalog.pg_locks h ON h.locktype = 'transactionid' AND h.transactionid = w.transactionid AND h.mode = 'ExclusiveLock' AND h.granted
  LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = w.transactionid
 WHERE w.pid = $1 AND w.locktype = 'transactionid' AND NOT w.granted`

// slotWaits says what the session that makes the slot waits for, and what to do.
func (c *Capture) slotWaits(ctx context.Context, pid int64) error {
	const others = "; to do: end them; see pg_stat_activity and pg_prepared_xacts"
	rows, err := c.pool.Query(ctx, waitsSQL, pid)
	if err != nil {
		return fmt.Errorf("%w"+others, errSlotWaits)
	}
	w, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[struct {
		Txid   string
		Holder int64
		GID    string
	}])
	switch {
	case err != nil: // it waits for the next already, or for none any more
		return fmt.Errorf("%w"+others, errSlotWaits)
	case w.GID != "":
		return fmt.Errorf("%w, now for transaction %s, prepared as %q"+others, errSlotWaits, w.Txid, w.GID)
	case w.Holder != 0:
		return fmt.Errorf("%w, now for transaction %s of PID %d"+others, errSlotWaits, w.Txid, w.Holder)
	}
	return fmt.Errorf("%w, now for transaction %s"+others, errSlotWaits, w.Txid)
}

// isCanceled says whether Postgres was asked to cancel the statement.
func isCanceled(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "57014"
}

// news is what was logged last of something that may go on for long.
type news struct {
	text string
	at   time.Time
}

// isNews says whether the text is to be logged: where it is new, and then once a
// minute.
func (n *news) isNews(text string) bool {
	if text == n.text && time.Since(n.at) <= logEvery {
		return false
	}
	n.text, n.at = text, time.Now()
	return true
}
