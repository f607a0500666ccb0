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
	// Holds is the floor that a stream may have at most for who goes on from here: from
	// that position on, it must still have every delete.
	Holds uint64
	// Since is the position to resume from if the stream no longer has the place. 0 is
	// none.
	Since uint64
	// View is a tag of what the client was allowed and asked to see, empty for all.
	View string
	// Old says that the cursor has the form of before version 1. Then Holds and Since are
	// not known.
	Old bool
}

// cursorVersion is what cursors begin with.
const cursorVersion = "1"

// String returns the form that heartbeats carry:
// version.incarnation.epoch.sequence.holds.since, and .view if there is one. None of its
// characters needs escaping in JSON or in a URL.
func (c Cursor) String() string {
	place := c.Incarnation + "." + c.Epoch + "." + strconv.FormatUint(c.Seq, 10)
	if c.Old {
		return place
	}
	text := cursorVersion + "." + place + "." + strconv.FormatUint(c.Holds, 10) + "." + strconv.FormatUint(c.Since, 10)
	if c.View != "" {
		text += "." + c.View
	}
	return text
}

// ParseCursor parses what String returned. Cursors of before version 1 have the form
// incarnation.epoch.sequence.
func ParseCursor(s string) (Cursor, error) {
	parts := strings.Split(s, ".")
	var c Cursor
	switch n := len(parts); {
	case n == 3:
		c.Old = true
		parts = append([]string{cursorVersion}, append(parts, "0", "0")...)
	case n == 7 && validID(parts[6]):
		c.View = parts[6]
	case n != 6:
		return Cursor{}, fmt.Errorf("%w: a cursor has the form version.incarnation.epoch.sequence.holds.since", ErrMalformed)
	}
	if parts[0] != cursorVersion {
		return Cursor{}, fmt.Errorf("%w: a cursor of version %q, not %s", ErrMalformed, parts[0], cursorVersion)
	}
	if c.Incarnation, c.Epoch = parts[1], parts[2]; !validID(c.Incarnation) || !validID(c.Epoch) {
		return Cursor{}, fmt.Errorf("%w: incarnation or epoch of a cursor", ErrMalformed)
	}
	for i, to := range []*uint64{&c.Seq, &c.Holds, &c.Since} {
		n, err := strconv.ParseUint(parts[3+i], 10, 64)
		if err != nil {
			return Cursor{}, fmt.Errorf("%w: number %d of a cursor: %w", ErrMalformed, i+1, err)
		}
		*to = n
	}
	return c, nil
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
