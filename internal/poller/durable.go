package poller

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
)

// durability finds D: the newest snapshot that a crash of Postgres can't undo. A
// snapshot is durable once the WAL is flushed up to the insert position that was
// read after taking the snapshot. A transaction that a crash undoes is not
// visible in D: it was running when D was taken, or began later.
type durability struct {
	// durable is D. It is zero while none is known.
	durable relation.Snapshot
	// pending is durable once the WAL is flushed up to position. It is zero if no
	// snapshot waits for that.
	pending  relation.Snapshot
	position uint64
}

// add learns from a look at Postgres.
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

// flushed learns that the WAL is flushed up to the position.
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

// reconnected forgets the pending snapshot, because Postgres may have crashed
// meanwhile. A position in WAL that a crash lost says nothing about the WAL that
// Postgres writes now.
func (d *durability) reconnected() { d.pending = relation.Snapshot{} }

// text returns D as the stream carries it, or "" if none is known.
func (d *durability) text() string {
	if d.durable.Xmax == 0 {
		return ""
	}
	return d.durable.String()
}

// parseDurable parses what text returned.
func parseDurable(text string) (relation.Snapshot, error) {
	if text == "" {
		return relation.Snapshot{}, nil
	}
	sn, err := relation.ParseSnapshot(text)
	if err != nil {
		return relation.Snapshot{}, fmt.Errorf("parse durable snapshot: %w", err)
	}
	return sn, nil
}

// refresh asks Postgres again how far the WAL is flushed, if a snapshot is
// pending.
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

// awaitDurable waits until some snapshot is durable. With one, a batch that
// continues after a crash need not read everything again to be safe. Postgres
// flushes its WAL within three times wal_writer_delay (0.6 s by default). If it
// takes longer than durableWithin, or no second connection is free, the batch
// goes on without one.
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
