package replay

import (
	"context"
	"errors"

	"bridge/internal/follow"
	"bridge/internal/stream"
)

// answer is what a stream's leader says of the stream at one moment, as far as
// requests need it.
type answer struct {
	follow.Info
	epochs stream.Epochs
	// heartbeat is the last one, nil for none, and high its High.
	heartbeat *follow.Stored
	high      uint64
	// end is follow.End's.
	end uint64
}

// place returns the stream's end.
func (a *answer) place() follow.Place { return follow.NewPlace(a.Relation, a.Last, a.epochs) }

// highest returns the stream's High at that moment, or one that is lower. Deletes below
// the floor are gone for good, so none is asked for.
func (a *answer) highest() uint64 { return max(a.high, a.Meta.Floor) }

// holds returns nil if the stream holds the place, else an error that wraps
// follow.ErrReset.
func (a *answer) holds(p follow.Place) error {
	return p.Held(a.Meta.Incarnation, a.epochs, a.Last)
}

// question is one question to a stream's leader; answer and err are set when done is
// closed.
type question struct {
	done   chan struct{}
	answer answer
	err    error
}

// ask returns what the stream's leader says now, or later. Any number of requests that
// come while it is being asked share the answer to the next question, which is asked
// after they came. So what many clients cost that come together does not grow with
// their number. The answer must not be changed.
func (h *Hub) ask(ctx context.Context, l stream.Layout) (*answer, error) {
	h.mu.Lock()
	q, asking := h.questions[l.Stream]
	if q == nil {
		q = &question{done: make(chan struct{})}
		h.questions[l.Stream] = q
	}
	if !asking {
		go h.askAll(l)
	}
	h.mu.Unlock()
	select {
	case <-q.done:
		return &q.answer, q.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// askAll asks as long as somebody wants an answer. Who gives up meanwhile does not end
// it: others may share the answer.
func (h *Hub) askAll(l stream.Layout) {
	for {
		h.mu.Lock()
		q := h.questions[l.Stream]
		if q == nil {
			delete(h.questions, l.Stream)
			h.mu.Unlock()
			return
		}
		h.questions[l.Stream] = nil
		h.mu.Unlock()
		q.answer, q.err = h.question(l)
		close(q.done)
	}
}

// question asks the stream's leader. Between its parts the stream may get further: then
// end is further than it had to be, which is safe, and epochs may have one more.
func (h *Hub) question(l stream.Layout) (answer, error) {
	ctx, cancel := h.untilLost(context.Background())
	defer cancel()
	a, err := h.questionParts(ctx, l)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, ErrUnknownRelation) {
		err = cause
	}
	return a, err
}

func (h *Hub) questionParts(ctx context.Context, l stream.Layout) (a answer, err error) {
	if a.Info, err = h.lookup(ctx, l); err != nil {
		return a, err
	}
	marks, err := follow.ReadMarks(ctx, h.js, a.Layout)
	if err != nil {
		return a, err
	}
	if a.epochs, err = marks.Epochs(); err != nil {
		return a, err
	}
	if a.heartbeat = marks.Heartbeat; a.heartbeat != nil {
		if a.high, err = stream.High(a.heartbeat.Header); err != nil {
			return a, err
		}
	}
	a.end, err = follow.EndAfter(ctx, h.js, a.Layout, a.Last, a.heartbeat)
	return a, err
}
