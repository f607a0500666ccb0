// Package simtest runs the whole system as its users do, breaks it on purpose, and checks the invariants of DESIGN.md.
//
// # The world
//
// One Postgres cluster of its own, one nats-server process, two bridges and two edges, all real processes. [Writers]
// change two relations with random transactions. Clients speak the wire by hand on raw sockets ([Dial]), keep a state
// by key, cut themselves at random bytes and come back with the last since they saw; some take a token from the past of
// any client, with the state of that moment, and go on from there. The nemesis kills, stops and wipes processes, and
// starts them again as a supervisor would; nothing else is ever done to heal them.
//
// # The checker
//
// A client writes down all it sees in a [Log]. Every version of a row carries a number of its own (op) and its place in
// the history of its key (ver: the row's lock makes it the commit order), and a table of Postgres keeps each version
// that was committed. So after the run [Check] knows the truth and judges every log by itself:
//
//   - I1: at the end each client holds what Postgres does, byte for byte.
//   - I2: at each heartbeat the balances have their sum, each transaction is whole, nothing uncommitted is there, and
//     nothing that was finished at the heartbeat's since is missing.
//   - I3: a client that resumes from any token ever shown obeys all of this, and converges.
//   - I4: in one connection the versions of a key never go back.
//   - I5: below a since that was shown come repeats only, and no heartbeat's since falls.
//   - I6: in one connection no epoch comes back, and no sequence.
//   - I7: no process ends by itself, each fault heals within a bound without help, and what Postgres lost in a crash is
//     gone from every state at the first heartbeat after it.
//   - I8: a broker whose files are gone, or older, is no other fault: the rest holds. Only after such a loss may a
//     position be refused.
//   - I11: each chunk is one whole document, and a stream that is not killed is cut between two chunks.
//
// # What Postgres may take back
//
// A crash of Postgres loses transactions that were committed asynchronously, and gives their IDs, and those of
// transactions that were rolled back, out again. Each life of the cluster is an era. A heartbeat's era follows from its
// timestamp, because the nemesis starts Postgres only in a later second than it was killed in; a version's from the
// connection that wrote it. I5 and the rule about finished transactions hold between things of one era.
//
// What was taken back is known to the stream alone: an ID that comes again stands behind the since above it, and so does
// the older version that a repair put in a lost one's place. A broker that then loses its files takes this knowledge
// along, and the next load, in the order of txids, puts such rows before positions that clients hold. So before files
// are lost every client is brought to a heartbeat, and tokens from before are not used if Postgres ever crashed.
package simtest
