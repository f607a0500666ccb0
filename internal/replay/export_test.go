package replay

import (
	"context"
	"unsafe"

	"bridge/internal/stream"
)

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

// LastSeq returns the stream's last sequence, as a request gets it from the stream's leader.
func (h *Hub) LastSeq(ctx context.Context, l stream.Layout) (uint64, error) {
	a, err := h.ask(ctx, l)
	if err != nil {
		return 0, err
	}
	return a.Last, nil
}
