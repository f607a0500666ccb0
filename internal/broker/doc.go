// Package broker connects to NATS. Package embedded, below it, runs a NATS server inside the process.
//
// [Connect] makes connections that reconnect without end. While a connection is lost, publishing MUST fail immediately
// and keep nothing for later: a writer begins a new epoch after every reconnect, and no message of the old epoch may
// follow. [CheckServer] refuses servers that lose rows.
//
// The package logs every change of a connection's state once, and failed attempts to reconnect at most once a minute.
// Callers that must react to a change watch nats.Conn's StatusChanged. Logs and errors never contain what stands before
// the @ of a URL, nor the contents of a credentials file.
//
// The package knows nothing of what a connection is used for: streams and retries belong to the owner of the
// connection.
package broker
