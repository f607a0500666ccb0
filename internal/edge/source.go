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
)

// Request is a client's request for a relation.
type Request struct {
	// Schema and Table are as in the path, which need not exist.
	Schema, Table string
	// Since is the position to resume from, 0 for everything.
	Since uint64
	// Follow is false for a client that wants the state and then the end.
	Follow bool
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
	// Next returns what comes next. It waits for up to wait, and returns nil if nothing
	// came. io.EOF ends a finite stream, with its last documents; any other error cuts it.
	Next(ctx context.Context, wait time.Duration) (Part, error)
	// Return gives the last part back but for its first n documents, and returns how many
	// of these are rows. The rest comes again. From then on the stream holds nothing of
	// the part.
	Return(p Part, n int) (rows int, err error)
	Close()
}

// Part is a run of whole documents.
type Part interface {
	// Render returns the documents in the form: data[begin:ends[len(ends)-1]]. ends has
	// where each document ends. All stay as they are.
	Render(f Form) (data []byte, begin int, ends []uint32, err error)
	// Rows returns how many of the documents are rows.
	Rows() int
	// Completed says that with the first document the client has the whole state for the
	// first time.
	Completed() bool
}
