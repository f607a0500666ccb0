package poller

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"
	"bridge/internal/source"

	"github.com/jackc/pgx/v5"
)

// durability finds D: the newest snapshot that a crash of Postgres can't undo. A
// snapshot is durable once the WAL is flushed up to the insert position that was
// read after taking the snapshot. A transaction that a crash undoes is not
// visible in D: it was running when D was taken, or began later. So a crash gives
// out no ID below D's xmin again.
type durability struct {
	// pages is the size of the WAL's pages and files.
	pages relation.WALPages
	// durable is D. It is zero while none is known.
	durable capture.Snapshot
	// pending is durable once the WAL is flushed up to position. It is zero if no
	// snapshot waits for that.
	pending  capture.Snapshot
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
	case d.covers(l.flushed, l.inserted):
		d.raise(sn)
		d.pending = capture.Snapshot{}
	case d.pending.Xmax == 0:
		d.pending, d.position = sn, l.inserted
	}
}

// flushed learns that the WAL is flushed up to the position.
func (d *durability) flushed(position uint64) {
	if d.pending.Xmax != 0 && d.covers(position, d.position) {
		d.raise(d.pending)
		d.pending = capture.Snapshot{}
	}
}

// covers says whether WAL that is flushed up to a position has every record before
// the insert position. After a record that ends exactly with a page, Postgres
// names the first place for the next one, which is just after the next page's
// header. That page is not written before there is another record.
func (d *durability) covers(flushed, inserted uint64) bool {
	return flushed >= inserted || d.pages.Start(inserted) <= flushed
}

// limit returns the highest position that may be shown of a snapshot with this
// xmin. Without a D that is 0.
func (d *durability) limit(xmin uint64) uint64 { return min(xmin, d.durable.Xmin) }

// raise makes a snapshot D, unless D is later. D's xmin never falls.
func (d *durability) raise(sn capture.Snapshot) {
	if sn.Xmax >= d.durable.Xmax && sn.Xmin >= d.durable.Xmin {
		d.durable = sn
	}
}

// reconnected forgets the pending snapshot, because Postgres may have crashed
// meanwhile. A position in WAL that a crash lost says nothing about the WAL that
// Postgres writes now.
func (d *durability) reconnected() { d.pending = capture.Snapshot{} }

// text returns D as the stream carries it, or "" if none is known.
func (d *durability) text() string {
	if d.durable.Xmax == 0 {
		return ""
	}
	return d.durable.String()
}

// parseDurable parses what text returned.
func parseDurable(text string) (capture.Snapshot, error) {
	if text == "" {
		return capture.Snapshot{}, nil
	}
	sn, err := capture.ParseSnapshot(text)
	if err != nil {
		return capture.Snapshot{}, fmt.Errorf("parse durable snapshot: %w", err)
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

// awaitDurable waits until some snapshot is durable, if none is known. Without
// one, the batch's rows show no position, and a batch that continues after a crash
// must read everything again to be safe. Postgres flushes its WAL within three
// times wal_writer_delay (0.6 s by default). If it takes longer than
// durableWithin, or no second connection is free, the batch goes on without one.
//
// The batch's own connection is busy. Another one may be newer than the batch's
// look, and then Postgres may have crashed in between: what it has flushed since
// says nothing about that look. So the other connection takes a snapshot of its
// own, and is asked until that is durable.
func (s *session) awaitDurable(ctx context.Context) error {
	if s.durable.durable.Xmax != 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, durableWithin)
	defer cancel()
	err := s.findDurable(limited)
	if limited.Err() != nil {
		return ctx.Err()
	}
	return err
}

// findDurable takes a snapshot on a connection, and asks that connection until the
// snapshot is durable.
func (s *session) findDurable(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if source.ConnectionOf(conn).Source != s.src { // readRows will say so
		return nil
	}
	other := durability{pages: s.durable.pages}
	if err := other.look(ctx, conn, s.bound); err != nil {
		return err
	}
	for other.durable.Xmax == 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if err := other.refresh(ctx, conn); err != nil {
			return err
		}
	}
	s.durable.raise(other.durable)
	return nil
}

// look takes a snapshot. bound is session.bound.
func (d *durability) look(ctx context.Context, q relation.Querier, bound func(capture.Snapshot) capture.Snapshot) error {
	rows, err := q.Query(ctx, durableSQL)
	if err != nil {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	at, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[struct {
		Snapshot          string
		Inserted, Flushed int64
	}])
	if err != nil {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	sn, err := capture.ParseSnapshot(at.Snapshot)
	if err != nil {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	d.add(look{snapshot: bound(sn), inserted: uint64(at.Inserted), flushed: uint64(at.Flushed)})
	return nil
}
