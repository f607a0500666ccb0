// Package capture is the contract between what reads rows from Postgres
// (poller, wal) and what stores them in a stream (publish): the
// values that cross, and the Sink that takes them. It knows neither side, and imports the standard library only.
//
// A capture works in sessions. A session MUST call Begin first and MUST NOT
// call anything after a method has returned an error: it begins anew, and
// takes its position from what Begin returns, never from memory.
package capture

import (
	"context"
	"errors"
	"fmt"
)

// Sink stores what a capture read, in the order of the calls. Its methods
// block while the broker takes its time; all but Scan must not be called at once. A
// method that returned nil promises order, not storage: whatever is stored is
// an unbroken prefix of what was given, and the next Begin says how much.
type Sink interface {
	// Begin makes the stream where there is none, waits until this process
	// may write, fences every earlier writer and returns what the stream
	// holds. It blocks for as long as another process writes, and calls
	// standby once when it begins to wait for that.
	Begin(ctx context.Context, src Source, standby func()) (Position, error)
	// Schema stores the relation's columns, before the first row of that shape.
	Schema(ctx context.Context, schema []byte) error
	// Announce says which batch the rows that follow are of, so that it can
	// be continued after a crash.
	Announce(ctx context.Context, b Batch) error
	// Row stores one change. The change's memory is the caller's again when
	// Row returns.
	Row(ctx context.Context, c Change) error
	// Heartbeat ends the batch.
	Heartbeat(ctx context.Context, h Heartbeat) error
	// Suspects returns up to limit rows that the stream holds with a txid of
	// at least txid. The zero Page asks for the first of them; the one
	// returned, for those that follow, and is zero at the end. What is stored
	// after the first call is not among them.
	Suspects(ctx context.Context, txid uint64, page Page, limit int) (rows []RowPosition, next Page, err error)
	// Get returns the document of the last version of a row that the stream
	// holds, once everything sent for its key is stored; nil where it holds
	// none. Not for streams that keep every version.
	Get(ctx context.Context, key [][]byte) ([]byte, error)
	// Stored returns the LSN of the last heartbeat or announcement of this
	// epoch that is known to be stored, 0 for none. It does not block, and may
	// be called at the same time as the other methods.
	Stored() uint64
	// Scan calls row for every row that the stream holds up to the last
	// message sent when Scan is called, in the stream's order; not for one
	// that is replaced by a later version before it is read. Unlike the other
	// methods it may be called at the same time as they are, from another
	// goroutine, and by several. It returns row's error, if there is one. The
	// row's memory is Scan's again when row returns.
	Scan(ctx context.Context, row func(StoredRow) error) error
	// Yield lets another process write, because this one can't read; a new
	// Begin must follow.
	Yield(ctx context.Context)
	// Restart ends the stream's incarnation, because what it holds can't be
	// continued, for the reason given; a new Begin must follow. shown is a
	// position above which none can have been shown, where the stream itself
	// may have lost some; else 0.
	Restart(ctx context.Context, reason string, shown uint64) error
}

// Source identifies where rows come from.
type Source struct {
	// System is Postgres' system identifier, Timeline its timeline.
	System   uint64
	Timeline uint32
	Database string
	// OID is the relation's; one dropped and made again has another.
	OID uint32
}

// String returns the form that streams carry.
func (s Source) String() string {
	return fmt.Sprintf("%d/%d/%d/%s", s.System, s.Timeline, s.OID, s.Database)
}

// ParseSource reads what String returned.
func ParseSource(text string) (Source, error) {
	var s Source
	if _, err := fmt.Sscanf(text, "%d/%d/%d/", &s.System, &s.Timeline, &s.OID); err != nil {
		return Source{}, fmt.Errorf("parse source %q: %w", text, err)
	}
	rest := text
	for range 3 {
		for i := range rest {
			if rest[i] == '/' {
				rest = rest[i+1:]
				break
			}
		}
	}
	s.Database = rest
	return s, nil
}

// ErrOtherSource is returned by Begin where the stream was filled from another
// Postgres system or database. Nothing was changed; a person must decide.
var ErrOtherSource = errors.New("the stream holds another source's rows")

// Change is one row to store.
type Change struct {
	// Key holds the key columns' values in Postgres' text form, in key order.
	Key [][]byte
	// KeyJSON appends the key as a JSON object; called only for a row that
	// is too large to be stored.
	KeyJSON func(dst []byte) ([]byte, error)
	// Txid is the transaction that wrote the row, Xmin that of the snapshot
	// it was read under.
	Txid, Xmin uint64
	// High is the highest position a client may take from this row and from
	// what came before it in its batch; 0 where it must not count.
	High uint64
	// Line is the row's finished document with its newline.
	Line []byte
}

// Batch is an announced batch: the rows visible in Snapshot and not in
// Previous, both as pg_snapshot's text; an empty Previous means the whole
// relation.
type Batch struct {
	Snapshot, Previous string
	// Durable is as in Heartbeat, when the batch was announced.
	Durable string
	// LSN, if not 0, says that the relation is read in parts beside the WAL, of
	// which the stream holds what committed before it. Such a batch has no
	// Snapshot; it is announced again as it goes on.
	LSN uint64
	// After is the key up to which, in the key's order, such a batch has been
	// read, nil for none.
	After [][]byte
	// Compare says that such a batch compares the relation with the stream,
	// which can't be continued in its middle.
	Compare bool
	// Published is as in Heartbeat.
	Published string
}

// Heartbeat ends a batch.
type Heartbeat struct {
	// Snapshot is the pg_snapshot's text under which the batch was read.
	Snapshot string
	// Since is its xmin.
	Since uint64
	// Durable is the newest snapshot that a crash of Postgres can't undo, as
	// xmin:xmax:, empty where none is known.
	Durable string
	// High is as in Change.
	High uint64
	// LSN is the place in the WAL up to which the stream holds every commit, 0
	// where it was not filled from the WAL.
	LSN uint64
	// Published stands for what was sent of the relation by then: its place in
	// the publication, and its partitions. Where the next session finds another,
	// there may be commits up to LSN that nobody was sent.
	Published string
}

// Page is a place in a list that comes in parts.
type Page struct{ From, End uint64 }

// Position is what a stream holds, as far as a capture needs it to go on.
type Position struct {
	// Heartbeat is the last one, nil where there is none: the first load
	// never ended.
	Heartbeat *Heartbeat
	// Batch is the one that was announced behind the last heartbeat and has
	// not ended, nil for none.
	Batch *Batch
	// After is the last row stored behind that announcement, nil for none.
	After *RowPosition
	// Loose says that rows stand behind Heartbeat. The transactions that wrote
	// them may not be there as a whole.
	Loose bool
	// Schema is the last one stored, nil for none.
	Schema []byte
	// High is the highest position ever shown.
	High uint64
}

// RowPosition is a row's place in the order of a batch.
type RowPosition struct {
	Txid uint64
	Key  [][]byte
}

// StoredRow is one row as a stream of latest versions holds it.
type StoredRow struct {
	Key  [][]byte
	Txid uint64
	// Deleted says that the row no longer exists.
	Deleted bool
	// Oversize says that the row was too large to be stored; it has no Data.
	Oversize bool
	// Data is the row's JSON object; nil for what is not a row's document.
	Data []byte
}
