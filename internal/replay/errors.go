package replay

import (
	"errors"
	"fmt"
)

// What Open refuses a request with; the edge gives each its status.
var (
	// ErrUnknownRelation: the broker has no stream of that name.
	ErrUnknownRelation = errors.New("unknown relation")
	// ErrSinceAhead: the position was never given out by this source.
	ErrSinceAhead = errors.New("since is ahead of every position of this source")
	// ErrCursorGone: the stream no longer has the cursor's place, and no since takes its.
	ErrCursorGone = errors.New("the stream no longer has the cursor's place")
	// ErrNotShown: no heartbeat showed the transaction in time.
	ErrNotShown = errors.New("no heartbeat shows it yet")
	// ErrNotReady: the broker is away, or no heartbeat came where one is needed.
	ErrNotReady = errors.New("not ready")
)

// TooOldError says that a since can't be honoured any more.
type TooOldError struct{ Floor uint64 }

func (e *TooOldError) Error() string {
	return fmt.Sprintf("since is below %d, the oldest position that is kept", e.Floor)
}

// Why a stream that was open ends; Next returns them.
var (
	// ErrIncomplete: a finite request saw no heartbeat behind its last row.
	ErrIncomplete = errors.New("no heartbeat came")
	// errPageGrew: between reading ahead and sending, rows were added to the last page.
	errPageGrew = errors.New("the page has more rows by now")
)
