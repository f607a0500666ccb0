package replay

import (
	"context"
	"math"
	"slices"

	"bridge/internal/follow"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
)

// BlockBytes adds up what the blocks of all relations take.
func BlockBytes(h *Hub) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, r := range h.relations {
		r.mu.Lock()
		for _, b := range r.blocks {
			n += b.size()
		}
		r.mu.Unlock()
	}
	return n
}

// Holds returns the position from which on the reader's client must be told of every delete.
func (r *Reader) Holds() uint64 { return r.at.holds }

// LastSeq returns the stream's last sequence, as a request gets it from the stream's leader.
func (h *Hub) LastSeq(ctx context.Context, l stream.Layout) (uint64, error) {
	a, err := h.ask(ctx, l)
	if err != nil {
		return 0, err
	}
	return a.Last, nil
}

// TestBlock is what a test says of a block.
type TestBlock struct {
	First, Last, HighBefore, Floor, Until, End uint64
	Cold                                       bool
	// OpenAt, if not 0, is the document, counted from 1, before which a hole is whose end is not known.
	OpenAt int
	// Cut, if not 0, is where the block is cut.
	Cut uint64
	// Documents have their sequence as High; those in Beats are heartbeats.
	Documents, Beats []uint64
}

// TestClient is a client's state.
type TestClient struct {
	Next, Seek, Hold, Holds uint64
	Open, Completed         bool
}

// Take gives a client all parts of a block, and returns the sequences that it gets, its state then, and the error.
func Take(tb TestBlock, tc TestClient) (got []uint64, after TestClient, err error) {
	b := &Block{first: tb.First, highBefore: tb.HighBefore, cold: tb.Cold}
	for _, seq := range tb.Documents {
		b.append(seq, seq, slices.Contains(tb.Beats, seq), []byte{'\n'})
	}
	b.marks = marks{last: tb.Last, floorAfter: tb.Floor, until: tb.Until, end: tb.End, open: tb.OpenAt > 0, openAt: tb.OpenAt - 1}
	r := &Reader{follow: true, at: state{next: tc.Next, seek: tc.Seek, hold: tc.Hold, holds: tc.Holds, open: tc.Open, completed: tc.Completed}}
	if tb.Cut > 0 {
		b.cut(tb.Cut)
	}
	last := b.marks.last
	if last == 0 {
		last = tb.Documents[len(tb.Documents)-1]
	}
	for first := true; first || last >= r.at.next; first = false {
		r.part.view, _ = b.view()
		p, err := &r.part, r.take(math.MaxInt)
		if err != nil {
			return got, TestClient{}, err
		}
		for _, d := range p.view.documents[p.from:p.to] {
			got = append(got, d.seq)
		}
	}
	return got, TestClient{r.at.next, r.at.seek, r.at.hold, r.at.holds, r.at.open, r.at.completed}, nil
}

// KeepsPromise says whether a heartbeat at seq with a list of epochs shows that the stream has lost the end promised, which
// was promised when its epochs were known.
func KeepsPromise(promised uint64, known stream.Epochs, seq uint64, list stream.Epochs) error {
	r := &relation{promised: follow.NewPlace(stream.Relation{}, promised, known), promisedEpochs: known}
	return r.keepsPromise(follow.Message{Seq: seq, Header: nats.Header{stream.EpochsHeader: {list.String()}}})
}

// Rendered returns the documents [from, to) of a block in the form, as a client gets them part by part, and calls check with
// each of these. Others got the block's documents when it had as many as at says.
func Rendered(docs []string, at []int, from, to int, f Form, check func(data string, ends []uint32)) error {
	b := &Block{relation: &relation{hub: &Hub{cache: newCache(math.MaxInt)}}}
	for i, doc := range docs {
		b.append(uint64(i+1), 0, false, []byte(doc))
		if slices.Contains(at, i+1) {
			v, _ := b.view()
			if _, _, err := v.render(f, i+1); err != nil {
				return err
			}
		}
	}
	for from < to {
		v, _ := b.view()
		data, begin, ends, err := (&Part{view: v, from: from, to: to}).Render(f)
		if err != nil {
			return err
		}
		relative := make([]uint32, len(ends))
		for i, end := range ends {
			relative[i] = end - uint32(begin)
		}
		check(string(data[begin:ends[len(ends)-1]]), relative)
		from += len(ends)
	}
	return nil
}

// BlockSuffix ends the names of files on disk.
const BlockSuffix = blockSuffix

// TestFile is what a test says of a block on disk.
type TestFile struct {
	Incarnation, Epoch                  string
	First, Last, HighBefore, Until, End uint64
}

// TakenUp says whether the block is taken up when its stream has the incarnation and the epochs, ends at last, has the floor, and
// is read from the sequence on.
func (f TestFile) TakenUp(incarnation string, epochs stream.Epochs, last, floor, from uint64) bool {
	file := &blockFile{idle: true, head: blockHead{
		Incarnation: f.Incarnation, Epoch: f.Epoch, First: f.First, Last: f.Last, HighBefore: f.HighBefore, Until: f.Until, End: f.End,
	}}
	d := &disk{blocks: map[*Block]*blockFile{file.block(nil): file}, bytes: prometheus.NewGauge(prometheus.GaugeOpts{})}
	now := &answer{}
	now.Meta.Incarnation, now.Meta.Floor, now.Last = incarnation, floor, last
	taken := d.takeUp(&relation{}, now, epochs, from)
	return len(taken) == 1 && taken[0].first == f.First && taken[0].covers() == f.Last
}
