package replay

import (
	"iter"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"unsafe"

	"bridge/internal/stream"
)

// blockBytes is how much of documents a block holds before the next one is begun; one
// document may be larger.
const blockBytes = 128 << 10

// Block is a run of a relation's documents in the order of the stream. What it holds
// never changes. The tail's last block grows at its end. The documents may be on disk
// only.
//
// TestModel_Blocks_I2 says what the marks are for, and why each is needed.
type Block struct {
	// Static after construction. For every message ever stored from first on, up to the
	// last that the block covers, the block holds it, or a successor was stored by the end
	// of the filling, or it was a tombstone below floorAfter.
	relation *relation
	first    uint64
	// highBefore is the stream's High before the block was filled.
	highBefore uint64
	// cold says that a cold reader filled it, from what the stream had then.
	cold bool

	// used is the cache's clock when somebody last looked at it, and read whether a client
	// has.
	used atomic.Uint64
	read atomic.Bool

	// loading is held while the documents are read from disk.
	loading sync.Mutex

	mu sync.Mutex
	// Guarded by mu. All grow until the block is sealed; what was published stays. While
	// away is set, documents, kept, beats and renderings are on disk and not here.
	away      bool
	marks     marks
	documents []document
	// kept has the documents in the native form. Those in other forms are in renderings.
	kept       rendering
	beats      []int // the heartbeats among documents
	renderings map[Form]*rendering
}

// marks are what a block tells its clients besides documents.
type marks struct {
	// last is the last sequence that the block covers, 0 while it grows.
	last uint64
	// floorAfter is the stream's floor after the filling.
	floorAfter uint64
	// until is where the stream ended after the last hole of the block, 0 for no hole.
	// open says that there is a hole for which that was not yet asked; it is before the
	// document openAt.
	until  uint64
	open   bool
	openAt int
	// end is where the stream ended after a cold block was filled.
	end uint64
	// epoch is the stream's newest when the last document was known to be in the stream.
	// A cursor to any of the documents names it: see stream.Epochs.Holds.
	epoch string
}

// document is one document of a block.
type document struct {
	seq uint64
	// high is the message's High.
	high uint64
	// head and tail are how many bytes the native form has before the text, and after it.
	head, tail uint8
	heartbeat  bool
}

func newBlock(r *relation, first, highBefore uint64) *Block {
	return &Block{relation: r, first: first, highBefore: highBefore}
}

// append adds a document.
func (b *Block) append(seq, high uint64, heartbeat bool, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if heartbeat {
		b.beats = append(b.beats, len(b.documents))
	}
	begin, head := len(b.kept.data), 0
	if native := b.native(); native == nil {
		b.kept.data = append(b.kept.data, data...)
	} else {
		b.kept.data, head = native.Frame(b.kept.data, data)
	}
	tail := len(b.kept.data) - begin - head - len(data)
	b.kept.ends = append(b.kept.ends, uint32(len(b.kept.data)))
	b.documents = append(b.documents, document{seq: seq, high: high, head: uint8(head), tail: uint8(tail), heartbeat: heartbeat})
}

// native returns the form in which the block keeps its documents, nil for as they are.
func (b *Block) native() Native {
	if b.relation == nil { // in tests
		return nil
	}
	return b.relation.hub.opt.Native
}

// document returns a document's text.
func (v *view) document(i int) []byte {
	d := &v.documents[i]
	return v.kept.data[v.kept.begin(i)+int(d.head) : int(v.kept.ends[i])-int(d.tail)]
}

// full says whether the next document belongs into another block.
func (b *Block) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.kept.data) >= blockBytes
}

// mark changes the marks.
func (b *Block) mark(change func(*marks)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.marks)
}

// note takes note of what the tail knows before it appends the next document.
func (b *Block) note(until, floor uint64, open bool, epoch string) {
	b.mark(func(m *marks) {
		if open && !m.open {
			m.openAt = len(b.documents)
		}
		m.until, m.floorAfter, m.open, m.epoch = max(m.until, until), floor, open, epoch
	})
}

// seal ends the block: it covers everything up to last.
func (b *Block) seal(last uint64) { b.mark(func(m *marks) { m.last = last }) }

// cut takes out what is at or after the sequence. Nobody may have got the block yet.
func (b *Block) cut(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.marks.last < seq {
		return
	}
	b.marks.last = seq - 1
	n := sort.Search(len(b.documents), func(i int) bool { return b.documents[i].seq >= seq })
	b.documents = b.documents[:n]
	beats, _ := slices.BinarySearch(b.beats, n)
	b.beats = b.beats[:beats]
	b.kept = rendering{b.kept.data[:b.kept.begin(n)], b.kept.ends[:n]}
}

// sealed says whether the block no longer grows.
func (b *Block) sealed() bool { return b.covers() != 0 }

// size returns how much memory the block takes.
func (b *Block) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := int(unsafe.Sizeof(*b)) + b.kept.size() + cap(b.documents)*int(unsafe.Sizeof(document{})) + 8*cap(b.beats)
	for _, r := range b.renderings {
		size += int(unsafe.Sizeof(*r)) + r.size()
	}
	return size
}

// view is what a block has at one moment.
type view struct {
	*Block
	marks
	documents []document
	beats     []int
	kept      rendering
}

// view returns what the block has in memory, and false if that is on disk: then there are
// only the marks.
func (b *Block) view() (v view, here bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return view{b, b.marks, b.documents, b.beats, b.kept}, !b.away
}

