package lockstep

import (
	"fmt"
	"strconv"
	"strings"
)

// Cursor is an exact place in a stream. HTTP clients treat it as opaque.
type Cursor struct {
	// Incarnation is the stream's incarnation, Epoch the writer's run in which the
	// message was stored. A sequence alone is not enough: a broker that lost the
	// stream's tail gives the same sequences out again.
	Incarnation, Epoch string
	// Seq is the stream's sequence of the last message seen.
	Seq uint64
}

// String returns the form that heartbeats carry. None of its characters needs
// escaping in JSON or in a URL.
func (c Cursor) String() string {
	return c.Incarnation + "." + c.Epoch + "." + strconv.FormatUint(c.Seq, 10)
}

// ParseCursor parses what String returned.
func ParseCursor(s string) (Cursor, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || !validID(parts[0]) || !validID(parts[1]) {
		return Cursor{}, fmt.Errorf("%w: cursor does not have the form incarnation.epoch.sequence", ErrMalformed)
	}
	seq, err := strconv.ParseUint(parts[2], 10, 64)
	if err != nil {
		return Cursor{}, fmt.Errorf("%w: sequence of cursor: %w", ErrMalformed, err)
	}
	return Cursor{Incarnation: parts[0], Epoch: parts[1], Seq: seq}, nil
}

func validID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return false
		}
	}
	return true
}
