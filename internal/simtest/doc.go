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
//
// # Capture from the WAL
//
// With capture=wal the same relations are read from the WAL, and the writers also do what polling does not promise to
// show: they really delete rows and make them again, change keys, TRUNCATE, leave large values alone, and roll back much
// of it. The nemesis also ends the walsender, asks bridges and Postgres to end, and moves the slot. The checker differs in
// this:
//
//   - I2: at each heartbeat the state is that of some prefix of the commits: the balances have their sum, each transaction
//     is whole, what was finished at its since is there. All versions of a transaction may be seen, its last one counts.
//   - A deleted row names only its key; its transaction tells which deletion it is. Who never saw the row needs no such
//     row: a key may be missing at a heartbeat if it was deleted before that.
//   - I4, I5: a writer that begins says again what stands behind the last heartbeat, in older versions, too. So a row may
//     go back, but only where the next heartbeat is another epoch's, and at that heartbeat nothing is back.
//   - I12: a version has the large value that it had in Postgres, whether that was in the WAL or not.
//   - Postgres takes nothing back that was read from the WAL, so there are no eras, nothing lost is ever seen, and tokens
//     hold across all crashes.
package simtest
