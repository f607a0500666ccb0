// Package testenv gives tests real servers: Postgres, NATS and the project's own programs. It works on Linux. It mocks
// nothing and skips nothing: if a program is missing, the test fails and says what to install. Tests that need servers
// skip themselves under -short.
//
// [Postgres] returns a fresh database in one Postgres cluster that all tests of a process share. [NATS] starts a
// JetStream server inside the test process. Both allow t.Parallel. A test that holds transactions open, or crashes or
// reconfigures a server, starts its own: [NewCluster], [NATSProcess], [NATSCluster]. [Build] and [Start] run a command
// of this module as a process that can be killed, paused and waited for. [Run] makes all this available to programs
// that are not tests.
//
// LOCKSTEP_TEST_POSTGRES_BIN names the directory with the server programs to use. Without it they are those on the
// PATH, or Debian's. LOCKSTEP_TEST_POSTGRES_VERSION is the major version that the servers must have.
//
// All clusters have settings that make a careless client fail: the time zone is Asia/Kolkata, dates have the German
// style, bytea has the escape format, floats are rounded, and intervals have the style of the SQL standard.
//
// Nothing outlives the test process, not even after kill -9. A watchdog process reads from a pipe that the test process
// holds open. When the pipe ends, it kills everything that was started and removes the temporary files. No process runs
// before the watchdog knows its PID.
package testenv
