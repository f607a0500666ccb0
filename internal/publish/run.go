package publish

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
)

const (
	// aliveAfter is the silence after which Run sends a message to keep the batch
	// open. The server drops a batch after 10 s of silence. A heartbeat every 5 s
	// keeps it open, too.
	aliveAfter = 5500 * time.Millisecond
	// quietTicks is how many ticks pass between two looks at the stream while only
	// heartbeats are sent. If one of those is lost, the next does not fit and ends
	// the epoch. Without a look only a purge is not noticed.
	quietTicks = 10
)

// Run takes care of the epoch until ctx ends. It keeps a quiet batch open, and
// asks the stream whether what was sent is stored. A fault that it finds ends the
// epoch, and the capture's next call returns it. Before Run returns, it closes
// the epoch and gives up the lease.
func (p *Publisher) Run(ctx context.Context) error {
	lost := p.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer p.nc.RemoveStatusListener(lost)
	t := time.NewTicker(p.opt.Timing.Tick)
	defer t.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	if p.opt.Tombstones > 0 && !p.opt.Log {
		wg.Go(func() { p.keepTombstones(ctx) })
	}
	c := confirmer{within: p.opt.Timing.StoredWithin}
	for {
		select {
		case <-ctx.Done():
			p.end(ctx)
			p.lease.release(ctx)
			return ctx.Err()
		case <-lost:
			p.endIfCut()
		case <-t.C:
			p.look(ctx, &c)
		}
	}
}

// endIfCut ends the epoch if its connection was lost: messages in flight may be
// lost, so the batch is lost, too. An epoch that began after that goes on.
func (p *Publisher) endIfCut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch != nil && p.epoch.cut() {
		p.epoch.fail(errLost)
	}
}

// leaseLost ends the epoch, because another bridge has the lease.
func (p *Publisher) leaseLost() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch != nil {
		p.epoch.fail(errLeaseLost)
	}
}

// look takes care of the epoch once. A fault ends the epoch that was looked at,
// even if another one has begun meanwhile.
func (p *Publisher) look(ctx context.Context, c *confirmer) {
	p.mu.Lock()
	e := p.epoch
	if e == nil || e.fault() != nil {
		p.mu.Unlock()
		return
	}
	err := e.keepOpen()
	sent, due := e.seq, c.due(e)
	p.mu.Unlock()
	if err == nil && due {
		ctx, cancel := p.whileConnected(ctx)
		defer cancel()
		err = orLost(ctx, p.lookAt(ctx, e, sent, c))
	}
	if err != nil {
		e.fail(err)
	}
}

// lookAt asks what the stream holds. It does not hold mu meanwhile, so that rows
// need not wait for the broker.
func (p *Publisher) lookAt(ctx context.Context, e *epoch, sent uint64, c *confirmer) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	info := s.CachedInfo()
	p.metrics.streamMessages.Set(float64(info.State.Msgs))
	p.metrics.streamBytes.Set(float64(info.State.Bytes))
	meta, err := stream.ReadMeta(info.Config)
	if err != nil {
		return err
	}
	if meta.Incarnation != e.incarnation {
		return errors.New("the stream was replaced by another one of the same name")
	}
	if !p.layout.Log() && info.State.FirstSeq > e.epochs[len(e.epochs)-1].First {
		return errors.New("the stream was purged")
	}
	p.mu.Lock()
	e.confirmed(info.State.LastSeq)
	p.mu.Unlock()
	return c.confirm(e, sent, info.State.LastSeq, time.Now())
}

// confirmer compares what was sent with what the stream holds.
type confirmer struct {
	// within is how long the server may take to store a message.
	within time.Duration
	// quiet counts the ticks without a look at the stream. rows is epoch.rows as of
	// the last look.
	quiet int
	rows  uint64

	epoch *epoch
	// stored is the highest sequence known to be stored. owed is a sequence that
	// is not known to be stored, and was already sent at the time since; 0 if
	// there is none.
	stored, owed uint64
	since        time.Time
}

// due says whether the stream is to be asked now. The caller holds Publisher.mu.
func (c *confirmer) due(e *epoch) bool {
	quiet := c.epoch == e && c.rows == e.rows && c.owed == 0 && len(e.marks) == 0
	if quiet && c.quiet < quietTicks {
		c.quiet++
		return false
	}
	c.rows, c.quiet = e.rows, 0
	return true
}

// confirm makes one comparison. sent is the last sequence that had been sent
// before the stream was asked, last is the stream's last sequence.
func (c *confirmer) confirm(e *epoch, sent, last uint64, now time.Time) error {
	if c.epoch != e {
		*c = confirmer{within: c.within, rows: c.rows, quiet: c.quiet, epoch: e}
	}
	if last < c.stored {
		return fmt.Errorf("the broker lost stored messages: its last sequence was %d and is now %d", c.stored, last)
	}
	c.stored = last
	if c.owed != 0 && last < c.owed && now.Sub(c.since) > c.within {
		return fmt.Errorf("sequence %d was sent %s ago and is not stored; the stream ends at %d", c.owed, now.Sub(c.since).Round(time.Second), last)
	}
	if last >= c.owed {
		c.owed = 0
	}
	if c.owed == 0 && last < sent {
		c.owed, c.since = sent, now
	}
	return nil
}
