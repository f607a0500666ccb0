// Package testenv gives tests the real servers they run against: Postgres, NATS and the project's own programs, on
// Linux. Nothing is mocked and nothing is skipped: a missing program fails the test with what to install. Tests that
// need servers skip themselves under -short.
//
// [Postgres] gives a fresh database of one Postgres cluster that all tests of a process share; [NATS] a JetStream
// server inside the test process. Both allow t.Parallel. A test that holds transactions open, crashes or reconfigures
// a server takes one of its own: [NewCluster], [NATSProcess], [NATSCluster]. [Build] and [Start] run a command of this
// module as a process that can be killed, paused and waited for. [Run] offers all of it to programs that are not tests.
//
// LOCKSTEP_TEST_POSTGRES_BIN names a directory with the server programs to take; without it they are Debian's, or those
// on the PATH. LOCKSTEP_TEST_POSTGRES_VERSION is the major version that the servers must have.
//
// Shared and own clusters have settings that a careless client trips over: the time zone is Asia/Kolkata, dates are
// printed German style, bytea in the escape format, floats rounded, intervals the SQL standard's way.
//
// Nothing outlives the test process, not even after kill -9: a watchdog process holds the read end of a pipe, and at
// its end kills what was started and removes the temporary files. No process runs before the watchdog knows its PID.
package testenv
