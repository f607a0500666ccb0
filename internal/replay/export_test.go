package replay

import "unsafe"

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
