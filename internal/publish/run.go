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

// aliveAfter is the silence after which Run sends a message to keep the batch open.
// The server drops a batch after 10 s of silence.
const aliveAfter = 2500 * time.Millisecond

// Run takes care of the epoch until ctx ends. It renews the lease, keeps a quiet
// batch open, and asks the stream whether what was sent is stored. A fault that it
// finds ends the epoch, and the capture's next call returns it. Before Run
// returns, it closes the epoch and gives up the lease.
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

// look takes care of the epoch once. A fault ends the epoch that was looked at,
// even if another one has begun meanwhile.
func (p *Publisher) look(ctx context.Context, c *confirmer) {
	p.mu.Lock()
	e := p.epoch
	p.mu.Unlock()
	if e == nil || e.fault() != nil {
		return
	}
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	if err := orLost(ctx, p.lookAt(ctx, e, c)); err != nil {
		e.fail(err)
	}
}

func (p *Publisher) lookAt(ctx context.Context, e *epoch, c *confirmer) error {
	p.mu.Lock()
	if p.epoch != e {
		p.mu.Unlock()
		return nil
	}
	if time.Since(e.lastSent) > aliveAfter {
		if err := e.add(stream.NewAlive(p.layout), 0); err != nil {
			p.mu.Unlock()
			return err
		}
	}
	sent := e.seq
	p.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// Without mu, so that rows need not wait for the broker. lease.acquire does not
	// run at the same time: it runs only while there is no epoch or it has a fault.
	if err := p.lease.renew(ctx); err != nil {
		return err
	}
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

	epoch *epoch
	// stored is the highest sequence known to be stored. owed is a sequence that
	// is not known to be stored, and was already sent at the time since; 0 if
	// there is none.
	stored, owed uint64
	since        time.Time
}

// confirm makes one comparison. sent is the last sequence that had been sent
// before the stream was asked, last is the stream's last sequence.
func (c *confirmer) confirm(e *epoch, sent, last uint64, now time.Time) error {
	if c.epoch != e {
		*c = confirmer{within: c.within, epoch: e}
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
