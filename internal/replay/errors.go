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
)
