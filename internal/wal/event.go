package wal

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"time"

	"bridge/internal/capture"
	"bridge/lockstep"
)

// transaction is the one that is being read.
type transaction struct {
	xid uint64
	// commit is the place of its commit record, committed the time in that record.
	commit    uint64
	committed time.Time
	// at is the place with which Postgres sent the last change, and n how many changes
	// it has sent with that place before.
	at uint64
	n  int
	// committedAt is the text of committed, event that of the last change's ID, and
	// head the length of the part of it that all IDs of the transaction have. They are
	// made when a stream first asks for them.
	committedAt, event []byte
	head               int
}

// count counts a change that Postgres has sent. The rows of one COPY share a place in
// the WAL. Every change is counted, whether or not a stream gets it, so that an ID does
// not depend on that.
func (tx *transaction) count(at uint64) {
	if tx.at == at {
		tx.n++
	} else {
		tx.at, tx.n = at, 0
	}
}

// id returns the ID of the change that is being read:
// timeline-commit-place-n, in hexadecimal digits of fixed width. So IDs are in the
// order of commits as text, too. After a failover, other changes may have the same
// places, but on another timeline. The same change has the same ID whenever Postgres
// sends it. The result is valid until the next change.
func (tx *transaction) id(timeline uint32) []byte {
	if tx.head == 0 {
		b := appendHex(make([]byte, 0, 64), uint64(timeline), 8)
		b = appendHex(append(b, '-'), tx.commit, 16)
		tx.event = append(b, '-')
		tx.head = len(tx.event)
	}
	b := appendHex(tx.event[:tx.head], tx.at, 16)
	tx.event = appendHex(append(b, '-'), uint64(tx.n), 4)
	return tx.event
}

// appendHex appends the last digits of v, an even number of them.
func appendHex(dst []byte, v uint64, digits int) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return hex.AppendEncode(dst, b[len(b)-digits/2:])
}

// change returns what the relation's stream says of the change that is being read.
func (s *session) change(f *feed, action lockstep.Action) lockstep.Change {
	c := lockstep.Change{Action: action}
	if f.r.tellsEvents() {
		if s.tx.committedAt == nil {
			s.tx.committedAt = lockstep.AppendTime(nil, s.tx.committed)
		}
		c.Event, c.CommittedAt = s.tx.id(s.src.Timeline), s.tx.committedAt
	}
	return c
}

// tellsEvents says whether the stream says which change of Postgres a row comes from.
func (r *Relation) tellsEvents() bool { return r.keepsAll() || r.spec.Events }

// gap says in a log that changes may be missing before what follows. A stream of
// latest versions has no such places: what was missed is read again. high, if not 0,
// is at least every position that the stream has shown, also at an end that the broker
// has lost since: a client that comes back with one must not pass over the gap.
func (f *feed) gap(ctx context.Context, reason string, high uint64) error {
	if !f.r.keepsAll() {
		return nil
	}
	f.dirty = true
	return f.r.sink.Row(ctx, capture.Change{Xmin: f.wm, High: high, Line: lockstep.AppendGap(nil, f.wm, reason)})
}
