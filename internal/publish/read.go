package publish

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bridge/internal/capture"
	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
)

// Scan implements capture.Sink.
func (p *Publisher) Scan(ctx context.Context, row func(capture.StoredRow) error) error {
	e, last, err := p.sent()
	if err != nil {
		return err
	}
	// Before all of it is stored, a row could come twice: its old version, and
	// then the new one.
	if err := p.awaitStored(ctx, e, last); err != nil {
		return err
	}
	return p.read(ctx, e, 1, func(m follow.Message) (more bool, err error) {
		if m.Seq <= last && m.Kind == stream.KindRow {
			r := e.storedRow(m.Data, m.Header)
			if r.Key, err = p.key(m); err != nil {
				return false, err
			}
			if err := row(r); err != nil {
				return false, err
			}
		}
		return m.Seq < last, nil // last itself may be gone, replaced by a later message
	})
}

// storedRow returns what a row's message says. It does not set the key.
func (e *epoch) storedRow(line []byte, h nats.Header) (r capture.StoredRow) {
	var isRow, known bool
	r.Deleted, r.Data, isRow = lockstep.Parts(line)
	r.Txid, known = lockstep.Txid(line)
	if r.Oversize = known && !isRow; r.Oversize {
		limit, digest, _ := strings.Cut(h.Get(stream.DigestHeader), " ")
		// A broker that takes more than it did then may take the row now.
		if n, err := strconv.ParseInt(limit, 10, 64); err == nil && n >= e.sizes.Largest() {
			r.Digest = []byte(digest)
		}
	}
	return r
}

// sent returns the current epoch and the last sequence sent in it.
func (p *Publisher) sent() (*epoch, uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.current()
	if err != nil {
		return nil, 0, err
	}
	return e, e.seq, nil
}

// key returns the key of a row's message.
func (p *Publisher) key(m follow.Message) ([][]byte, error) {
	key, err := p.layout.Key(m.Subject, m.Header.Get(stream.KeyHeader))
	if err != nil {
		return nil, fmt.Errorf("read key of row %d: %w", m.Seq, err)
	}
	return key, nil
}

// read calls each for every message from the sequence from on, until each returns
// false. It waits for messages that were sent and are not stored yet; if the epoch
// ends meanwhile, it returns the fault.
func (p *Publisher) read(ctx context.Context, e *epoch, from uint64, each func(follow.Message) (more bool, err error)) error {
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	for {
		var err error
		from, err = p.readFrom(ctx, e, from, each)
		if !errors.Is(err, follow.ErrDropped) {
			return orLost(ctx, err)
		}
	}
}

// readFrom is read by one reader. It returns the sequence to go on from.
func (p *Publisher) readFrom(ctx context.Context, e *epoch, from uint64, each func(follow.Message) (more bool, err error)) (next uint64, err error) {
	r, err := follow.Open(ctx, p.js, p.layout, from)
	if err != nil {
		return from, err
	}
	defer r.Close()
	for more := true; more; {
		m, err := nextOf(ctx, r, e, 2*p.opt.Timing.StoredWithin)
		if err != nil {
			return from, err
		}
		if more, err = each(m); err != nil {
			return from, fmt.Errorf("read stream %s: %w", p.layout.Stream, err)
		}
		from = m.Seq + 1
	}
	return from, nil
}

// nextOf returns the reader's next message, or the epoch's fault. After a fault it
// must not wait: a message that was sent and lost never comes.
//
// within is how long it may wait. The stream has the message that is read for, or will
// have it soon, and a quiet batch gets messages that keep it open. But the broker may
// have put the consumer where the stream's copy lacks the end: on a server that lost
// its files and does not catch up. The next consumer may be elsewhere.
func nextOf(ctx context.Context, r *follow.Reader, e *epoch, within time.Duration) (follow.Message, error) {
	for begun := time.Now(); ; {
		step, cancel := context.WithTimeout(ctx, time.Second)
		m, err := r.Next(step)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return m, err
		}
		if err := e.fault(); err != nil {
			return follow.Message{}, err
		}
		if time.Since(begun) > within {
			return follow.Message{}, fmt.Errorf("the broker sent no message for %s", within)
		}
	}
}
