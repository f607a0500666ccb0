package wal

import (
	"io"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// napAfter rounds within napWithin, 10,000 a second, are so many that pauses
	// between them are worth it.
	napAfter  = 32
	napWithin = napAfter * 100 * time.Microsecond
)

// pace makes a goroutine sleep for a moment between two rounds while much comes
// fast, so that it takes much at once. Postgres sends each change by itself: each
// would wake the goroutine that reads it, that which publishes it, and the
// broker, and under load that costs more than the work itself (measured, in CPU
// time of all processes for a transaction of one row that comes by a Unix socket:
// 80 µs where only who publishes pauses, and for a millisecond; 48 µs with both
// of those below).
type pace struct {
	// nap sleeps for a moment. It was worth it if it brought least; who takes most
	// has enough to do.
	nap         func()
	least, most int

	rounds  int
	since   time.Time
	napping bool
}

// rest is called when a round is over in which n were taken. It sleeps for a
// moment if the last rounds were quick, and then after each that was worth it.
func (p *pace) rest(n int) {
	p.rounds++
	switch {
	case p.napping && n < p.least:
		p.napping, p.rounds, p.since = false, 0, time.Now()
	case p.napping:
	case p.rounds < napAfter:
	default:
		p.napping = time.Since(p.since) < napWithin
		p.rounds, p.since = 0, time.Now()
	}
	if p.napping && n < p.most {
		p.nap()
	}
}

// publishNap is well below beatEvery, which clients' positions wait for anyway.
const publishNap = 3 * time.Millisecond

// publishPace is that of the goroutine that publishes; it counts events.
func publishPace() pace {
	return pace{nap: func() { time.Sleep(publishNap) }, least: 48, most: inboxEvents / 4}
}

const (
	// readBytes is how much is read from the connection at once, at most.
	readBytes = 64 << 10
	// readNap is short beside the time in which Postgres fills a Unix socket: it
	// holds some 200 small messages, which takes a millisecond or more.
	readNap = 200 * time.Microsecond
)

// pacedReader reads the replication connection for a buffer of readBytes. The
// kernel joins what Postgres sends by TCP; a Unix socket hands over message by
// message to who waits for them.
type pacedReader struct {
	r    io.Reader
	pace pace
	last int // bytes
}

func newPacedReader(r io.Reader) *pacedReader {
	// Go's timers may take a millisecond and more; this holds a thread for a moment.
	nap := func() {
		tv := unix.NsecToTimeval(readNap.Nanoseconds())
		_, _ = unix.Select(0, nil, nil, nil, &tv)
	}
	return &pacedReader{r: r, pace: pace{nap: nap, least: 1 << 10, most: readBytes / 2}}
}

func (p *pacedReader) Read(b []byte) (int, error) {
	p.pace.rest(p.last)
	n, err := p.r.Read(b)
	p.last = n
	return n, err
}
