package replay

import (
	"context"
	"errors"
	"sync"

	"bridge/internal/follow"
	"bridge/internal/stream"
)

// answer is what a stream's leader says of the stream at one moment, as far as
// requests need it.
type answer struct {
	info stream.Relation
	// first and last are the stream's sequences.
	first, last uint64
	epochs      stream.Epochs
	// end and high are follow.End's.
	end, high uint64
}

// place returns the stream's end.
func (a *answer) place() follow.Place { return follow.NewPlace(a.info, a.last, a.epochs) }

// leader asks a stream's leader for all who want an answer: any number of requests
// that come while it is being asked share the answer to the next question, which is
// asked after they came. So what many clients cost that come together does not grow
// with their number.
type leader struct {
	hub    *Hub
	layout stream.Layout

	mu sync.Mutex
	// Guarded by mu. next is the question that will be asked when the one under way is
	// answered; asking says that there is one.
	next   *question
	asking bool
}

// question is one question to a leader; answer and err are set when done is closed.
type question struct {
	done   chan struct{}
	answer answer
	err    error
}

// ask returns what the stream's leader says now, or later. The answer is shared, and
// must not be changed.
func (h *Hub) ask(ctx context.Context, l stream.Layout) (*answer, error) {
	h.mu.Lock()
	ld := h.leaders[l.Stream]
	if ld == nil {
		ld = &leader{hub: h, layout: l}
		h.leaders[l.Stream] = ld
	}
	ld.mu.Lock()
	q := ld.next
	if q == nil {
		q = &question{done: make(chan struct{})}
		ld.next = q
	}
	if !ld.asking {
		ld.asking = true
		go ld.run()
	}
	ld.mu.Unlock()
	h.mu.Unlock()
	select {
	case <-q.done:
		return &q.answer, q.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run asks as long as somebody wants an answer. Who gives up meanwhile does not end
// it: others may share the answer.
func (ld *leader) run() {
	for {
		ld.hub.mu.Lock()
		ld.mu.Lock()
		q := ld.next
		ld.next = nil
		if q == nil {
			ld.asking = false
			delete(ld.hub.leaders, ld.layout.Stream) // of a name that nobody asks for nothing is left
		}
		ld.mu.Unlock()
		ld.hub.mu.Unlock()
		if q == nil {
			return
		}
		q.answer, q.err = ld.hub.question(ld.layout)
		close(q.done)
	}
}

// question asks the stream's leader. Between its parts the stream may get further: then
// end is further than it had to be, which is safe, and epochs may have one more.
func (h *Hub) question(l stream.Layout) (answer, error) {
	ctx, cancel := h.untilLost(context.Background())
	defer cancel()
	var a answer
	var err error
	if a.info, a.first, a.last, err = h.lookup(ctx, l); err == nil {
		a.end, a.high, err = follow.End(ctx, h.nc, a.info.Layout, a.last)
	}
	if err == nil {
		a.epochs, err = follow.ReadEpochs(ctx, h.nc, a.info.Layout)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, ErrUnknownRelation) {
		err = cause
	}
	return a, err
}
