// Package replay reads the streams of relations back, in order, and turns them
// into bytes that are ready for an HTTP response. It is the counterpart of publish.
//
// # Tail and catch-up
//
// For each relation that clients ask for, one consumer (the tail) reads new
// messages. It frames each once, into immutable blocks, and keeps the last blocks
// in a bounded ring. A client is a position in the ring. A client that is older
// than the ring reads the stream by its own consumer until it reaches the ring;
// how many clients do that at the same time is limited. A slow client costs a
// position, not a buffer: if it falls out of the ring, it catches up again (I9,
// I10).
//
// # Gaps
//
// In a stream of latest versions a message disappears when its successor is
// stored. When a reader meets such a hole, it holds heartbeats back until one that
// is at or after the end that the stream had at that moment (I2). A hole counts as
// compaction only if the consumer's own delivery sequence has no hole. Else
// messages were dropped on the way, and the reader reads them again (I3).
//
// # A broker that goes back
//
// The place of the tail is a cursor: incarnation, epoch, sequence. The epoch list
// of every heartbeat must contain it, and so must the stream itself after every
// reconnect. If not, the broker lost messages that were read. Then the tail forgets
// everything in memory, and every client of the relation is cut. Clients come back
// with their since, which is always safe (I8).
package replay
