// Package replay reads relations' streams back, in order, and turns them into
// bytes that are ready for an HTTP response. It is the mirror of publish.
//
// # Tail and catch-up
//
// For each relation that clients ask for, one consumer (the tail) reads what is
// new, frames it once into immutable blocks, and keeps the last of them in a
// bounded ring. A client is a position in the ring. A client that is older
// reads the stream by a consumer of its own until it reaches the ring; how many
// do that at once is bounded. A slow client costs its position, not a buffer:
// one that falls out of the ring catches up again (I9, I10).
//
// # Gaps
//
// In a stream of latest versions a message disappears when its successor is
// stored. A reader that meets a hole passes on no heartbeat until one at or
// behind the stream's end as it was when the hole was met (I2). A hole is
// compaction only if the consumer's own delivery sequence is unbroken; else
// messages were dropped on the way, and are read again (I3).
//
// # A broker that goes back
//
// The place of the tail is a cursor: incarnation, epoch, sequence. Every
// heartbeat's epoch list, and the stream itself after every reconnect, must
// hold it. Where they don't, the broker lost what was read: everything in
// memory is forgotten and every client of the relation is cut; they come back
// with their since, which is always safe (I8).
package replay
