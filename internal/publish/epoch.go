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
	// flowMessages and outstandingAcks bound what is in flight: the server
	// acknowledges every flowMessages (500 is its most), and the client waits
	// once that many acknowledgements are owed.
	flowMessages    = 500
	outstandingAcks = 3
	// ackTimeout bounds that wait; it is below the server's 10 s after which a
	// silent batch is dropped.
	ackTimeout = 4 * time.Second
	// windowBytes is how much is sent before what was sent before that must be
	// stored; twice as much is in flight at most.
	windowBytes = 32 << 20
)

// epoch is one writer's run. Its fields but err are guarded by
// Publisher.mu.
type epoch struct {
	id          string
	incarnation string
	src         capture.Source
	epochs      stream.Epochs
	layout      stream.Layout
	maxPayload  int64

	fp jetstreamext.FastPublisher
	// seq is the sequence of the last message sent, high its HighHeader.
	seq, high uint64
	lastSent  time.Time
	// windowSeq is the sequence that must be stored before more than
	// windowBytes are sent behind it; unconfirmed counts them.
	windowSeq   uint64
	unconfirmed int

	// stored is the highest sequence known to be stored, marks are those behind
	// it that say how far in the WAL the stream has come, and storedLSN is what
	// the last mark that is stored says.
	stored, storedLSN uint64
	marks             []mark
	// unsettled are the subjects of rows sent since everything sent was known
	// to be stored, while tracked is set; nil before the first Get.
	unsettled map[string]struct{}
	tracked   bool

	// schema is the last one stored; schemaAt and schemaBytes say when, and
	// how much was sent since. A log must not let it expire.
	schema      []byte
	schemaAt    time.Time
	schemaBytes int64

	// The row's message, used again for each: publishing copies it.
	row     nats.Msg
	subject []byte
	keyText []byte
	// expected and highText are the values of the headers of row.
	expected, highText, key [1]string

	// err is set once, by whoever sees the first fault: a method, Run, or the
	// batch's error handler, which runs on a goroutine of nats.go that holds
	// the batch's lock.
	err atomic.Pointer[error]
}

func newEpoch(js jetstream.JetStream, l stream.Layout, maxPayload int64) (*epoch, error) {
	e := &epoch{layout: l, maxPayload: maxPayload, lastSent: time.Now()}
	var err error
	e.fp, err = jetstreamext.NewFastPublisher(js,
		jetstreamext.FastPublishFlowControl{Flow: flowMessages, MaxOutstandingAcks: outstandingAcks, AckTimeout: ackTimeout},
		jetstreamext.WithFastPublisherErrorHandler(e.fail))
	if err != nil {
		return nil, fmt.Errorf("open batch: %w", err)
	}
	return e, nil
}

// fail ends the epoch; only the first fault counts.
func (e *epoch) fail(err error) {
	err = fmt.Errorf("%w: %w", ErrFault, err)
	e.err.CompareAndSwap(nil, &err)
}

// fault returns what ended the epoch, nil while it goes on.
func (e *epoch) fault() error {
	if err := e.err.Load(); err != nil {
		return *err
	}
	return nil
}

// add sends a control message. high raises the stream's, 0 leaves it.
func (e *epoch) add(msg *nats.Msg, high uint64) error {
	e.high, e.highText[0] = max(e.high, high), ""
	msg.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(e.seq, 10)}
	msg.Header[stream.HighHeader] = []string{strconv.FormatUint(e.high, 10)}
	return e.addMsg(msg)
}

type tooLargeError struct{ bytes, limit int64 }

func (t *tooLargeError) Error() string {
	return fmt.Sprintf("a message of %d bytes, the broker takes %d", t.bytes, t.limit)
}

// headerRoom bounds the headers of a row without its key: both names, two
// numbers of 20 digits, and what frames them.
const headerRoom = 160

// addRow sends a row, or the control row in its place. It returns a
// *tooLargeError, and sends nothing, where the broker would refuse it.
func (e *epoch) addRow(c capture.Change, line []byte) error {
	var needsKey bool
	e.subject, needsKey = e.layout.AppendRowSubject(e.subject[:0], c.Key)
	if e.row.Header == nil {
		e.row.Header = nats.Header{jetstream.ExpectedLastSeqHeader: e.expected[:], stream.HighHeader: e.highText[:]}
	}
	size := int64(len(line) + headerRoom)
	if needsKey {
		e.keyText = stream.AppendKey(e.keyText[:0], c.Key)
		e.key[0] = string(e.keyText)
		e.row.Header[stream.KeyHeader] = e.key[:]
		size += int64(len(e.keyText) + len(stream.KeyHeader))
	} else {
		delete(e.row.Header, stream.KeyHeader)
	}
	if size > e.maxPayload {
		return &tooLargeError{bytes: int64(len(line)), limit: max(0, e.maxPayload-size+int64(len(line)))}
	}
	if e.highText[0] == "" || c.High > e.high {
		e.high = max(e.high, c.High)
		e.highText[0] = strconv.FormatUint(e.high, 10)
	}
	e.expected[0] = strconv.FormatUint(e.seq, 10)
	e.row.Subject = string(e.subject)
	e.row.Data = line
	e.track(e.row.Subject)
	return e.addMsg(&e.row)
}

func (e *epoch) addMsg(msg *nats.Msg) error {
	if e.seq == math.MaxUint64 {
		panic("publish: I6 violated: a stream without a sequence left")
	}
	if _, err := e.fp.AddMsg(msg); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	e.seq++
	e.lastSent = time.Now()
	e.schemaBytes += int64(len(msg.Data))
	e.unconfirmed += len(msg.Data)
	return nil
}

// addSchema sends the relation's columns.
func (e *epoch) addSchema(schema []byte) error {
	if err := e.add(stream.NewSchema(e.layout, schema), 0); err != nil {
		return err
	}
	e.schema, e.schemaAt, e.schemaBytes = schema, e.lastSent, 0
	return nil
}

// keepSchema sends the schema again well before a log lets it expire.
func (e *epoch) keepSchema(lim stream.Limits) error {
	old := lim.MaxAge > 0 && time.Since(e.schemaAt) > lim.MaxAge/4 ||
		lim.MaxBytes > 0 && e.schemaBytes > lim.MaxBytes/4
	if e.schema == nil || !e.layout.Log() || !old {
		return nil
	}
	return e.addSchema(e.schema)
}

// close ends the batch, so that the server need not wait for its time-out and
// gives the next one its full flow at once.
func (e *epoch) close(ctx context.Context) {
	e.fail(errNoEpoch)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	// What it returns changes nothing: the next Begin asks the stream itself.
	_, _ = e.fp.Close(ctx)
}
