// Package simtest runs the whole system as its users do, breaks it on purpose, and checks the invariants of DESIGN.md.
//
// # The world
//
// The world is a Postgres cluster of its own, a nats-server process, two bridges and two edges. All are real processes.
// [Writers] change two relations with random transactions. Clients read the protocol on raw sockets ([Dial]) and keep a
// state by key. They cut their connections at random bytes, and come back with the last since they saw. Some take a
// token: a position that any client was shown in the past, with the state of that moment. They go on from there. The
// nemesis kills and stops processes and wipes their files, and starts them again as a supervisor would. Nothing else is
// done to heal them.
//
// # The checker
//
// A client writes everything that it sees to a [Log]. Each version of a row carries the number of its statement (op)
// and its place in the history of its key (ver). The writers hold a lock while they count ver, so it is the order of
// the commits. A table in Postgres keeps each version that was committed. So after the run [Check] knows the truth,
// and judges each log on its own:
//
//   - I1: at the end each client holds what Postgres holds, byte for byte.
//   - I2: at each heartbeat the balances have their sum, each transaction is whole, and no uncommitted version is
//     there. No version is missing that was finished at the heartbeat's since.
//   - I3: a client that resumes from any token ever shown obeys all these rules, and converges.
//   - I4: in one connection the versions of a key never go back.
//   - I5: below a since that was shown, only repeats come. No heartbeat's since falls.
//   - I6: in one connection no epoch comes back, and no sequence.
//   - I7: no process ends by itself. Each fault heals within a bound, without help. What Postgres lost in a crash is
//     gone from every state at the first heartbeat after it.
//   - I8: if the broker's files are lost, or replaced by older ones, all other rules still hold. Only after such a loss
//     may a position be refused.
//   - I11: each chunk is one whole document. A stream is cut between two chunks, unless its edge was killed.
//
// # What Postgres may take back
//
// A crash of Postgres loses transactions that were committed asynchronously. Postgres then gives their IDs out again,
// and those of transactions that were rolled back. Each life of the cluster is an era. A heartbeat's era follows from
// its timestamp: the nemesis never starts Postgres in the second in which it was killed. A version's era follows from
// the connection that wrote it. I5, and the rule about finished transactions, hold within one era.
//
// Only the stream knows what was taken back. A row with an ID that was given out again comes in the stream after the
// higher since that was shown before. So does the older version with which a repair replaced a lost one. If the broker
// then loses its files, this knowledge is lost. The next load, in the order of txids, puts such rows before positions
// that clients hold. So before files are lost, every client is brought to a heartbeat. Tokens from before are not used
// if Postgres ever crashed.
//
// # Capture from the WAL
//
// With capture=wal the same relations are read from the WAL. The writers then also do what polls do not promise to
// show: they delete rows for good, insert them again, change keys, TRUNCATE, leave large values unchanged, and roll
// much of it back. The nemesis also ends the walsender, stops bridges and Postgres gracefully, and moves the slot. The
// checker differs in these rules:
//
//   - I2: at each heartbeat the state is that of a prefix of the commits: the balances have their sum, each
//     transaction is whole, and what was finished at the heartbeat's since is there. All versions of a transaction may
//     come; its last one counts.
//   - A deleted row names only its key. Its transaction says which deletion it is. A client that never saw the row
//     needs no such message: a key may be missing at a heartbeat if it was deleted before.
//   - I4, I5: a writer that begins publishes again what comes after the last heartbeat, in older versions too. So a
//     row may go back, but only if the next heartbeat is of another epoch. At that heartbeat no row is back.
//   - A third relation, [Notes], keeps every change. A [Journal] reads it, and [CheckJournal] compares it with a table
//     in which a trigger kept what happened: each event is there once, or again in runs with the same IDs. None is
//     missing, except where a gap is said.
//   - I12: a version has the large value that it had in Postgres, whether the WAL contained it or not.
//   - Postgres takes nothing back that was read from the WAL. So there are no eras, nothing lost is ever seen, and
//     tokens stay valid across all crashes.
package simtest
