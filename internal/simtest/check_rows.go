package simtest

// row judges a row before it is applied.
func (c *checker) row(e *Event) {
	v := e.Version
	if e.Since != min(v.Txid, e.Xmin) {
		c.fail("I5", "row %s: since %d is not min(txid %d, current_xmin %d)", e.Key, e.Since, v.Txid, e.Xmin)
	}
	held, holds := c.state[e.Key]
	if holds && held.same(v) {
		c.counts.Repeats++
	}
	switch {
	case v.bare() && c.truth.WAL:
		c.unnamedDelete(e)
		return
	case v.bare():
		c.repairDelete(e, held, holds)
		return
	}
	known := c.truth.find(e.Key, v)
	_, lost := c.truth.lost(v.Op)
	switch {
	case known == nil && lost:
		return // finished judges it at the next heartbeat
	case known == nil:
		c.fail("I2", "row %s (txid %d, ver %d, op %d) is a version that was never committed", e.Key, v.Txid, v.Ver, v.Op)
		return
	case known.Deleted != v.Deleted:
		c.fail("I2", "row %s (txid %d, ver %d): deleted is %v", e.Key, v.Txid, v.Ver, v.Deleted)
	case known.Blob != v.Blob:
		c.fail("I12", "row %s (txid %d, ver %d) does not have the large value of that version", e.Key, v.Txid, v.Ver)
	}
	if newest := c.seen[e.Key]; v.Ver < newest {
		c.doubt("I4", "row %s went back from version %d to %d (txid %d)", e.Key, newest, v.Ver, v.Txid)
	}
	c.seen[e.Key] = max(c.seen[e.Key], v.Ver)
	c.promise(e, known, held, holds)
	if c.shownRow == nil || c.shownRow.Since < e.Since {
		c.shownRow = e
	}
}

// same says whether both are the same version.
func (v Version) same(o Version) bool { return v.Ver == o.Ver && v.Op == o.Op && v.Txid == o.Txid }

// promise checks a row against every since shown in the connection. Below it only two kinds of rows come. One is
// repeats: rows that the client holds, or that other clients saw before the since was shown and that are published
// again because a crash of Postgres may have undone them. The other is repairs: the older version of a row whose newer
// one Postgres lost.
func (c *checker) promise(e *Event, known *Committed, held Version, holds bool) {
	if holds && held.same(e.Version) || c.truth.undone[e.Key] {
		return
	}
	if c.shownRow != nil && e.Txid < c.shownRow.Since && !c.truth.repeats(e, known, c.shownRow) {
		c.doubt("I5", "row %s (txid %d, ver %d) is new below since %d, which an earlier row showed", e.Key, e.Txid, e.Ver, c.shownRow.Since)
	}
	if e.Txid < c.shownBeat {
		c.fail("I5", "row %s (txid %d, ver %d) is new below since %d, which an earlier heartbeat showed", e.Key, e.Txid, e.Ver, c.shownBeat)
	}
}

// repairDelete judges a deleted row that names only its key. It must be for a row that Postgres lost.
func (c *checker) repairDelete(e *Event, held Version, holds bool) {
	if !holds || held.Deleted {
		return
	}
	if _, lost := c.truth.lost(held.Op); !lost {
		c.fail("I2", "row %s (txid %d, ver %d) was deleted by the bridge, but Postgres did not lose it", e.Key, held.Txid, held.Ver)
	}
}

// position judges a position: it is that of the row before it.
func (c *checker) position(e *Event) {
	c.counts.Positions++
	if c.lastRow == nil || c.lastRow.Since != e.Since {
		c.fail("I3", "a position with since %d comes after the row %+v", e.Since, c.lastRow)
	}
}

// heartbeat judges the state at a heartbeat.
func (c *checker) heartbeat(e *Event) {
	era := c.truth.era(e.Timestamp)
	if !c.completed {
		c.fail("I2", "a heartbeat before snapshot_completed")
	}
	if last := c.lastBeat; last != nil {
		if e.Since < last.Since {
			c.fail("I5", "a heartbeat's since fell from %d to %d", last.Since, e.Since)
		}
		if e.Cursor.Seq <= last.Cursor.Seq {
			c.fail("I6", "a heartbeat's sequence went from %d to %d", last.Cursor.Seq, e.Cursor.Seq)
		}
		if e.Cursor.Epoch != last.Cursor.Epoch && c.epochs[e.Cursor.Epoch] {
			c.fail("I6", "epoch %s writes again after epoch %s", e.Cursor.Epoch, last.Cursor.Epoch)
		}
	}
	c.judgeDoubts(e)
	c.epochs[e.Cursor.Epoch] = true
	c.lastBeat = e
	c.shownBeat = max(c.shownBeat, e.Since)
	c.counts.Heartbeats++
	c.sum(e)
	c.finished(e, era)
	c.whole(e)
}

// sum checks the sum of the balances.
func (c *checker) sum(e *Event) {
	if c.truth.Sum == nil {
		return
	}
	sum := int64(0)
	for _, v := range c.state {
		if !v.Deleted {
			sum += v.Balance
		}
	}
	if sum != *c.truth.Sum {
		c.fail("I2", "at the heartbeat with since %d the balances sum to %d, want %d", e.Since, sum, *c.truth.Sum)
	}
}

// finished checks that each version of a transaction that had ended at the heartbeat's snapshot is there, or a later
// one, and that no version is there that Postgres lost before the heartbeat.
func (c *checker) finished(e *Event, era int) {
	sn, known := c.truth.snapshot(e)
	if known {
		c.counts.Snapshots++
	}
	for key, ch := range c.truth.byKey {
		held, holds := c.state[key]
		if want := ch.required(sn, era); held.Ver < want && !(holds && held.bare() && !c.truth.WAL) && !c.gone(e, key, want) && !c.tidied(e, key, want) {
			c.fail("I2", "at the heartbeat with since %d row %s has version %d, want at least %d, as in its snapshot %s", e.Since, key, held.Ver, want, sn)
		}
	}
	for key, held := range c.state {
		if of, lost := c.truth.lost(held.Op); lost && held.Op != 0 && of < era {
			c.fail("I7", "at the heartbeat with since %d row %s is the version (txid %d, op %d) that Postgres lost in a crash before", e.Since, key, held.Txid, held.Op)
		}
	}
}

// whole checks that the state shows either all of a transaction or nothing of it.
func (c *checker) whole(e *Event) {
	c.truth.stamp++
	for key, held := range c.state {
		known := c.truth.find(key, held)
		if known == nil {
			continue
		}
		siblings := known.siblings
		if siblings[0].stamp == c.truth.stamp {
			continue
		}
		siblings[0].stamp = c.truth.stamp
		for _, s := range siblings {
			other := c.state[s.Key]
			if _, lost := c.truth.lost(other.Op); other.Ver < s.Ver && !lost && !c.gone(e, s.Key, s.Ver) && !c.tidied(e, s.Key, s.Ver) {
				c.fail("I2", "only a part of transaction %d is there: row %s has its version %d, row %s has version %d, want at least %d", held.Txid, key, held.Ver, s.Key, other.Ver, s.Ver)
			}
		}
	}
}
