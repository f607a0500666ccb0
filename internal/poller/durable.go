package poller

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/relation"

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

// refresh asks once more how far the WAL is flushed, if that may make more
// durable.
func (d *durability) refresh(ctx context.Context, q relation.Querier) error {
	if d.pending == 0 {
		return nil
	}
	rows, err := q.Query(ctx, flushedSQL)
	if err != nil {
		return fmt.Errorf("ask for the flushed WAL position: %w", err)
	}
	text, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[*string])
	if err != nil {
		return fmt.Errorf("ask for the flushed WAL position: %w", err)
	}
	if text != nil {
		position, err := strconv.ParseUint(*text, 10, 64)
		if err != nil {
			return fmt.Errorf("ask for the flushed WAL position: %w", err)
		}
		d.flushed(position)
	}
	return nil
}

// durableWithin bounds the wait for a first durable snapshot.
const durableWithin = 2 * time.Second

// awaitDurable waits until some snapshot is durable, so that a batch that is
// continued after a crash need not read everything again to be safe. Postgres
// flushes its WAL within three times wal_writer_delay, by default 0.6 s; where
// it takes longer than durableWithin, reading again is the price.
func (s *session) awaitDurable(ctx context.Context) error {
	for begun := time.Now(); s.durable.durable == 0 && time.Since(begun) < durableWithin; {
		if err := s.durable.refresh(ctx, s.pool); err != nil || s.durable.durable != 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
