// Package lockstep is the wire protocol between a lockstep server and its
// clients: the types, their encoding, and, in this comment, the normative
// specification. It imports nothing but the standard library.
//
// # Purpose
//
// A lockstep server streams the rows of one relation (a Postgres table or
// view) to a client over HTTP and keeps it up to date. The client's whole
// position is one number, since: a Postgres transaction ID. A client that
// comes back says the last since it saw and misses nothing.
//
// # Request
//
//	GET /{relation}?since=N HTTP/1.1
//	GET /{relation}/{N} HTTP/1.1
//
// relation is "table", in schema public, or "schema.table". since is a
// decimal integer from 0 to 2^64-1; none, or 0, asks for everything. Further
// parameters:
//
//	follow=0       end after the stream's state as it was at the request
//	format=flat    the older dialect, see below
//
// A server MUST ignore parameters it does not know. A request MUST NOT have a
// body.
//
// # Response
//
// The status is 200 and the transfer coding exactly "chunked". Each HTTP
// chunk holds exactly one JSON document and the newline that ends it, or the
// keep-alive. A server MUST NOT put two documents into one chunk nor one
// document into two: clients parse chunk by chunk. Many chunks may share one
// write to the socket.
//
// The keep-alive is a chunk of the two bytes CR LF. Clients skip it.
//
// # Rows
//
//	{"txid":549163,"current_xmin":551033,"since":549163,"deleted":false,"data":{"name":"mydomain.com","user_id":1}}
//
// txid is the 64-bit ID of the transaction that last wrote the row.
// current_xmin is the xmin of the snapshot under which it was read, or lower.
// since is min(txid, current_xmin). deleted is true for a row that no longer exists.
// data holds every column but the txid and deleted columns, as Postgres'
// to_json gives them with TimeZone UTC; of a deleted row it holds at least the
// key's columns. A value of type json is given as it was stored, but with
// blanks for line breaks between its tokens, so that a document is one line.
//
// A client MUST apply rows in the order in which they arrive, by key, and
// MUST NOT compare txids to decide which version is newer: a row may go from
// txid 10 to txid 9, where transaction 9 wrote it after transaction 10 had
// committed.
//
// A stream that keeps every change, and is filled from the write-ahead log, says
// more of each row: action is insert, update or delete, or read for a row that
// was found when the relation was read (at first, or after changes were lost).
// old, if the change had one, is the data of the row before it; where its key
// differs from that of data, the row under the old key is gone.
//
//	{"txid":9,"current_xmin":9,"since":9,"deleted":false,"action":"update","old":{"id":1,"v":"a"},"data":{"id":1,"v":"b"}}
//
// # Control rows
//
// A document with "control":true is not a row. A client MUST ignore control
// rows of a type it does not know.
//
//	{"control":true,"type":"snapshot_completed","timestamp":1700000000}
//	{"control":true,"type":"heartbeat","timestamp":1700000000,"since":551033,"cursor":"…"}
//	{"control":true,"type":"truncate","txid":549170,"since":549170}
//	{"control":true,"type":"oversize","txid":549170,"since":549170,"key":{"id":7},"bytes":1600000,"limit":1048576}
//
// snapshot_completed comes once per connection: what the relation held when
// the request came has been sent. No heartbeat comes before it.
//
// heartbeat comes after each batch of rows, and when nothing happened for the
// server's interval. After applying everything up to a heartbeat a client's
// state is that of the relation at one Postgres snapshot, where it is polled;
// where it is read from the write-ahead log, that of all transactions up to one,
// in the order of their commits. Its since is that snapshot's xmin, so that a client of a quiet
// relation moves forward too. Heartbeats come from the capture through the
// whole path; the HTTP server invents none. timestamp is in Unix seconds, of
// the capture. cursor is opaque: the exact place in the stream.
//
// truncate, in streams that keep every change, says that all rows were removed
// at once.
//
// oversize says that the current version of the row with that key is too
// large to be sent (bytes is the size of its document, limit the largest the
// broker takes). A client SHOULD treat what it holds for the key as out of
// date.
//
// # Resuming
//
// A client keeps the since of the last row or heartbeat it applied, and sends
// it in its next request. since is inclusive: rows with txid >= since are sent
// again. The promise: no row that is first sent after a place at which since
// S was shown is missing from what a request with since S answers.
//
// # Ends and cuts
//
// A request with follow=0 ends with snapshot_completed, the heartbeat that
// allowed it, and the final chunk. Every other end of a stream (the server
// drains, the client is too slow, an error) is a cut: the connection closes
// between two chunks without the final chunk, and the client asks again. A
// body that ends without the final chunk is a cut, never an end.
//
// # Refusals
//
// Before the first byte of a stream a request may be refused with a status and
// {"error":{"code":"…","message":"…"}}:
//
//	400 invalid_since        since is not one decimal integer below 2^64
//	400 invalid_request      a body, or a parameter the server knows with a value it does not
//	404 unknown_relation     there is no relation of that name
//	405 method_not_allowed   only GET and HEAD are served
//	409 since_ahead          since is above every position this source ever gave out
//	410 since_too_old        since is below the floor, which the error names: ask with since=0
//	500 internal             the server failed
//	503 not_ready            the broker or the capture is away; Retry-After says when to ask again
//	505 http_version         the request was not HTTP/1.1 or later
//
// # The flat dialect
//
// With format=flat a row is its own columns at the top level, with updated_at
// (the txid) and deleted_at (null, or the txid at which it was deleted).
// Columns of the relation with these two names are left out, and so are action
// and old: of an UPDATE that changes the key nothing tells that the row under
// the old one is gone. Control rows are as above.
//
//	{"updated_at":549163,"deleted_at":null,"name":"mydomain.com","user_id":1}
package lockstep
