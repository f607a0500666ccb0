package wal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// event is one message of the replication stream: a keepalive where msg is nil.
type event struct {
	msg pglogrepl.Message
	// lsn is the message's place in the WAL; a keepalive's says that every
	// commit before it was sent.
	lsn uint64
}

const (
	// inboxBytes and inboxEvents bound what was read and is not yet published.
	inboxBytes  = 4 << 20
	inboxEvents = 8192
	// statusEvery is how often Postgres hears of the confirmed position, also of
	// one that has not changed. It ends a connection that is silent for
	// wal_sender_timeout, by default a minute, and what it asks before is read
	// late where much stands before that.
	statusEvery = time.Second
)

// inbox hands events from the goroutine that reads the connection to the one
// that publishes. While it is full, Postgres waits, and still hears the status.
type inbox struct {
	// ready has room for one; the reader of the connection sends when there is
	// something to take, or the connection has ended.
	ready chan struct{}
	// room has room for one; who takes sends when the inbox was full.
	room chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	events []event
	bytes  int
	err    error
}

func newInbox() *inbox {
	return &inbox{ready: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put appends an event and says whether the inbox is full now.
func (b *inbox) put(e event, size int) (full bool) {
	b.mu.Lock()
	b.events = append(b.events, e)
	b.bytes += size
	full = b.bytes >= inboxBytes || len(b.events) >= inboxEvents
	b.mu.Unlock()
	signal(b.ready)
	return full
}

// take returns all events, and the error that ended the connection once they
// are all taken. It gives the slice of the last take back for reuse.
func (b *inbox) take(last []event) ([]event, error) {
	clear(last)
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events, b.bytes = last[:0], 0
	signal(b.room)
	if len(events) == 0 {
		return nil, b.err
	}
	if b.err != nil {
		signal(b.ready)
	}
	return events, nil
}

func (b *inbox) fail(err error) {
	b.mu.Lock()
	b.err = err
	b.mu.Unlock()
	signal(b.ready)
}

func (b *inbox) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes >= inboxBytes || len(b.events) >= inboxEvents
}

// signal sends on a channel with room for one, unless it is full.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// receiver reads the replication connection, and tells Postgres what is
// confirmed. Only its goroutine uses the connection.
type receiver struct {
	conn      *pgconn.PgConn
	inbox     *inbox
	confirmed func() uint64

	sentAt time.Time
}

// run receives until the connection or ctx ends.
func (r *receiver) run(ctx context.Context) {
	r.inbox.fail(r.receive(ctx))
}

func (r *receiver) receive(ctx context.Context) error {
	// A context per message would cost a goroutine each; deadlines do not.
	defer context.AfterFunc(ctx, func() { _ = r.conn.Conn().SetReadDeadline(time.Unix(1, 0)) })()
	for {
		if err := r.status(false); err != nil {
			return err
		}
		if err := r.conn.Conn().SetReadDeadline(time.Now().Add(statusEvery)); err != nil {
			return fmt.Errorf("read the WAL: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		full, err := r.read()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case full:
			if err := r.awaitRoom(ctx); err != nil {
				return err
			}
		}
	}
}

// errStream says that Postgres has ended the stream with an error.
var errStream = errors.New("read the WAL")

// read reads until the connection's deadline, or until the inbox is full.
func (r *receiver) read() (full bool, err error) {
	for {
		msg, err := r.conn.ReceiveMessage(context.Background())
		if err != nil {
			if pgconn.Timeout(err) {
				return false, nil
			}
			return false, fmt.Errorf("read the WAL: %w", err)
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			if full, err = r.data(msg.Data); full || err != nil {
				return full, err
			}
		case *pgproto3.ErrorResponse:
			return false, fmt.Errorf("%w: %w", errStream, pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.CopyDone:
			return false, errors.New("read the WAL: Postgres ended the stream")
		}
	}
}

// data takes what a CopyData message holds.
func (r *receiver) data(data []byte) (full bool, err error) {
	if len(data) == 0 {
		return false, errors.New("read the WAL: an empty message")
	}
	switch data[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return false, fmt.Errorf("read the WAL: %w", err)
		}
		if k.ReplyRequested {
			if err := r.status(true); err != nil {
				return false, err
			}
		}
		return r.inbox.put(event{lsn: uint64(k.ServerWALEnd)}, 0), nil
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return false, fmt.Errorf("read the WAL: %w", err)
		}
		msg, err := pglogrepl.Parse(x.WALData)
		if err != nil {
			return false, fmt.Errorf("read the WAL at %s: %w", x.WALStart, err)
		}
		if m, ok := msg.(*pglogrepl.LogicalDecodingMessage); ok {
			m.Content = append([]byte(nil), m.Content...) // all else is copied
		}
		return r.inbox.put(event{msg, uint64(x.WALStart)}, len(data)), nil
	}
	return false, nil
}

// awaitRoom waits until the inbox is no longer full.
func (r *receiver) awaitRoom(ctx context.Context) error {
	t := time.NewTicker(statusEvery)
	defer t.Stop()
	for r.inbox.full() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.inbox.room:
		case <-t.C:
			if err := r.status(true); err != nil {
				return err
			}
		}
	}
	return nil
}

// status tells Postgres what is confirmed, if it is time to, or now.
func (r *receiver) status(now bool) error {
	if !now && time.Since(r.sentAt) < statusEvery {
		return nil
	}
	r.sentAt = time.Now()
	// pglogrepl puts the written position in the place of a flushed one that is
	// 0: what is only received must never be confirmed.
	p := pglogrepl.LSN(r.confirmed())
	err := pglogrepl.SendStandbyStatusUpdate(context.Background(), r.conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: p, WALFlushPosition: p, WALApplyPosition: p})
	if err != nil {
		return fmt.Errorf("confirm the WAL: %w", err)
	}
	return nil
}
