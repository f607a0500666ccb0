package poller

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// durability finds D: the xmax of the newest snapshot that a crash of Postgres
// can't undo. A snapshot is durable once the WAL is flushed up to the insert
// position sampled after it was taken.
type durability struct {
	durable uint64
	// pending is the xmax of a snapshot that waits for the WAL to be flushed
	// up to position, 0 for none.
	pending, position uint64
}

func (d *durability) add(l look) {
	if l.inRecovery { // a primary sends only WAL that it has flushed
		d.durable = max(d.durable, l.snapshot.Xmax)
		return
	}
	d.flushed(l.flushed)
	switch {
	case l.flushed >= l.inserted:
		d.durable, d.pending = max(d.durable, l.snapshot.Xmax), 0
	case d.pending == 0:
		d.pending, d.position = l.snapshot.Xmax, l.inserted
	}
}

func (d *durability) flushed(position uint64) {
	if d.pending != 0 && position >= d.position {
		d.durable, d.pending = max(d.durable, d.pending), 0
	}
}

// refreshDurable asks once more how far the WAL is flushed, so that after a
// long batch the heartbeat does not carry the D of its beginning.
func (s *session) refreshDurable(ctx context.Context) error {
	if s.durable.pending == 0 {
		return nil
	}
	rows, err := s.pool.Query(ctx, flushedSQL)
	if err != nil {
		return fmt.Errorf("ask for the flushed WAL position: %w", err)
	}
	text, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[*string])
	if err != nil {
		return fmt.Errorf("ask for the flushed WAL position: %w", err)
	}
	if text != nil {
		if position, err := strconv.ParseUint(*text, 10, 64); err == nil {
			s.durable.flushed(position)
		}
	}
	return nil
}
