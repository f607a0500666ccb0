// Package e2e tests the two programs from end to end. Bridge and httpedge run as processes of their own, against real
// Postgres and NATS servers. The tests kill, pause and cut them. The package has no code but its tests.
//
// The first word of a file's name says what its tests are about:
//
//   - poll_: what the bridge captures by polling
//   - wal_: what the bridge captures from the write-ahead log
//   - outage_: servers and bridges that crash, go away or are replaced
//   - program_: commands, settings, metrics, the embedded server, both programs together
//   - edge_: httpedge alone
//   - nightly_: tests that take long (build tag nightly)
//   - harness_: no tests, but what they share
package e2e
