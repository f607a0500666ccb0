// Package follow reads the stream of a relation in order, and knows what the order
// means. The edge, bridge tail, and the bridge itself read their streams by it.
//
// A [Reader] brings every message from a sequence on, or says that it can't. What it
// brings shows two kinds of holes and one kind of lie:
//
//   - Compaction. In a stream of latest versions a message disappears when its
//     successor is stored. A reader that meets such a hole has missed nothing, because
//     the successor is ahead of it. But until it has read that, what it holds is no
//     state of the relation. A [Gate] says which heartbeats count (I2).
//   - Loss on the way. The broker dropped messages that the stream still has. The
//     Reader knows this by the consumer's own count, and ends with ErrDropped. Whoever
//     reads goes on with a new Reader (I3).
//   - A broker that goes back. It lost the end of the stream and gives the same
//     sequences out again, or somebody made the stream again. A [Place] knows in which
//     incarnation and epoch it stands, and finds that the stream no longer holds it
//     (I8).
package follow
