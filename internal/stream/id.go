package stream

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// idBytes is the length of an ID before it becomes text: 6 bytes of time, and 4 that
// are random.
const idBytes = 10

// NewID returns an ID for an incarnation or an epoch that follows the one with the ID
// previous, which may be empty. As text, IDs sort in the order in which they were made:
// they begin with the time in milliseconds, or one more than that of previous if the
// clock went back. Two IDs that were made at the same time differ in 32 random bits.
//
// The order is for people and for who keeps old IDs apart from new ones. Whether a
// place is valid is decided by equal IDs alone.
func NewID(previous string, now time.Time) string {
	ms := uint64(max(0, now.UnixMilli()))
	if before, ok := idTime(previous); ok && before >= ms {
		ms = before + 1
	}
	b := make([]byte, idBytes)
	binary.BigEndian.PutUint64(b, ms<<16)
	_, _ = rand.Read(b[6:]) // it never fails
	return hex.EncodeToString(b)
}

// idTime returns the milliseconds in an ID; false for one that NewID did not make.
func idTime(id string) (ms uint64, ok bool) {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != idBytes {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[:8]) >> 16, true
}
