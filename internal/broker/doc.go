// Package broker connects to NATS; package embedded below it runs a server inside the process when there is no other.
//
// [Connect] makes connections that come back for ever and never hold anything back: while the connection is away,
// publishing MUST fail at once, because a writer begins a new epoch after every reconnect and nothing of the old one
// may follow. [CheckServer] refuses servers that lose rows.
//
// Every change of a connection's state is logged once here, and failing attempts to come back at most once a minute;
// callers watch nats.Conn's StatusChanged for what they have to do about it. Neither logs nor errors contain what was
// before the @ of a URL, or the contents of a credentials file.
//
// What a connection is used for, streams and retries included, is its owner's business.
package broker
