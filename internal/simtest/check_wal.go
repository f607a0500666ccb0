package simtest

import "slices"

// What is different where rows come from the WAL. A deleted row names only its key: which version it is follows from its
// transaction. And a writer that begins says again what the one before it had said since the last heartbeat, version by
// version.

// named returns the event of a deleted row with the number of the deletion that it stands for, where there is one.
func (c *checker) named(e *Event) *Event {
	if !c.truth.WAL || !e.bare() {
		return e
	}
	named := *e
	named.Version = c.truth.named(e.Key, e.Version)
	return &named
}

// nameAll does the same with the whole state.
func (c *checker) nameAll() {
	if !c.truth.WAL {
		return
	}
	for key, v := range c.state {
		c.state[key] = c.truth.named(key, v)
	}
}

func (t *Truth) named(key string, v Version) Version {
	if !v.bare() {
		return v
	}
	for _, known := range t.of(key, v.Txid) {
		if known.Gone {
			v.Ver, v.Op = known.Ver, known.Op
		}
	}
	return v
}

// unnamedDelete judges a deleted row whose transaction did not delete it: the bridge looked for the row and it was not
// there, or all rows were removed, and it was one that was not there any more. In the state it stands for any deletion
// behind what was seen before: see gone.
func (c *checker) unnamedDelete(e *Event) {
	if newest := c.seen[e.Key]; !c.truth.goneSince(e.Key, newest, 0) {
		c.doubt("I2", "row %s (txid %d) was deleted by the bridge, but Postgres has not deleted it since version %d", e.Key, e.Txid, newest)
	}
}

// gone says whether a key of which there is nothing in the state, or only that it is away, may have had the version, or
// a later one: it was deleted since, before the heartbeat. A comparison of stream and relation takes no account of what a
// row held that is marked as deleted in both.
func (c *checker) gone(e *Event, key string, ver int64) bool {
	held, holds := c.state[key]
	return c.truth.WAL && (!holds || held.Deleted) && c.truth.goneSince(key, ver, e.Timestamp)
}

// goneSince says whether the version of the key, or one behind it, is a deletion written at a time or before, 0 for any.
func (t *Truth) goneSince(key string, ver, at int64) bool {
	ch := t.byKey[key]
	return ch != nil && slices.ContainsFunc(ch.versions, func(v *Committed) bool {
		return (v.Gone || v.Deleted) && v.Ver >= ver && (at == 0 || v.At <= at)
	})
}

// doubt says what is wrong, unless another writer began since the last heartbeat and repeats what stood behind it. That
// shows at the next heartbeat. Polled rows are not repeated in older versions.
func (c *checker) doubt(invariant, format string, args ...any) {
	before := len(c.violations)
	c.fail(invariant, format, args...)
	if c.truth.WAL {
		c.doubts = append(c.doubts, c.violations[before:]...)
		c.violations = c.violations[:before]
	}
}

// judgeDoubts is called at a heartbeat: what was said again has come to its end by then.
func (c *checker) judgeDoubts(e *Event) {
	if !c.truth.WAL {
		return
	}
	if c.lastBeat != nil && c.lastBeat.Cursor.Epoch == e.Cursor.Epoch {
		c.violations = append(c.violations, c.doubts...)
	}
	c.doubts = nil
	for key, newest := range c.seen {
		if held := c.state[key]; held.Ver < newest && !held.bare() {
			c.fail("I4", "at the heartbeat with since %d row %s is back at version %d, after %d", e.Since, key, held.Ver, newest)
		}
	}
}
