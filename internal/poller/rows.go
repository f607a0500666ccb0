package poller

import (
	"context"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"
	"bridge/lockstep"
)

const (
	// holdRows and holdBytes are how much of a batch is held in memory before its
	// first row is published. A batch that ends before that needs no announcement.
	holdRows  = 1000
	holdBytes = 256 << 10
)

// batch is the rows of one batch on their way from the query to the sink. Each row
// is encoded once, into lines. What a batch holds is bounded by holdRows, and by
// holdBytes plus one row.
type batch struct {
	s     *session
	work  work
	begun time.Time
	look  look
	// xmin is what the rows show as current_xmin; see shown.
	xmin uint64
	// announced is set when the batch was announced, or needs no announcement.
	announced bool
	rows      int64
	foreign   int64
	progress  health.Progress

	lines []byte
	keys  []byte
	held  []heldRow
	key   [][]byte
	// columns is reused memory for Form.Encodable.
	columns [][]byte
	// again, if not nil, holds the suspect keys whose rows this batch reads.
	again *suspects
}

// heldRow is one held row. Its document ends at offset line in batch.lines, its
// key columns end at offsets keys in batch.keys.
type heldRow struct {
	txid, high uint64
	line       int
	keys       []int
}

func newBatch(s *session, w work) *batch {
	return &batch{s: s, work: w, begun: time.Now(), announced: w.announced != nil}
}

// start takes the look under which the rows are read. If the batch reads the whole
// relation, start announces it, and stores the schema if work has one.
func (b *batch) start(ctx context.Context, l look) error {
	if err := b.s.check(ctx, b, l); err != nil {
		return err
	}
	b.look, b.s.seen = l, l
	b.s.durable.add(l)
	b.xmin = b.shown()
	b.s.p.metrics.Next(l.next)
	b.s.repeats.forgetBelow(l.snapshot.Xmin)
	b.progress = health.NewProgress(b.begun)
	if !b.work.whole {
		return nil
	}
	b.s.p.update(func(st *health.Status) {
		*st = health.Status{State: health.StateFirstLoad, LoadRows: b.s.rel.EstimatedRows, Heartbeat: st.Heartbeat}
	})
	if err := b.announce(ctx); err != nil {
		return err
	}
	b.xmin = b.shown() // announce may have found a D
	if b.work.schema == nil {
		return nil
	}
	return b.s.sink.Schema(ctx, b.work.schema)
}

// shown returns what the batch's rows show as current_xmin: the xmin of the
// batch's snapshot, or of D if that is lower. So a crash of Postgres never gives
// out again an ID below a since that was shown. What follows a continued batch is
// all that is not visible in the D that was announced with it, if Postgres
// crashed meanwhile.
func (b *batch) shown() uint64 {
	xmin := b.s.durable.limit(b.look.snapshot.Xmin)
	if w := b.work; w.announced != nil {
		xmin = min(w.announced.Xmin, w.durable.Xmin)
	}
	if b.work.ceiling != 0 {
		xmin = min(xmin, b.work.ceiling)
	}
	return xmin
}

// add takes one row as Postgres sent it.
func (b *batch) add(ctx context.Context, values [][]byte) error {
	rel := b.s.rel
	txid, err := b.s.form.Txid(values)
	if err != nil {
		return err
	}
	if b.s.form.Keyless(values) {
		b.s.metKeyless = true
		return nil
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

// comesAgain says whether the next batch will read the same row again.
func (b *batch) comesAgain(txid uint64) bool {
	return (b.look.inRecovery || b.s.rel.Kind == 'v') && txid >= b.look.snapshot.Xmin
}

// keyOf appends the key columns of a row to key.
func keyOf(key [][]byte, rel *relation.Relation, values [][]byte) [][]byte {
	for _, i := range rel.Key {
		key = append(key, values[i])
	}
	return key
}

// hold keeps the row whose document was appended to lines. When enough is held,
// it publishes what it holds.
func (b *batch) hold(ctx context.Context, txid uint64, values [][]byte) error {
	if len(b.held) < cap(b.held) {
		b.held = b.held[:len(b.held)+1]
	} else {
		b.held = append(b.held, heldRow{})
	}
	r := &b.held[len(b.held)-1]
	r.txid, r.high, r.line, r.keys = txid, b.high(txid), len(b.lines), r.keys[:0]
	for _, i := range b.s.rel.Key {
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

// high returns High for the row's message: its txid, which is at least the since
// that it shows. A row that is written later has no lower txid than a since that
// was shown before, so it never stands before the place at which the search for
// that since ends, whatever became of the stream (I3).
//
// A row with a txid of another cluster shows the batch's xmin as its since. It
// must not raise High above that.
func (b *batch) high(txid uint64) uint64 {
	if txid >= b.look.next {
		b.foreign++
		return b.xmin
	}
	return txid
}

// announce announces the batch, unless that was done before.
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

// flush publishes the rows that are held.
func (b *batch) flush(ctx context.Context) error {
	line, key := 0, 0
	keyJSON := b.keyJSON // once for all rows, because a method value allocates memory
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

// xid and xidArray return the text form of a parameter.
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
