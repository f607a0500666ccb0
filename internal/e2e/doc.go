// Package e2e tests the two programs from end to end: bridge and httpedge run as processes of their own, against real
// Postgres and NATS servers, and are killed, paused and cut. It has no code but its tests.
//
// The tests are grouped by subject, in files and in the names of the tests: poll_ (what polling captures), wal_ (what
// is read from the write-ahead log), outage_ (servers that crash, go away or are replaced), program_ (commands,
// settings, the embedded server) and edge_ (httpedge). harness_ files hold what they share.
package e2e
