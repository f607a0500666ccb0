package replay

import (
	"unsafe"

	"bridge/internal/stream"
)

// Held says whether seq, read when the stream had the epochs then, is a place of
// the stream that has the epochs now and ends at last.
func Held(then, now stream.Epochs, seq, last uint64) error {
	p := newPlace(Relation{}, seq, then)
	return p.held(now, last)
}

// RingBytes adds up what the rings of all relations hold.
func RingBytes(h *Hub) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, t := range h.tails {
		t.mu.Lock()
		for _, b := range t.blocks {
			n += int(unsafe.Sizeof(*b)) + cap(b.data) + cap(b.entries)*int(unsafe.Sizeof(entry{}))
		}
		t.mu.Unlock()
	}
	return n
}
