// Package replay finds the bytes that clients of a relation need: it reads the streams
// of relations back, in order, and knows nothing of HTTP. It is the counterpart of
// publish.
//
// # Blocks
//
// What is read is kept in blocks: immutable runs of documents, which any number of
// clients share, each rendered once in each form. A client, a [Reader], is a place in
// the stream; it owns nothing that the broker knows of. For each relation that clients
// ask for, one consumer (the tail) reads new messages into the last block. What no block
// covers is read by a few cold readers, once for all who wait for it. One bound holds
// for the memory of all blocks (I9), and a client that does not read holds nothing that
// another needs (I10).
//
// # Gaps
//
// In a stream of latest versions a message disappears when its successor is stored. A
// block in which one is missing says where the stream ended after that (until), and its
// clients get no heartbeat before there (I2). A hole counts as compaction only if the
// consumer's own delivery sequence has no hole. Else messages were dropped on the way,
// and they are read again (I3). TestModel_Blocks_I2 has all rules that make a shared
// block true, and shows what goes wrong without each.
//
// # A broker that goes back
//
// The place of the tail is a cursor: incarnation, epoch, sequence. The epoch list
// of every heartbeat must contain it, and so must the stream itself after every
// reconnect. The same holds for the furthest end that clients were told to wait for. If
// not, the broker lost messages that were read. Then the relation's blocks are
// forgotten, and every client of the relation is cut. Clients come back with their
// since, which is always safe (I8).
package replay
