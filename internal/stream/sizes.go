package stream

import (
	"fmt"
	"math"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// maxRecord is the largest record that the file store of nats-server takes,
	// whatever max_payload allows. Its memory store has no such limit.
	maxRecord = 32 << 20
	// recordOverhead is what a record has besides subject, headers and data: three
	// lengths, sequence, time and checksum.
	recordOverhead = 34
	// maxHeader is the largest size of a stored message's headers.
	maxHeader = math.MaxUint16
)

// Sizes are the known limits of a stream's messages.
type Sizes struct {
	// message limits headers and data together, record what the store writes.
	message, record limit
}

// limit is a number of bytes. by says what sets it, and how to change that.
type limit struct {
	bytes int64
	by    string
}

// SizesOf returns the limits of a stream with this configuration, on a server with
// this max_payload.
func SizesOf(cfg jetstream.StreamConfig, maxPayload int64) Sizes {
	s := Sizes{
		message: limit{maxPayload, "max_payload of the broker: raise it, then update the row"},
		record:  limit{math.MaxInt64, ""},
	}
	if size := int64(cfg.MaxMsgSize); size > 0 && size < s.message.bytes {
		s.message = limit{size, "max_msg_size of the stream: remove it, then update the row"}
	}
	if cfg.Storage == jetstream.FileStorage {
		s.record = limit{maxRecord, fmt.Sprintf("the broker's file store: no setting raises its limit of %d MiB", maxRecord>>20)}
	}
	if cfg.MaxBytes > 0 && cfg.MaxBytes < s.record.bytes {
		s.record = limit{cfg.MaxBytes, "max_bytes of the stream: raise it, then update the row"}
	}
	return s
}

// Room returns how many bytes of data a message with this subject and these headers
// may have, less than 0 if it may not even have the headers. by says what limits it.
func (s Sizes) Room(subject string, h nats.Header) (room int64, by string) {
	head := headerSize(h)
	if head > maxHeader {
		return -1, fmt.Sprintf("the broker takes no headers above %d bytes, and the row's key is one", maxHeader)
	}
	room, by = s.message.bytes-head, s.message.by
	if r := s.record.bytes - recordOverhead - int64(len(subject)) - head; r < room {
		room, by = r, s.record.by
	}
	return max(0, room), by
}

// PullAhead returns how much a reader lets the broker send ahead, and when it asks for
// more: so early that the largest message fits into what it asks for. With more than 64
// MiB pending the broker would close the connection.
func PullAhead(maxPayload int64) (jetstream.PullMaxBytes, jetstream.PullThresholdBytes) {
	const least, most, around = 4 << 20, 40 << 20, 64 << 10 // around: subjects and the like
	ahead := max(least, min(2*maxPayload, most))
	largest := min(maxPayload, maxRecord) + around
	return jetstream.PullMaxBytes(ahead), jetstream.PullThresholdBytes(min(ahead/2, ahead-largest))
}

// Largest is the size of the largest message that may be stored, headers included. It
// tells whether the limits are what they were.
func (s Sizes) Largest() int64 { return min(s.message.bytes, s.record.bytes) }

// headerSize returns the size of the headers as they are sent.
func headerSize(h nats.Header) int64 {
	if len(h) == 0 {
		return 0
	}
	n := len("NATS/1.0\r\n") + len("\r\n")
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return int64(n)
}
