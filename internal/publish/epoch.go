package publish

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

const (
	// flowMessages and outstandingAcks bound what is in flight. The server
	// acknowledges every flowMessages messages (it allows 500 at most). The
	// client waits once outstandingAcks acknowledgements are missing.
	flowMessages    = 500
	outstandingAcks = 3
	// ackTimeout bounds that wait. It is below the 10 s of silence after which
	// the server drops a batch.
	ackTimeout = 4 * time.Second
	// windowBytes is the size of a window. When a window is full, the one before
	// it must be stored before more is sent. So at most two are in flight.
	windowBytes = 32 << 20
)

// epoch is one uninterrupted run of one writer. Publisher.mu guards all its
// fields except err.
type epoch struct {
	id          string
	incarnation string
	src         capture.Source
	epochs      stream.Epochs
	layout      stream.Layout
	sizes       stream.Sizes
	// fills says that the stream refuses messages when it is full, instead of
	// dropping its oldest.
	fills bool
	// nc is the connection, reconnects how often it had come back when the epoch
	// began.
	nc         *nats.Conn
	reconnects uint64

	fp jetstreamext.FastPublisher
	// seq is the sequence of the last message sent, high its HighHeader. lastSent is
	// when the batch last got a message.
	seq, high uint64
	lastSent  time.Time
	// rows counts the rows that were sent.
	rows uint64
	// windowSeq is the last sequence of the window before this one. unconfirmed
	// counts the bytes sent after it.
	windowSeq   uint64
	unconfirmed int

	// stored is the highest sequence known to be stored. marks are later
	// messages that say how far in the WAL the stream has come. storedLSN is the
	// LSN of the last stored mark.
	stored, storedLSN uint64
	marks             []mark
	// floor is the stream's floor, storedFloor the highest that a stored fence or
	// heartbeat has.
	floor, storedFloor uint64
	// unsettled holds, while tracked is set, the subjects of the rows that were
	// sent since everything sent was last known to be stored. It is nil before
	// the first Get.
	unsettled map[string]struct{}
	tracked   bool

	// schema is the last one stored. schemaAt says when that was, schemaBytes
	// how much was sent since. In a log the schema must not expire.
	schema      []byte
	schemaAt    time.Time
	schemaBytes int64

	// row is the message of a row. It is reused for each, because publishing
	// copies it.
	row     nats.Msg
	subject []byte
	keyText []byte
	// expected, highText, key and event are the values of row's headers.
	expected, highText, key, event [1]string

	// err is the first fault, and is set once. The fault is seen by a method, by
	// Run, or by the batch's error handler. That handler runs on a goroutine of
	// nats.go which holds the batch's lock, so it must not wait for mu.
	err atomic.Pointer[error]
	// ended is closed with the first fault.
	ended chan struct{}
	// refused says that the broker refused a message of the batch, perhaps because
	// of the message itself.
	refused atomic.Bool
}

func newEpoch(nc *nats.Conn, js jetstream.JetStream, l stream.Layout) (*epoch, error) {
	e := &epoch{nc: nc, reconnects: nc.Stats().Reconnects, layout: l, lastSent: time.Now(), ended: make(chan struct{})}
	var err error
	e.fp, err = jetstreamext.NewFastPublisher(js,
		jetstreamext.FastPublishFlowControl{Flow: flowMessages, MaxOutstandingAcks: outstandingAcks, AckTimeout: ackTimeout},
		jetstreamext.WithFastPublisherErrorHandler(e.batchFailed))
	if err != nil {
		return nil, fmt.Errorf("open batch: %w", err)
	}
	return e, nil
}

// fail ends the epoch; only the first fault counts. After the connection was lost
// there are many, with misleading words.
func (e *epoch) fail(err error) {
	if e.cut() {
		err = errLost
	}
	err = fmt.Errorf("%w: %w", ErrFault, err)
	if e.err.CompareAndSwap(nil, &err) {
		close(e.ended)
	}
}

// fault returns what ended the epoch, or nil while it goes on.
func (e *epoch) fault() error {
	if err := e.err.Load(); err != nil {
		return *err
	}
	return nil
}

// add sends a control message. high raises the stream's High, if it is higher.
func (e *epoch) add(msg *nats.Msg, high uint64) error {
	return e.addMsg(e.control(msg, high))
}

