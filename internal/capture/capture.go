// Package capture is the contract between the packages that read rows from
// Postgres (poller, wal) and the package that stores them in a stream (publish).
// It defines the Sink interface and the values that cross it. It knows neither
// side, and imports only the standard library.
//
// A capture works in sessions. A session MUST call Begin first. After a method has
// returned an error, the session MUST NOT call any other. The next session then
// takes its position from what Begin returns, never from memory.
package capture

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Sink stores what a capture read, in the order of the calls. Its methods may block
// while the broker is slow. Except for Stored, Ended and Scan, no two calls may run at the
// same time.
//
// A method that returns nil promises order, not storage. What is stored is always
// an unbroken prefix of what the Sink was given. The next Begin says how much that
// is.
type Sink interface {
	// Begin creates the stream if it does not exist, waits until this process may
	// write, fences out every earlier writer, and returns what the stream holds. It
	// blocks for as long as another process writes. Before it waits for that, it
	// calls standby, once.
	Begin(ctx context.Context, src Source, standby func()) (Position, error)
	// Schema stores the relation's columns, before the first row of that shape.
	Schema(ctx context.Context, schema []byte) error
	// Announce says to which batch the following rows belong, so that the batch can
	// continue after a crash.
	Announce(ctx context.Context, b Batch) error
	// Row stores one change. After Row has returned, the caller may reuse the
	// change's memory.
	Row(ctx context.Context, c Change) error
	// Heartbeat ends the batch.
	Heartbeat(ctx context.Context, h Heartbeat) error
	// Suspects returns the places of up to limit rows that the stream holds with a
	// txid of at least txid. The zero Page asks for the first of them, next asks for
	// those that follow. next is zero at the end. Rows stored after the first call
	// are not included.
	Suspects(ctx context.Context, txid uint64, page Page, limit int) (rows []RowPosition, next Page, err error)
	// Get returns the last version of a row in the stream, without its key, or nil if
	// the stream has none. It first waits until everything sent for the key is
	// stored. It must not be called for a stream that keeps every version.
	Get(ctx context.Context, key [][]byte) (*StoredRow, error)
	// Stored returns the LSN of the last heartbeat or announcement of this epoch
	// that is known to be stored, or 0 if there is none. It does not block. It may
	// be called at the same time as other methods.
	Stored() uint64
	// Ended returns a channel that is closed when a fault has ended what the last Begin
	// began, even if no call has met the fault yet. The next call returns it. Ended may
	// be called at the same time as other methods.
	Ended() <-chan struct{}
	// Scan calls row for each row in the stream, in the stream's order, up to the
	// last message that had been sent when Scan was called. A row that a later
	// version replaces meanwhile may be left out. Scan returns row's error, if there
	// is one. row must not keep the StoredRow's memory after it returns. Scan may be
	// called from several goroutines, at the same time as other methods.
	Scan(ctx context.Context, row func(StoredRow) error) error
	// Yield lets another process write, because this one can't read from Postgres. A
	// new Begin must follow.
	Yield(ctx context.Context)
	// Restart ends the stream's incarnation, because the capture can't continue from
	// what the stream holds; reason says why. A new Begin must follow. shown is 0,
	// or, if the stream may have lost positions that were shown, an upper bound of
	// all of them.
	Restart(ctx context.Context, reason string, shown uint64) error
}

// Source identifies where rows come from.
type Source struct {
	// System is Postgres' system identifier, Timeline its timeline.
	System   uint64
	Timeline uint32
	Database string
	// OID is the relation's. A relation that was dropped and created again has
	// another one.
	OID uint32
	// Next is the first transaction ID that had not been given out when the session
	// began. A capture that polls needs to know it only above timeline 1; 0 is not
	// known. It is no part of String.
	Next uint64
}

// String returns the form that streams carry.
func (s Source) String() string {
	return fmt.Sprintf("%d/%d/%d/%s", s.System, s.Timeline, s.OID, s.Database)
}

// ParseSource parses what String returned.
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

// ErrOtherSource is returned by Begin if the stream was filled from another
// Postgres system or database. Begin has changed nothing then: a person must
// decide.
var ErrOtherSource = errors.New("the stream holds another source's rows")

