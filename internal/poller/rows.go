package poller

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"
	"bridge/lockstep"
)

const (
	// holdRows and holdBytes are how much of a batch is held before the first
	// row is published: a batch that ends within needs no announcement.
	holdRows  = 1000
	holdBytes = 256 << 10
)

// batch is the rows of one batch on their way from the query to the sink. A
// row is encoded once, into lines; what it holds is bounded by holdRows and
// holdBytes, and one row.
type batch struct {
	s     *session
	work  work
	begun time.Time
	look  look
	// xmin is the snapshot's whose rows these are, or lower.
	xmin uint64
	// announced is set when the rows need, or have, an announcement.
	announced bool
	rows      int64
	foreign   int64
	progress  health.Progress

	lines []byte
	keys  []byte
	held  []heldRow
	key   [][]byte
	// columns is memory for Encodable.
	columns [][]byte
	// again, if not nil, are the keys whose rows these are.
	again *suspects
}

// heldRow is one row whose document ends at line in lines, and whose key's
// columns end at keys in keys.
type heldRow struct {
	txid, high uint64
	line       int
	keys       []int
}

func newBatch(s *session, w work) *batch {
	return &batch{s: s, work: w, begun: time.Now(), announced: w.announced != nil}
}

// start takes the look under which the rows are read. A batch that reads the
// whole relation is always announced, and its schema stored, before its first
// row.
func (b *batch) start(ctx context.Context, l look) error {
	if err := b.s.check(ctx, b, l); err != nil {
		return err
	}
	b.look, b.xmin = l, l.snapshot.Xmin
	if b.work.announced != nil {
		b.xmin = b.work.announced.Xmin
	}
	if b.work.ceiling != 0 {
		b.xmin = min(b.xmin, b.work.ceiling)
	}
	b.s.durable.add(l)
	b.s.p.metrics.Next(l.next)
	b.s.repeats.forgetBelow(l.snapshot.Xmin)
	b.progress = health.NewProgress(b.begun)
	if !b.work.whole {
		return nil
	}
	b.s.p.update(func(st *health.Status) {
		*st = health.Status{State: health.StateFirstLoad, LoadRows: b.s.rel.EstimatedRows, Heartbeat: st.Heartbeat}
	})
	if err := b.announce(ctx); err != nil || b.work.schema == nil {
		return err
	}
	return b.s.sink.Schema(ctx, b.work.schema)
}

// add takes one row as Postgres sent it.
func (b *batch) add(ctx context.Context, values [][]byte) error {
	rel := b.s.rel
	txid, err := b.s.form.Txid(values)
	if err != nil {
		return err
	}
	if b.again != nil && b.again.comes(txid, b.look) {
		b.key = keyOf(b.key[:0], rel, values)
		b.again.settle(b.key, false)
		return nil
	}
	deleted := b.s.form.Deleted(values)
	start := len(b.lines)
	b.lines = lockstep.AppendRowHead(b.lines, txid, b.xmin, deleted)
	data := len(b.lines)
	if b.lines, err = b.s.form.AppendData(b.lines, b.s.form.Encodable(&b.columns, values)); err != nil {
		return stale(err)
	}
	if b.comesAgain(txid) && b.s.repeats.seen(values, rel.Key, txid, b.lines[data:]) && b.again == nil {
		b.lines = b.lines[:start]
		return nil
	}
	b.lines = lockstep.AppendRowTail(b.lines)
	return b.hold(ctx, txid, values)
}

// comesAgain says whether the next look will show the row again, as it is.
func (b *batch) comesAgain(txid uint64) bool {
	return (b.look.inRecovery || b.s.rel.Kind == 'v') && txid >= b.look.snapshot.Xmin
}

// keyOf appends the key of a row to key.
func keyOf(key [][]byte, rel *relation.Relation, values [][]byte) [][]byte {
	for _, i := range rel.Key {
		key = append(key, values[i])
	}
	return key
}