// control completes the headers of a control message.
func (e *epoch) control(msg *nats.Msg, high uint64) *nats.Msg {
	e.high, e.highText[0] = max(e.high, high), ""
	msg.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(e.seq, 10)}
	msg.Header[stream.HighHeader] = []string{strconv.FormatUint(e.high, 10)}
	return msg
}

// keepOpen sends a message into a batch that had none for long.
func (e *epoch) keepOpen() error {
	if time.Since(e.lastSent) <= aliveAfter {
		return nil
	}
	return e.add(stream.NewAlive(e.layout), 0)
}

// tooLargeError says that a message breaks a limit: that of its data, or, if limit
// is less than 0, that of its headers. by says what sets the limit.
type tooLargeError struct {
	bytes, limit int64
	by           string
}

func (t *tooLargeError) Error() string {
	return fmt.Sprintf("message of %d bytes is too large, the broker takes %d (%s)", t.bytes, t.limit, t.by)
}

// prepare makes row the message of line, the document of c or the oversize control
// row that replaces it. If the message breaks a limit, it returns a *tooLargeError.
func (e *epoch) prepare(c capture.Change, line []byte) error {
	var needsKey bool
	e.subject, needsKey = e.layout.AppendRowSubject(append(e.subject[:0], stream.IngestMark), c.Key)
	if e.row.Header == nil {
		e.row.Header = nats.Header{jetstream.ExpectedLastSeqHeader: e.expected[:], stream.HighHeader: e.highText[:]}
	}
	if needsKey {
		e.keyText = stream.AppendKey(e.keyText[:0], c.Key)
		e.key[0] = string(e.keyText)
		e.row.Header[stream.KeyHeader] = e.key[:]
	} else {
		delete(e.row.Header, stream.KeyHeader)
	}
	e.setEvent(c.Event)
	if e.highText[0] == "" || c.High > e.high {
		e.high = max(e.high, c.High)
		e.highText[0] = strconv.FormatUint(e.high, 10)
	}
	e.expected[0] = strconv.FormatUint(e.seq, 10)
	e.row.Subject = string(e.subject)
	e.row.Data = line
	stored := e.row.Subject[1:]
	if room, by := e.sizes.Room(stored, e.row.Header); int64(len(line)) > room {
		return &tooLargeError{bytes: int64(len(line)), limit: room, by: by}
	}
	e.track(stored)
	e.rows++
	return nil
}

// setEvent gives row the header that says which change it comes from, or none. Rows with
// one follow each other, and the map is written only where that changes.
func (e *epoch) setEvent(text []byte) {
	if e.layout.Log() { // its documents say it
		return
	}
	switch had := e.event[0] != ""; {
	case !had && len(text) > 0:
		e.row.Header[stream.EventHeader] = e.event[:]
	case had && len(text) == 0:
		delete(e.row.Header, stream.EventHeader)
	}
	e.event[0] = string(text)
}

// addMsg sends a message into the batch.
func (e *epoch) addMsg(msg *nats.Msg) error {
	if e.seq == math.MaxUint64 {
		panic("publish: I6 violated: the stream has no sequence left")
	}
	if _, err := e.fp.AddMsg(msg); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	e.lastSent = time.Now()
	e.count(msg)
	return nil
}

// count records that a message was sent.
func (e *epoch) count(msg *nats.Msg) {
	e.seq++
	e.schemaBytes += int64(len(msg.Data))
	e.unconfirmed += len(msg.Data)
}

func (e *epoch) addSchema(schema []byte) error {
	if err := e.add(stream.NewSchema(e.layout, schema), 0); err != nil {
		return err
	}
	e.schema, e.schemaAt, e.schemaBytes = schema, e.lastSent, 0
	return nil
}

// keepSchema sends the schema again, long before a log lets it expire.
func (e *epoch) keepSchema(set stream.Settings) error {
	old := set.MaxAge > 0 && time.Since(e.schemaAt) > set.MaxAge/4 ||
		set.MaxBytes > 0 && e.schemaBytes > set.MaxBytes/4
	if e.schema == nil || !e.layout.Log() || !old {
		return nil
	}
	return e.addSchema(e.schema)
}

// close ends the batch. Otherwise the server would keep it until its timeout,
// and would not give the next batch its full flow immediately.
func (e *epoch) close(ctx context.Context) {
	e.fail(errNoEpoch)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	// The result does not matter: the next Begin asks the stream itself.
	_, _ = e.fp.Close(ctx)
}