// load returns what the block has, and whether it had to be read from disk.
func (b *Block) load(d *disk) (v view, read bool, err error) {
	if v, here := b.view(); here {
		return v, false, nil
	}
	b.loading.Lock()
	defer b.loading.Unlock()
	if v, here := b.view(); here { // by now
		return v, false, nil
	}
	if v, err = d.read(b); err != nil {
		return view{}, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away, b.documents, b.beats, b.kept = false, v.documents, v.beats, v.kept
	v.Block, v.marks = b, b.marks
	return v, true, nil
}

// release leaves the documents to the block's file.
func (b *Block) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away, b.documents, b.beats, b.kept, b.renderings = true, nil, nil, rendering{}, nil
}

// empty says whether the block has no documents in memory.
func (b *Block) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.documents) == 0
}

// covers returns the last sequence that the block covers, 0 while it grows.
func (b *Block) covers() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.marks.last
}

// from returns the first document at or after the sequence.
func (v *view) from(seq uint64) int {
	return sort.Search(len(v.documents), func(i int) bool { return v.documents[i].seq >= seq })
}

// passed returns the heartbeats among the documents [from, to).
func (v *view) passed(from, to int) []int {
	lo, _ := slices.BinarySearch(v.beats, from)
	hi, _ := slices.BinarySearch(v.beats, to)
	return v.beats[lo:hi]
}

// fromHigh returns the first document whose High is at least high.
func (v *view) fromHigh(high uint64) int {
	return sort.Search(len(v.documents), func(i int) bool { return v.documents[i].high >= high })
}

// highFrom returns the stream's High before the documents from n on were read, or one
// that is lower.
func (v *view) highFrom(n int) uint64 {
	if n == 0 {
		return v.highBefore
	}
	return max(v.highBefore, v.documents[n-1].high)
}

// Form makes what clients get of documents. Its values are comparable.
type Form = interface {
	// Append appends one piece: documents in this form. A client can use a piece only as a
	// whole. Each document ends with a newline.
	Append(dst []byte, docs iter.Seq[[]byte]) ([]byte, error)
	// Together is about how many bytes of documents a piece has, 0 if each document is a
	// piece of its own.
	Together() int
}

// Native is a form in which blocks keep their documents, because most clients get it. It
// has each document as it is, with a few bytes before and after it.
type Native = interface {
	Form
	// Frame appends a document, and returns how many bytes come before its text. It is at
	// most 255, as is how many come after it.
	Frame(dst, doc []byte) (_ []byte, head int)
}

// rendering is a block in one form.
type rendering struct {
	data []byte
	// ends has where each document's piece ends in data. There may be fewer than the block has.
	ends []uint32
}

func (r *rendering) size() int { return cap(r.data) + 4*cap(r.ends) }

// begin returns where the piece begins whose first document is the ith.
func (r *rendering) begin(i int) int {
	if i == 0 {
		return 0
	}
	return int(r.ends[i-1])
}

// within says whether the documents before i and i are in one piece.
func (r rendering) within(i int) bool {
	return i > 0 && i < len(r.ends) && r.ends[i-1] == r.ends[i]
}

// next returns the first document after i that begins a piece.
func (r rendering) next(i int) int {
	for i++; r.within(i); i++ {
	}
	return i
}

// previous returns the last document up to i that begins a piece.
func (r rendering) previous(i int) int {
	for ; r.within(i); i-- {
	}
	return i
}

// render returns at least the first n documents of the view in the form, and whether it
// had to make some of that. The bytes stay as they are.
func (v *view) render(f Form, n int) (_ rendering, grew bool, err error) {
	b := v.Block
	if native := b.native(); native != nil && f == Form(native) {
		return v.kept, false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.renderings[f]
	if r == nil {
		r = &rendering{}
		if b.marks.last != 0 && f.Together() == 0 { // all of it in one go
			r.data = make([]byte, 0, len(v.kept.data)+around*len(v.documents))
			r.ends = make([]uint32, 0, len(v.documents))
		}
		if b.renderings == nil {
			b.renderings = make(map[Form]*rendering)
		}
		if !b.away { // else it is for this client alone
			b.renderings[f] = r
		}
	}
	piece := run{view: v}
	docs := piece.each // one for all pieces
	for ; len(r.ends) < n; grew = true {
		piece.from = len(r.ends)
		piece.to = v.piece(piece.from, f.Together())
		if r.data, err = f.Append(r.data, docs); err != nil {
			return rendering{}, grew, err
		}
		for range piece.to - piece.from {
			r.ends = append(r.ends, uint32(len(r.data)))
		}
	}
	return *r, grew, nil
}

// run is the documents [from, to) of a view.
type run struct {
	view     *view
	from, to int
}

func (r *run) each(yield func([]byte) bool) {
	for i := r.from; i < r.to && yield(r.view.document(i)); i++ {
	}
}

// piece returns where a piece of about so many bytes ends that begins with the document.
func (v *view) piece(from, bytes int) (to int) {
	for to = from + 1; to < len(v.documents) && int(v.kept.ends[to]-v.kept.ends[from]) < bytes; to++ {
	}
	return to
}

// around is about how many bytes a form adds to a document.
const around = 10

// forwarded says whether messages of the kind go to clients.
func forwarded(k stream.Kind) bool {
	return k == stream.KindRow || k == stream.KindHeartbeat
}
