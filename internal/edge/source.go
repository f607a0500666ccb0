// Package edge is the HTTP server of lockstep. It parses requests, and refuses
// those that it can't serve. It takes documents from a Source, in the form that the
// client asks for, and writes them to clients, many in one system call. It cuts clients
// that take nothing. It keeps no state except connections.
//
// For a stream, the edge takes the connection over from net/http, which would
// merge or split documents unless each were flushed. From then on the edge sets
// the write deadlines, ends the stream between two chunks by a plain close, and
// closes the connection when it drains. It sends the final chunk only at the end
// of a finite request, because a client takes that chunk as the end for good.
package edge

import (
	"context"
	"time"

	"bridge/lockstep"
)

// Request is a client's request for a relation.
type Request struct {
	// Schema and Table are as in the path, which need not exist.
	Schema, Table string
	// Since is the position to resume from, 0 for everything.
	Since uint64
	// Follow is false for a client that wants the state and then the end.
	Follow bool
	// Cursor is the place to resume from, zero for none. If the stream no longer has it, the
	// since in it takes its place; that of an old cursor is the one above.
	Cursor lockstep.Cursor
	// Positions asks for position rows: after so many rows at the latest, 0 for none.
	Positions int
	// Limit asks for a page of so many rows, 0 for everything.
	Limit int
	// Shown, if not 0, is a transaction that the answer must show. Open waits for that, for
	// up to ShownWithin.
	Shown       uint64
	ShownWithin time.Duration
	// Flat asks for the flat dialect.
	Flat bool
}

// Source opens streams. Its methods may be called at once.
type Source interface {
	// Open finds the place to start. It waits a bounded time for what it
	// needs, and refuses with a *Refusal.
	Open(ctx context.Context, req Request) (Stream, error)
	// List returns the document of GET /.
	List(ctx context.Context) ([]byte, error)
	// Ready returns nil where streams can be served, else why not.
	Ready(ctx context.Context) error
}

// Stream is one client's stream, for one goroutine.
type Stream interface {
	// Incarnation returns the stream's incarnation, and Floor its floor when the request
	// came.
	Incarnation() string
	Floor() uint64
	// Page makes the stream, which must be finite, one of at most rows rows. It is called
	// before Next, and refuses with a *Refusal.
	Page(ctx context.Context, rows int) (Page, error)
	// Next returns what comes next. It waits for up to wait, and returns nil if nothing
	// came. io.EOF ends a finite stream, with its last documents; any other error cuts it.
	Next(ctx context.Context, wait time.Duration) (Part, error)
	// Return gives the last part back but for its first n documents, and returns how many
	// of these are rows. The rest comes again. From then on the stream holds nothing of
	// the part.
	Return(n int) (rows int, err error)
	Close()
}

// Page is what a stream of a bounded number of rows is.
type Page struct {
	// Next is the place after which the next page begins. It is nil if this one ends with
	// the whole state.
	Next *lockstep.Cursor
	// Tag is the same for pages with the same documents.
	Tag string
}

// Part is a run of whole documents.
type Part interface {
	// Render returns the first documents in the form, at least one: data[begin:ends[len(ends)-1]].
	// ends has where each document ends, or the piece that it is in. All stay as they are.
	// A form without pieces gets all documents.
	Render(f Form) (data []byte, begin int, ends []uint32, err error)
	// Len returns how many documents there are.
	Len() int
	// Size returns how many bytes the nth document has as it is.
	Size(n int) int
	// Row says whether the nth document, counted from 0, is a row, and not a heartbeat.
	Row(n int) bool
	// Position returns the place of a client that got the first n documents, at least one.
	Position(n int) lockstep.Cursor
	// Rows returns how many of the documents are rows.
	Rows() int
	// Completed says that with the first document the client has the whole state for the
	// first time.
	Completed() bool
}
