package simtest

import "slices"

// The rules that differ if rows come from the WAL. A deleted row names only its key, so its version follows from its
// transaction. And a writer that begins repeats, version by version, what the writer before it published after the last
// heartbeat.

// named returns the event of a deleted row with the version of its deletion, if the transaction deleted the row.
func (c *checker) named(e *Event) *Event {
	if !c.truth.WAL || !e.bare() {
		return e
	}
	named := *e
	named.Version = c.truth.named(e.Key, e.Version)
	return &named
}

// nameAll does the same for all rows of the state.
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

// unnamedDelete judges a deleted row whose transaction did not delete it. Either the bridge looked for the row and did
// not find it, or a TRUNCATE removed all rows and this one had been deleted before. In the state it stands for any
// deletion after the versions that were seen: see gone.
func (c *checker) unnamedDelete(e *Event) {
	if newest := c.seen[e.Key]; !c.truth.goneSince(e.Key, newest, 0) {
		c.doubt("I2", "row %s (txid %d) was deleted by the bridge, but Postgres has not deleted it since version %d", e.Key, e.Txid, newest)
	}
}

// gone says whether a key that the state does not have, or has as deleted, may have had this version or a later one.
// That is so if it was deleted after the version and before the heartbeat. (A comparison of stream and relation
// ignores the content of a row that is marked as deleted in both.)
func (c *checker) gone(e *Event, key string, ver int64) bool {
	held, holds := c.state[key]
	return c.truth.WAL && (!holds || held.Deleted) && c.truth.goneSince(key, ver, e.Timestamp)
}

// tidied says whether a key that the state does not have may have had this version or a later one, because its deletion was
// removed from the stream: see gone. Who holds an older version of it must have been told of the deletion. But a broker that
// was killed may bring that version back. The bridge deletes it again before its next heartbeat; those from before the kill
// may still be shown.
func (c *checker) tidied(e *Event, key string, ver int64) bool {
	_, holds := c.state[key]
	if !c.truth.Tidied || !c.truth.goneSince(key, ver, e.Timestamp) {
		return false
	}
	return !holds || slices.ContainsFunc(c.truth.BrokerKills, func(k BrokerKill) bool { return k.At <= e.At && e.Timestamp <= k.Back })
}

// deletedFrom says whether some transaction from this one on deleted a row. Only then can the floor of a stream be above it.
func (t *Truth) deletedFrom(txid uint64) bool {
	for _, ch := range t.byKey {
		for _, v := range slices.Backward(ch.versions) { // by txid
			if v.Txid < txid {
				break
			}
			if v.Gone || v.Deleted {
				return true
			}
		}
	}
	return false
}

// goneSince says whether this version of the key, or a later one, is a deletion that was written at the time at or
// before it. at is 0 for any time.
func (t *Truth) goneSince(key string, ver, at int64) bool {
	ch := t.byKey[key]
	return ch != nil && slices.ContainsFunc(ch.versions, func(v *Committed) bool {
		return (v.Gone || v.Deleted) && v.Ver >= ver && (at == 0 || v.At <= at)
	})
}

// doubt records a violation, which does not count if another writer began after the last heartbeat and repeats what
// came after it. The next heartbeat decides that. It is a violation in any case if the rows are polled: these are not
// repeated in older versions.
func (c *checker) doubt(invariant, format string, args ...any) {
	before := len(c.violations)
	c.fail(invariant, format, args...)
	if c.truth.WAL {
		c.doubts = append(c.doubts, c.violations[before:]...)
		c.violations = c.violations[:before]
	}
}

// judgeDoubts is called at a heartbeat: by then all repeats have come.
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
