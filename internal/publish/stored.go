package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
)

// mark is the sequence of a message that says up to which LSN the stream holds
// the WAL's changes, or which floor it has.
type mark struct{ seq, lsn, floor uint64 }

// mark remembers what the message just sent says. 0 means that it does not say it.
func (e *epoch) mark(lsn, floor uint64) {
	if lsn == 0 && floor <= e.storedFloor {
		return
	}
	e.marks = append(e.marks, mark{e.seq, lsn, floor})
	if len(e.marks) > maxMarks { // drop every other one, but keep the last
		kept := e.marks[:0]
		for i := 1; i < len(e.marks); i += 2 {
			kept = append(kept, e.marks[i])
		}
		e.marks = kept
	}
}

// maxMarks bounds the number of marks that are not known to be stored.
const maxMarks = 1024

// confirmed records that the stream holds everything sent up to seq.
func (e *epoch) confirmed(seq uint64) {
	e.stored = max(e.stored, seq)
	n := 0
	for n < len(e.marks) && e.marks[n].seq <= seq {
		e.storedLSN, e.storedFloor = max(e.storedLSN, e.marks[n].lsn), max(e.storedFloor, e.marks[n].floor)
		n++
	}
	e.marks = append(e.marks[:0], e.marks[n:]...)
	if e.unsettled != nil && e.stored >= e.seq {
		clear(e.unsettled)
		e.tracked = true
	}
}

// settled says whether everything sent for the subject is known to be stored.
func (e *epoch) settled(subject string) bool {
	_, sent := e.unsettled[subject]
	return e.tracked && !sent
}

// maxUnsettled bounds the number of remembered subjects. Beyond it every subject
// counts as unsettled.
const maxUnsettled = 100_000

// track remembers the subject of a row that is about to be sent, for settled. It
// does so only after the first Get, so a capture that never calls Get pays
// nothing.
func (e *epoch) track(subject string) {
	if !e.tracked {
		return
	}
	if len(e.unsettled) >= maxUnsettled {
		e.tracked = false
		return
	}
	e.unsettled[subject] = struct{}{}
}

// Get implements capture.Sink.
func (p *Publisher) Get(ctx context.Context, key [][]byte) (*capture.StoredRow, error) {
	subject, _ := p.layout.AppendRowSubject(nil, key)
	p.mu.Lock()
	e, err := p.current()
	wait := err == nil && !e.settled(string(subject))
	if wait && e.unsettled == nil {
		e.unsettled = make(map[string]struct{})
	}
	var sent uint64
	if err == nil {
		sent = e.seq
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if wait {
		if err := p.awaitStored(ctx, e, sent); err != nil {
			return nil, err
		}
	}
	ctx, end := p.whileConnected(ctx)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	msg, _, err := stream.Last(ctx, p.js, p.layout.Stream, string(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, orLost(ctx, fmt.Errorf("read row of stream %s: %w", p.layout.Stream, err))
	}
	r := e.storedRow(msg.Data, msg.Header)
	return &r, nil
}

// awaitStored waits until the stream holds everything sent up to seq.
func (p *Publisher) awaitStored(ctx context.Context, e *epoch, seq uint64) error {
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	return orLost(ctx, p.pollStored(ctx, e, seq))
}

func (p *Publisher) pollStored(ctx context.Context, e *epoch, seq uint64) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
		if err := e.fault(); err != nil {
			return err
		}
		step, cancel := context.WithTimeout(ctx, requestTimeout)
		s, err := p.js.Stream(step, p.layout.Stream)
		cancel()
		if err != nil {
			return fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
		}
		last := s.CachedInfo().State.LastSeq
		p.mu.Lock()
		e.confirmed(last)
		p.mu.Unlock()
		if last >= seq {
			return nil
		}
		pause.Reset(wait)
	}
}

// awaitWindow waits until the window before the current one is stored, and then
// begins the next. Flow control alone is not enough, because it counts messages,
// and the broker refuses a message when more than 128 MiB wait for one stream.
func (p *Publisher) awaitWindow(ctx context.Context, e *epoch) error {
	if err := p.awaitStored(ctx, e, e.windowSeq); err != nil { // only this goroutine writes windowSeq
		if ctx.Err() == nil {
			e.fail(err)
			err = e.fault()
		}
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e.windowSeq, e.unconfirmed = e.seq, 0
	return nil
}
