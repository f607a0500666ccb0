package replay

import (
	"strconv"
	"unsafe"

	"bridge/internal/stream"
	"bridge/lockstep"
)

// blockBytes is how much a block holds before the next one is begun; one
// document may be larger.
const blockBytes = 128 << 10

// block is a run of documents, framed as HTTP chunks. What is below its
// published length never changes, so that any number of clients read it.
type block struct {
	// first is the sequence at which the block begins to be true: everything
	// from first to the last entry's sequence that is still in the stream is
	// in it.
	first uint64
	// data and entries only grow; their published lengths are the tail's.
	data    []byte
	entries []entry
	// size is the memory that was last counted for it.
	size int
}

// recount returns how much memory the block takes more than when it was last
// counted.
func (b *block) recount() int {
	before := b.size
	b.size = int(unsafe.Sizeof(*b)) + cap(b.data) + cap(b.entries)*int(unsafe.Sizeof(entry{}))
	return b.size - before
}

// entry is one document of a block.
type entry struct {
	seq uint64
	// end is where its chunk ends in data.
	end       int
	heartbeat bool
}

// appendChunk frames a document as one HTTP chunk (RFC 9112, section 7.1).
func appendChunk(dst, doc []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(len(doc)), 16)
	dst = append(dst, '\r', '\n')
	dst = append(dst, doc...)
	return append(dst, '\r', '\n')
}

// appendFlatChunk frames the document in the flat dialect.
func appendFlatChunk(dst, doc []byte) ([]byte, error) {
	flat, err := lockstep.AppendFlat(nil, doc)
	if err != nil {
		return dst, err
	}
	return appendChunk(dst, flat), nil
}

// document returns the document in a chunk.
func document(chunk []byte) []byte {
	for i, c := range chunk {
		if c == '\n' {
			return chunk[i+1 : len(chunk)-2]
		}
	}
	return nil
}

// forwarded says whether messages of the kind go to clients.
func forwarded(k stream.Kind) bool {
	return k == stream.KindRow || k == stream.KindHeartbeat
}
