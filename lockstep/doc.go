// Package lockstep is the wire protocol between a lockstep server and its
// clients: the types, their encoding, and, in this comment, the normative
// specification. It imports only the standard library.
//
// # Purpose
//
// A lockstep server streams the rows of one relation (a Postgres table or
// view) to a client over HTTP, and keeps the client up to date. The client's
// whole position is one number, since: a Postgres transaction ID. A client that
// comes back sends the last since it saw, and misses nothing.
//
// # Request
//
//	GET /{relation}?since=N HTTP/1.1
//	GET /{relation}/{N} HTTP/1.1
//
// relation is the name of a relation, see below, as one escaped segment of a path:
// a slash in it is %2F. A slash at the path's end changes nothing. since is a
// decimal integer from 0 to 2^64-1. A request without since, or with 0, asks for
// everything. There are more parameters:
//
//	cursor=C       go on after an exact place, see Positions; it may be empty
//	positions=N    show the position after every N rows
//	follow=0       end after the stream's state as it was at the request
//	limit=N        with follow=0: a page of at most N rows, 1 to 10000, see Pages
//	wait_for=T     with follow=0: wait until the answer shows transaction T
//	timeout=S      with wait_for: wait for up to S seconds, 1 to 300; else 10
//	format=flat    use the older, flat dialect, see below
//
// A server MUST ignore parameters it does not know. A request MUST NOT have a
// body.
//
// # Names
//
// A name stands for one relation at most:
//
//	table              a table of schema public; the name has no dot
//	schema.table       the first dot ends the schema's name; the table's may have more
//	."schema".table    a schema whose name has a dot; a quote in it is doubled
//
// Nothing else in a name is special: capitals, blanks and quotes stand for
// themselves. These names are reserved, and stand for no relation: healthz, readyz,
// metrics, _flat, _clients, _ticket. A table of schema public that is called so has
// the name public.healthz, and so on.
//
// A relation has one name that a server MUST show for it: the first form that can
// name it. A server accepts public.table for a relation of schema public, too.
// RelationName returns a relation's name, and ParseRelation a name's relation.
//
// # Response
//
// The status is 200 and the transfer coding is exactly "chunked". Each HTTP
// chunk is either the keep-alive, or exactly one JSON document with the newline
// that ends it. Clients parse chunk by chunk, so a server MUST NOT put two
// documents into one chunk, nor one document into two chunks. One write to the
// socket may hold many chunks.
//
// The keep-alive is a chunk of the two bytes CR LF. Clients skip it.
//
// A server MAY also speak HTTP/2. Then there are no chunks: the body has the same
// documents, one a line, and keep-alives as empty lines. Frames may end anywhere.
//
// A server MAY code the body with gzip or zstd, for a client that asks for that by name
// in Accept-Encoding. Content-Encoding then names the coding. Each HTTP chunk is then the
// beginning or the end of the coding, or holds one or more whole documents. A client can
// decode these once it has the chunk.
//
// The header Lockstep-Incarnation names the life of the stream, and Lockstep-Floor is
// the oldest since that it can honour. Both are of the time of the request.
//
// # Rows
//
//	{"txid":549163,"current_xmin":551033,"since":549163,"deleted":false,"data":{"name":"mydomain.com","user_id":1}}
//
// txid is the 64-bit ID of the transaction that last wrote the row.
// current_xmin is the xmin of the snapshot under which the row was read, or
// lower; see since of a heartbeat. since is min(txid, current_xmin). deleted is true if the row no longer
// exists.
//
// data holds the row's columns except the txid column and the deleted column, as
// Postgres' to_json gives them with TimeZone UTC. For a deleted row it holds at
// least the key columns. A value of type json is given as it was stored, but
// line breaks between its tokens become blanks, so that a document is one line.
//
// A client MUST apply rows by key, in the order in which they arrive. It MUST
// NOT compare txids to decide which version is newer. A row may go from txid 10
// to txid 9: then transaction 9 wrote it after transaction 10 had committed.
//
// Two keys are the same if, for each key column, the JSON in data is the same text.
// So 1.0 and 1.00 are two keys, also where Postgres calls them equal: if a row's
// key changes from one to the other, the row under the old key is deleted.
//
// # Events
//
// A stream that keeps every change and is filled from the write-ahead log holds
// events. Its rows have these members, too. What is not known is left out.
//
//	action        insert, update or delete; or read: the row was found when the
//	              relation was read, at first or after changes were lost
//	event         the ID of the change; a read row has none
//	committed_at  when its transaction was committed, by the clock of Postgres:
//	              RFC 3339 in UTC, with microseconds; a read row has none
//	old           the data of the row before the change
//	unchanged     the names of columns that data does not have
//
// An event's ID is timeline-commit-change-n, in lower-case hexadecimal digits of
// fixed width (8, 16, 16 and 4). timeline is the timeline of Postgres, commit the
// LSN of the commit, change the LSN of the change. n numbers the changes of a
// transaction that have the same LSN, such as the rows of one COPY, from 0. So
// events sorted by ID as text are in the order of commits, across all relations of
// a source. If a server sends a change again, it has the same ID. One change may
// give one document for each of several relations or keys; they share its ID.
//
// old has all columns where the replica identity of the table is FULL. Else an
// update has old only if it changed the key, and then old has the key alone. If the
// key in old differs from the key in data, the row under the old key is gone.
//
// unchanged names columns whose values the write-ahead log does not have in a usable
// form. Without a replica identity that is FULL, these are the large values that the
// update left as they were. Columns of a type that only the source can print are
// named there, too, also where they have changed; old does not have those columns.
//
//	{"txid":9,"current_xmin":9,"since":9,"deleted":false,"event":"00000001-000000000193a5d8-000000000193a558-0000","action":"update","committed_at":"2026-11-30T12:00:00.123456Z","old":{"id":1,"v":"a"},"data":{"id":1,"v":"b"}}
//
// # Control rows
//
// A document with "control":true is a control row, not a row of the relation. A
// client MUST ignore control rows of a type it does not know.
//
//	{"control":true,"type":"snapshot_completed","timestamp":1700000000}
//	{"control":true,"type":"heartbeat","timestamp":1700000000,"since":551033,"cursor":"…"}
//	{"control":true,"type":"truncate","txid":549170,"since":549170}
//	{"control":true,"type":"gap","since":549170,"reason":"…"}
//	{"control":true,"type":"oversize","txid":549170,"since":549170,"key":{"id":7},"bytes":1600000,"limit":1048576}
//	{"control":true,"type":"position","since":549170,"cursor":"…"}
//
// snapshot_completed comes once per connection. It says that everything was sent
// that the relation held when the request came. No heartbeat comes before it.
//
// heartbeat comes after each batch of rows. It also comes when nothing has
// happened for the server's interval. When a client has applied everything up to
// a heartbeat, its state is a state of the relation. If the relation is polled,
// that is its state at one Postgres snapshot. If it is read from the write-ahead
// log, that is its state after all transactions up to one of them, in the order
// of their commits. In a polled relation, this is true of changes that a poll
// can see: of those that left a new txid or a deleted mark. The heartbeat's since
// is the xmin of that snapshot, or of an earlier one: of the last that is known
// to be safely on Postgres' disk. So no crash of Postgres makes a since void that
// was shown. It is 0 while no such snapshot is known. A client of a quiet
// relation moves forward too. Heartbeats come from the capture through the whole
// path; the HTTP server makes none itself. timestamp is the capture's time in
// Unix seconds. cursor is the exact place in the stream, see Positions.
//
// truncate, in a stream that keeps every change, says that all rows were removed
// together. truncate and oversize have action, event and committed_at, as a row
// would have them there.
//
// gap, in a stream of events, says that changes may be missing between what comes
// before it and what comes after it; reason says why. Nothing is missing elsewhere,
// as long as the server keeps it. The rows of the relation follow, as read.
//
// oversize says that the current version of the row with that key is too large
// to be sent. bytes is the size of its document, limit the largest size that the
// broker accepts. Where the broker refused the row and its limit is not known,
// reason says what the broker answered, and there is no limit. A client SHOULD
// treat what it holds for the key as out of date.
//
// position comes only to a client that asked for it, see Positions.
//
// # Resuming
//
// A client keeps the since of the last row or heartbeat that it applied, and
// sends it in its next request. A since of 0 is no position. A client MUST
// forget all rows before it sends it. since is inclusive: rows with txid >= since are
// sent again. This is the promise: if since S was shown at some place in a
// stream, the answer to a request with since S has every row that is first sent
// after that place.
//
// # Positions
//
// A request with the parameter cursor, also an empty one, or with positions, asks for
// position control rows. They come after at most 1 MiB of rows, or one row that is
// larger, and with positions=N after every N rows. So a client that is cut in the middle
// of many rows goes on from there. A heartbeat shows the position, too.
//
// A client keeps the cursor of the last heartbeat or position together with the rows
// that came before it, and sends it in its next request. It is opaque. The answer has
// what comes after that place, without repeats; cursor wins over since. If the stream
// no longer has the place, the server goes by the since that is in the cursor: rows come
// again. If there is none in it, the server answers 410 cursor_gone. A client MUST then
// forget all rows. A cursor from before cursors had a version, of the form a.b.n, has
// none: the server goes by the since of the request. A client that has only such a
// cursor MUST forget all rows.
//
// A position is no state of the relation. A client may hold a part of a transaction
// there.
//
// # Pages
//
// With limit=N the answer is a page: it ends after N rows, with the final chunk. If there
// is more, the header Link names the request for the next page, as rel="next", with the
// cursor at which this page ends. Such a page may be kept for a minute, and has an ETag. A
// page without Link is the last. It ends as every answer to follow=0 does.
//
// # Reading one's own writes
//
// A program that wrote to Postgres may ask for wait_for=T, where T is
// pg_current_xact_id() of its transaction. The answer begins when the last heartbeat
// shows this transaction. So the answer has what it wrote. If that takes longer than
// timeout, the server answers 503 not_ready.
//
// # Ends and cuts
//
// The stream of a request with follow=0 ends with snapshot_completed, the
// heartbeat that allowed it, and the final chunk; a page that is not the last ends with
// the final chunk alone. Every other end of a stream is
// a cut: the server drains, the client is too slow, or there is an error. The
// connection then closes between two chunks, without the final chunk, and the
// client asks again. A body that ends without the final chunk is a cut, never an
// end. By HTTP/2 a cut is a reset of the stream, which may come within a document.
//
// # Refusals
//
// Before the first byte of a stream, a server may refuse the request with a
// status and {"error":{"code":"…","message":"…"}}:
//
//	400 invalid_since        since is not one decimal integer below 2^64
//	400 invalid_cursor       cursor is none that the server gave out
//	400 invalid_request      a body, or a parameter the server knows with a value it does not
//	404 unknown_relation     there is no relation of that name
//	405 method_not_allowed   only GET and HEAD are served
//	409 since_ahead          since is above every position this source ever gave out
//	410 since_too_old        since is below the floor, which the error names: ask with since=0
//	410 cursor_gone          the stream no longer has the cursor's place, and no since can take its: ask with since=0
//	500 internal             the server failed
//	503 not_ready            the broker or the capture is away, or wait_for took too long; Retry-After says when to ask again
//	503 too_many_clients     the server, or the client's address, has as many clients as it may have; Retry-After
//	505 http_version         the request was not HTTP/1.1 or later
//
// # The flat dialect
//
// With format=flat a row has its columns at the top level, after updated_at (the
// txid) and deleted_at (null, or the txid at which it was deleted). Columns of
// the relation with these two names are left out. So are the members of events: if
// an UPDATE changes the key, nothing says that the row under the old key is gone.
// Control rows are as above.
//
//	{"updated_at":549163,"deleted_at":null,"name":"mydomain.com","user_id":1}
package lockstep