// hold keeps the row whose document was appended to lines, and publishes what
// is held when it is enough.
func (b *batch) hold(ctx context.Context, txid uint64, values [][]byte) error {
	if len(b.held) < cap(b.held) {
		b.held = b.held[:len(b.held)+1]
	} else {
		b.held = append(b.held, heldRow{})
	}
	r := &b.held[len(b.held)-1]
	r.txid, r.high, r.line, r.keys = txid, b.high(txid), len(b.lines), r.keys[:0]
	for _, i := range b.s.rel.Key {
		if values[i] == nil {
			return fmt.Errorf("key column %s is NULL in a row of transaction %d; a key must not be NULL: mend the row, or name another key in BRIDGE_TABLES", b.s.rel.Columns[i].Name, txid)
		}
		b.keys = append(b.keys, values[i]...)
		r.keys = append(r.keys, len(b.keys))
	}
	b.rows++
	if len(b.held) < holdRows && len(b.lines) < holdBytes {
		return nil
	}
	if err := b.announce(ctx); err != nil {
		return err
	}
	return b.flush(ctx)
}

// forgettable is how many transaction IDs a crash of Postgres may give out
// again, generously: those assigned since WAL was last flushed, which the WAL
// writer does several times a second.
const forgettable = 1 << 22

// high is the position that the row's message may stand for. In a batch of the
// whole relation that is not xmin, which is far above the old rows' txids: a
// client cut among them could not resume where it was. But it is more than the
// txid: where the broker lost its files, clients come with positions from
// before a crash of Postgres that gave IDs out again, and rows that were
// written since, under lower IDs, must be in front of them (I3). A row of
// another cluster's txid shows xmin as its since, and must not raise High
// above that.
func (b *batch) high(txid uint64) uint64 {
	switch {
	case txid >= b.look.next:
		b.foreign++
		return b.xmin
	case b.work.whole:
		return max(txid, min(b.xmin, txid+forgettable))
	}
	return max(txid, b.xmin)
}

// announce says which batch the rows are of, once.
func (b *batch) announce(ctx context.Context) error {
	if b.announced {
		return nil
	}
	b.announced = true
	if err := b.s.awaitDurable(ctx); err != nil {
		return err
	}
	a := capture.Batch{Snapshot: b.look.taken.String(), Durable: b.s.durable.text()}
	if b.work.previous != nil {
		a.Previous = b.work.previous.String()
	}
	return b.s.sink.Announce(ctx, a)
}

// flush publishes the rows held.
func (b *batch) flush(ctx context.Context) error {
	line, key := 0, 0
	keyJSON := b.keyJSON // made once: a method value is an allocation
	for i := range b.held {
		r := &b.held[i]
		b.key = b.key[:0]
		for _, end := range r.keys {
			b.key = append(b.key, b.keys[key:end])
			key = end
		}
		c := capture.Change{
			Key: b.key, KeyJSON: keyJSON, Txid: r.txid, Xmin: b.xmin, High: r.high, Line: b.lines[line:r.line],
		}
		if err := b.s.sink.Row(ctx, c); err != nil {
			return err
		}
		if b.again != nil {
			b.again.settle(b.key, true)
		}
		line = r.line
	}
	b.held, b.lines, b.keys = b.held[:0], b.lines[:0], b.keys[:0]
	b.report()
	return nil
}

// keyJSON appends the key in b.key as a JSON object.
func (b *batch) keyJSON(dst []byte) ([]byte, error) { return b.s.form.AppendKey(dst, b.key) }

// report shows the progress of a batch that reads the whole relation.
func (b *batch) report() {
	if !b.work.whole {
		return
	}
	b.s.p.update(func(st *health.Status) { st.LoadDone = b.rows })
	b.s.p.metrics.Load(b.rows, b.s.rel.EstimatedRows)
	b.progress.Log(b.s.log, b.rows, b.s.rel.EstimatedRows)
}

// xid and xidArray are the text forms of parameters.
func xid(n uint64) []byte { return strconv.AppendUint(nil, n, 10) }

func xidArray(ids []uint64) []byte {
	out := []byte{'{'}
	for i, id := range ids {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, id, 10)
	}
	return append(out, '}')
}
