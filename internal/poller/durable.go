package poller

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
)

// durability finds D: the newest snapshot that a crash of Postgres can't undo.
// A snapshot is durable once the WAL is flushed up to the insert position
// sampled after it was taken. What a crash undoes was still running in D, or
// came after it: it is not visible in D.
type durability struct {
	// durable is D; the zero value says that none is known.
	durable relation.Snapshot
	// pending waits for the WAL to be flushed up to position; zero for none.
	pending  relation.Snapshot
	position uint64
}

// add takes a look at Postgres.
func (d *durability) add(l look) {
	sn := l.snapshot
	if l.inRecovery { // a primary sends only WAL that it has flushed
		d.raise(sn)
		return
	}
	d.flushed(l.flushed)
	switch {
	case l.flushed >= l.inserted:
		d.raise(sn)
		d.pending = relation.Snapshot{}
	case d.pending.Xmax == 0:
		d.pending, d.position = sn, l.inserted
	}
}

// flushed says how far the WAL is flushed.
func (d *durability) flushed(position uint64) {
	if d.pending.Xmax != 0 && position >= d.position {
		d.raise(d.pending)
		d.pending = relation.Snapshot{}
	}
}

func (d *durability) raise(sn relation.Snapshot) {
	if sn.Xmax >= d.durable.Xmax {
		d.durable = sn
	}
}

// reconnected forgets what was sampled before Postgres may have crashed: a
// position in the WAL that it lost says nothing of the one it writes now.
func (d *durability) reconnected() { d.pending = relation.Snapshot{} }

// text is the form that the stream carries; empty where none is known.
func (d *durability) text() string {
	if d.durable.Xmax == 0 {
		return ""
	}
	return d.durable.String()
}

// parseDurable reads what text returned.
func parseDurable(text string) (relation.Snapshot, error) {
	if text == "" {
		return relation.Snapshot{}, nil
	}
	sn, err := relation.ParseSnapshot(text)
	if err != nil {
		return relation.Snapshot{}, fmt.Errorf("durable snapshot: %w", err)
	}
	return sn, nil
}

// refresh asks once more how far the WAL is flushed, if that may make more
// durable.
func (d *durability) refresh(ctx context.Context, q relation.Querier) error {
	if d.pending.Xmax == 0 {
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
// it takes longer than durableWithin, or no second connection is free, reading
// again is the price.
func (s *session) awaitDurable(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, durableWithin)
	defer cancel()
	for s.durable.durable.Xmax == 0 {
		err := s.durable.refresh(limited, s.pool)
		if limited.Err() != nil {
			return ctx.Err()
		}
		if err != nil || s.durable.durable.Xmax != 0 {
			return err
		}
		select {
		case <-limited.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