// Change is one row to store.
type Change struct {
	// Key holds the key columns' values in Postgres' text form, in key order.
	Key [][]byte
	// KeyJSON appends the key as a JSON object. It is called only for a row that is
	// too large to be stored.
	KeyJSON func(dst []byte) ([]byte, error)
	// Txid is the transaction that wrote the row. Xmin is what the row shows as
	// current_xmin.
	Txid, Xmin uint64
	// High is the highest position that a client may take from this row and from
	// those before it in its batch. It is 0 if the row must not raise High.
	High uint64
	// Event says which change of Postgres the row comes from, in the form of
	// lockstep.Change.AppendText; empty if it was found by reading the relation, or if
	// nothing is to be said.
	Event []byte
	// Line is the row's finished document with its newline.
	Line []byte
}

// Batch is an announced batch: the rows that are visible in Snapshot and not in
// Previous, both in the text form of pg_snapshot. An empty Previous means the whole
// relation.
type Batch struct {
	Snapshot, Previous string
	// Durable is Heartbeat.Durable as of the announcement.
	Durable string
	// LSN, if not 0, says that the WAL capture reads the relation in parts, while it
	// goes on reading the WAL. The stream holds what committed before LSN. Such a
	// batch has no Snapshot. It is announced again as it goes on.
	LSN uint64
	// After is the key, in the key's order, up to which such a batch has been read;
	// nil at its beginning.
	After [][]byte
	// Compare says that such a batch compares the relation with the stream. A
	// comparison can't continue after a crash; it begins again.
	Compare bool
	// Published is as in Heartbeat.
	Published string
}

// Heartbeat ends a batch.
type Heartbeat struct {
	// Snapshot is the text form of the pg_snapshot under which the batch was read.
	Snapshot string
	// Since is its xmin.
	Since uint64
	// Durable is the text form of the newest snapshot that a crash of Postgres can't
	// undo; empty if none is known.
	Durable string
	// High is as in Change.
	High uint64
	// LSN is the place in the WAL up to which the stream holds every commit; 0 if
	// the stream was not filled from the WAL.
	LSN uint64
	// Published describes what Postgres sent of the relation up to LSN: its place in
	// the publication, and its partitions. If the next session finds another value,
	// Postgres may have skipped changes of commits before LSN.
	Published string
}

// Page is a place in a list that is returned in pages.
type Page struct{ From, End uint64 }

// Position is what a capture must know about a stream to go on. Pointers and slices
// are nil if the stream has no such thing.
type Position struct {
	// Heartbeat is the last one. Without one, the first load has never ended.
	Heartbeat *Heartbeat
	// Batch was announced after the last heartbeat and has not ended.
	Batch *Batch
	// After is the last row stored after that announcement.
	After *RowPosition
	// Loose says that there are rows after Heartbeat. Of the transactions that wrote
	// them, only a part may be in the stream.
	Loose bool
	// Schema is the last one stored.
	Schema []byte
	// High is the highest position ever shown.
	High uint64
	// Restarted, if not empty, is why Begin has ended the incarnation before: what the
	// stream held is gone.
	Restarted string
	// Tidied says that old deleted rows were removed from the stream. If the broker was
	// killed since, earlier versions of them may be back.
	Tidied bool
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
	// Digest is Digest of the data of such a row, if the broker would refuse the same
	// data again; else nil.
	Digest []byte
	// Data is the row's JSON object; nil if the message is not a row's document.
	Data []byte
}

// digestFrom is from which length on Comparable returns a digest. No broker that
// a bridge can use refuses rows that are shorter.
const digestFrom = 1 << 10

// Digest returns a text that stands for the data of a row, and for no other data.
func Digest(data []byte) []byte {
	sum := sha256.Sum256(data)
	return hex.AppendEncode(nil, sum[:])
}

// Comparable returns what a comparison compares of the data of a row in Postgres:
// the data, or of long data its digest. An oversize row in the stream has only
// that.
func Comparable(data []byte) []byte {
	if len(data) < digestFrom {
		return data
	}
	return Digest(data)
}

// Comparable returns what equals Comparable of the same data in Postgres. It is nil
// if there is no such thing: then the row must be looked at again.
func (r *StoredRow) Comparable() []byte {
	if r.Oversize {
		return r.Digest
	}
	return Comparable(r.Data)
}
