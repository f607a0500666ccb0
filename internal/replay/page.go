package replay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"bridge/lockstep"
)

// Page is what a bounded request gets.
type Page struct {
	// Next is the place after which the next page begins. It is nil if this one ends with
	// the whole state.
	Next *lockstep.Cursor
	// Tag is the same for pages with the same documents.
	Tag string
}

// page bounds what a reader returns.
type page struct {
	// until is the last sequence of the page, 0 if the page ends with the whole state.
	until uint64
	// rows is how many more there may be.
	rows int
}

// end returns the last sequence that a reader with the page, nil for none, returns; 0 if
// there is no such bound.
func (p *page) end() uint64 {
	if p == nil {
		return 0
	}
	return p.until
}

// Page makes the answer of a finite request one of at most rows rows, and says what it
// will be. It reads to the page's end and then goes back to its beginning, so that nothing
// is kept of it. It may be called once, before Next. If the stream has no heartbeat that
// ends a short page, it returns an error that wraps ErrNotReady.
func (r *Reader) Page(ctx context.Context, rows int) (Page, error) {
	begin, left := r.at, rows
	tag := sha256.New()
	tag.Write([]byte(r.Incarnation()))
	for {
		p, err := r.Next(ctx, r.incomplete)
		if err != nil && !errors.Is(err, io.EOF) {
			return Page{}, fmt.Errorf("%w: read ahead: %w", ErrNotReady, err)
		}
		n := p.firstRows(left)
		left -= min(left, p.rows)
		for _, d := range p.view.documents[p.from : p.from+n] {
			tag.Write(binary.BigEndian.AppendUint64(nil, d.seq))
		}
		out := Page{Tag: hex.EncodeToString(tag.Sum(nil)[:16])}
		switch {
		case left == 0 && n > 0:
			next := p.Position(n)
			out.Next, r.page = &next, &page{until: next.Seq, rows: rows}
		case err != nil:
			r.page = &page{rows: rows}
		default:
			continue
		}
		r.at, r.lastData, r.part = begin, time.Now(), Part{}
		return out, nil
	}
}

// firstRows returns how many documents there are up to and with the nth row: all of them
// if there are no more rows.
func (p *Part) firstRows(n int) int {
	if p.rows < n {
		return p.to - p.from
	}
	for i := range p.to - p.from {
		if p.Row(i) {
			n--
		}
		if n == 0 {
			return i + 1
		}
	}
	return p.to - p.from
}
