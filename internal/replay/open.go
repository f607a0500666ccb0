package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Request is what a client asks for.
type Request struct {
	Schema, Table string
	// Since is the position to resume from, 0 for everything.
	Since uint64
	// Cursor is the place to resume from, zero for none. If the stream no longer has it, the
	// since in it takes its place; that of an old cursor is the one above.
	Cursor lockstep.Cursor
	// Follow is false for a client that wants the state and then the end.
	Follow bool
	// Shown, if not 0, is a transaction that the answer must show: Open waits for that, for
	// up to ShownWithin.
	Shown       uint64
	ShownWithin time.Duration
}

// Open finds where to start for a request. It returns ErrUnknownRelation, a
// *TooOldError, ErrCursorGone, ErrSinceAhead, or, after Options.Wait, an error that wraps
// ErrNotReady. The caller closes the reader.
func (h *Hub) Open(ctx context.Context, req Request) (*Reader, error) {
	if req.Shown != 0 {
		if err := h.awaitShown(ctx, req); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, h.opt.Wait)
	defer cancel()
	for {
		r, err := h.open(ctx, req)
		var tooOld *TooOldError
		switch {
		case err == nil, errors.Is(err, ErrUnknownRelation), errors.Is(err, ErrSinceAhead), errors.Is(err, ErrCursorGone), errors.As(err, &tooOld),
			errors.Is(err, stream.ErrLayout):
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (h *Hub) open(ctx context.Context, req Request) (*Reader, error) {
	lost := h.reconnected()
	ctx, cancel := h.untilLost(ctx)
	defer cancel()
	l := stream.NewLayout(h.opt.Prefix, req.Schema, req.Table, false)
	now, err := h.current(ctx, l)
	if err != nil {
		return nil, err
	}
	info, last := now.Relation, now.Last
	if info.Meta.Schema != req.Schema || info.Meta.Table != req.Table {
		return nil, ErrUnknownRelation
	}
	if req.Cursor != (lockstep.Cursor{}) {
		place := cursorPlace(info, req.Cursor)
		switch held := !req.Cursor.Old && now.holds(place) == nil && req.Cursor.Holds >= info.Meta.Floor; {
		case held && info.Meta.Log && place.Seq+1 < now.First:
			return nil, fmt.Errorf("%w: the log begins at %d", ErrCursorGone, now.First)
		case held:
			return h.resume(now, req)
		case !req.Cursor.Old && req.Cursor.Since == 0:
			return nil, fmt.Errorf("%w: and there is no since in it", ErrCursorGone)
		case !req.Cursor.Old:
			req.Since = req.Cursor.Since
		}
	}
	if req.Since != 0 && req.Since < info.Meta.Floor {
		return nil, &TooOldError{Floor: info.Meta.Floor}
	}
	begun, epochs := time.Now(), now.epochs
	start, err := h.search(ctx, now, req.Since)
	if err != nil {
		return nil, err
	}
	h.metrics.starts.Inc()
	h.metrics.search.Observe(time.Since(begun).Seconds())
	if req.Since != 0 {
		// What was found must be of the stream that is there now; else the client
		// would begin in one and go on in another.
		after, err := h.current(ctx, l)
		if err != nil {
			return nil, err
		}
		if err := after.holds(now.place()); err != nil {
			return nil, fmt.Errorf("look for the place to start: %w", err)
		}
		epochs = after.epochs
	}
	if isClosed(lost) {
		return nil, errLost
	}
	end := now.end
	if req.Since != 0 {
		end = max(end, h.trusted(info, epochs, last))
	}
	at := state{next: max(1, start), seek: req.Since, hold: max(1, end), holds: req.Since}
	// From the start there is no row in front of the client whose delete is
	// older than the stream's end is now.
	if req.Since == 0 {
		at.holds = now.highest()
	}
	return h.newReader(now, epochs, req, at)
}

// newReader returns the reader of a request that starts with the state. now is what the
// stream's leader said when that was chosen, and epochs is what the stream's are.
func (h *Hub) newReader(now *answer, epochs stream.Epochs, req Request, at state) (*Reader, error) {
	// A tail that has to be started reads from the client's place on where that is near,
	// else from what the client needs to be complete.
	from := now.end
	if now.Last-min(at.next, now.Last) < nearTail {
		from = at.next
	}
	rel, err := h.join(now, epochs, max(1, from))
	if err != nil {
		return nil, err
	}
	return &Reader{
		hub: h, relation: rel, follow: req.Follow, incomplete: h.opt.Wait, end: now.Last, floor: now.Meta.Floor, lastData: time.Now(), at: at,
	}, nil
}

// cursorPlace returns the place of a cursor in the stream. It is no place of a stream
// with another incarnation.
func cursorPlace(info stream.Relation, c lockstep.Cursor) follow.Place {
	p := follow.NewPlace(info, c.Seq, stream.Epochs{{ID: c.Epoch}})
	p.Incarnation = c.Incarnation
	return p
}

// resume returns a reader that goes on after the cursor of the request, which the stream
// holds. The client has everything up to there, as far as there was no successor.
func (h *Hub) resume(now *answer, req Request) (*Reader, error) {
	end := max(now.end, h.trusted(now.Relation, now.epochs, now.Last))
	at := state{next: req.Cursor.Seq + 1, hold: max(1, end), holds: req.Cursor.Holds}
	if !req.Follow && req.Cursor.Seq >= end {
		at.next = end // a heartbeat that stands for all it has: it need not wait for another
	}
	return h.newReader(now, now.epochs, req, at)
}

// awaitShown waits until the relation's last heartbeat shows the transaction.
func (h *Hub) awaitShown(ctx context.Context, req Request) error {
	ctx, cancel := context.WithTimeout(ctx, req.ShownWithin)
	defer cancel()
	l := stream.NewLayout(h.opt.Prefix, req.Schema, req.Table, false)
	err := h.awaitHeartbeat(ctx, l, func(now *answer) (bool, error) {
		return stream.Shows(now.heartbeat.Header, now.heartbeat.Data, req.Shown)
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: transaction %d", ErrNotShown, req.Shown)
	}
	return err
}

// awaitHeartbeat waits until the relation's last heartbeat is enough. All who wait share
// the questions. It returns an error if there is no such relation, or ctx ends.
func (h *Hub) awaitHeartbeat(ctx context.Context, l stream.Layout, enough func(*answer) (bool, error)) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		now, err := h.ask(ctx, l)
		if err == nil && now.heartbeat != nil {
			var yes bool
			if yes, err = enough(now); yes {
				return nil
			}
		}
		if errors.Is(err, ErrUnknownRelation) || errors.Is(err, stream.ErrLayout) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// current returns what the stream's leader says, after it has made sure that what was
// read and promised is of the same stream. If it is not, that is remembered, and the
// relation is over.
func (h *Hub) current(ctx context.Context, l stream.Layout) (*answer, error) {
	r := h.running(l)
	if r == nil {
		return h.ask(ctx, l)
	}
	known := r.known() // before the question
	now, err := h.ask(ctx, l)
	if err != nil {
		return nil, err
	}
	if err := r.check(now, known); err != nil {
		r.end(err)
		if known.Incarnation == now.Meta.Incarnation {
			return nil, err
		}
	}
	return now, nil
}

// check returns an error that wraps follow.ErrReset if the stream is not the one that was
// read up to the place.
func (h *Hub) check(now *answer, p follow.Place) error {
	err := now.holds(p)
	if err != nil {
		h.noteSetBack(now.Relation, now.place(), err)
	}
	return err
}

// noteSetBack remembers where a stream ends that does not hold what was read of
// it. Its last heartbeat may be of a past that clients of this edge are ahead of:
// who resumes is shown none before the bridge has written again.
func (h *Hub) noteSetBack(info stream.Relation, end follow.Place, err error) {
	h.mu.Lock()
	known := h.setBack[info.Layout.Stream]
	h.setBack[info.Layout.Stream] = end
	h.mu.Unlock()
	if known.Incarnation == end.Incarnation && known.Epoch == end.Epoch { // all its clients find it
		return
	}
	h.log.Warn().Err(err).Str("stream", info.Layout.Stream).Uint64("seq", end.Seq).
		Msg("the stream was replaced; clients that resume get heartbeats again when the bridge has written to it")
}

// trusted returns the sequence from which on heartbeats hold for a client that
// resumes in a stream that ended at last when it came. What stands behind that
// was written later, so no client waits longer than for the next heartbeat.
func (h *Hub) trusted(info stream.Relation, epochs stream.Epochs, last uint64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	end, ok := h.setBack[info.Layout.Stream]
	switch {
	case !ok:
		return 0
	case end.Held(info.Meta.Incarnation, epochs, max(last, end.Seq)) != nil: // it is another by now
		delete(h.setBack, info.Layout.Stream)
		return 0
	}
	return min(end.Seq, last) + 1
}

// nearTail is how many messages behind the stream's end a client may be for
// the tail to begin with it.
const nearTail = 5000

// nearPlace is how far a search may stop before the place: a reader passes over the rest
// without the broker.
const nearPlace = 512

// search returns the first sequence whose High is at least since, or one that is near
// before it: every place at which since was ever shown is there or after it, and
// everything before has a lower txid (I3). It begins with what blocks show, and halves the
// rest by single gets, which stay fast on a stream of any number of subjects.
func (h *Hub) search(ctx context.Context, now *answer, since uint64) (uint64, error) {
	first := max(1, now.First)
	if since == 0 {
		if now.Meta.Log {
			return first, nil
		}
		return 1, nil
	}
	get := func(ctx context.Context, seq uint64) (*follow.Stored, error) { return h.get(ctx, now, seq) }
	// The last message may be gone by now, and with it the only one with such a High.
	lo, hi := first, now.Last+1
	if r := h.running(now.Layout); r != nil && r.info.Meta.Incarnation == now.Meta.Incarnation {
		lo, hi = r.bracket(since, lo, hi)
	}
	within := uint64(nearPlace)
	if since > now.high || now.Meta.Log && lo == first {
		within = 0 // whether there is such a place must be known, or whether all of it is there
	}
	lo, found, err := follow.FirstHigh(ctx, get, since, lo, hi, within)
	if err != nil {
		return 0, fmt.Errorf("search stream %s: %w", now.Layout.Stream, err)
	}
	if since > now.high && !found && hi > now.Last {
		return lo, h.awaitHigh(ctx, now.Layout, since, now.Last)
	}
	if now.Meta.Log && lo == first && first > 1 {
		return 0, h.expired(ctx, now.Stream, since, first)
	}
	return lo, nil
}

// get returns the first message of the stream at or after the sequence, nil if there is
// none. Searches that ask for the same at the same time share the answer. Every server
// answers; one that lags makes a search end too early in the stream, at worst.
func (h *Hub) get(ctx context.Context, now *answer, seq uint64) (*follow.Stored, error) {
	shared := h.gets.DoChan(fmt.Sprint(now.Layout.Stream, " ", seq), func() (any, error) {
		ctx, cancel := h.untilLost(context.Background())
		defer cancel()
		ctx, cancelWait := context.WithTimeout(ctx, h.opt.Wait)
		defer cancelWait()
		msg, err := now.Stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(now.Layout.All()))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return (*follow.Stored)(nil), nil
		}
		if err != nil {
			return nil, err
		}
		return &follow.Stored{Msg: &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data}, Seq: msg.Sequence}, nil
	})
	select {
	case got := <-shared:
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(*follow.Stored), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// expired says whether a log may have forgotten messages at or behind since:
// its oldest message has a High of at least since, and others were before it.
func (h *Hub) expired(ctx context.Context, s jetstream.Stream, since, first uint64) error {
	msg, err := s.GetMsg(ctx, first)
	if err != nil {
		return fmt.Errorf("read the oldest message: %w", err)
	}
	high, err := stream.High(msg.Header)
	if err != nil {
		return err
	}
	return &TooOldError{Floor: max(high, since) + 1}
}

// awaitHigh decides about a since above everything in the stream at a
// heartbeat behind the stream's end: nil where the source came that far by
// then (the broker had lost a tail), else ErrSinceAhead.
func (h *Hub) awaitHigh(ctx context.Context, l stream.Layout, since, last uint64) error {
	var high uint64
	err := h.awaitHeartbeat(ctx, l, func(now *answer) (bool, error) {
		high = now.high
		return now.heartbeat.Seq > last, nil
	})
	if err != nil {
		return fmt.Errorf("no heartbeat came: %w", err)
	}
	if high < since {
		return ErrSinceAhead
	}
	return nil
}

// List returns the relations that the broker has streams of.
func (h *Hub) List(ctx context.Context) ([]Listed, error) {
	ctx, cancel := context.WithTimeout(ctx, h.opt.Wait)
	defer cancel()
	var out []Listed
	streams, err := stream.List(ctx, h.js, h.opt.Prefix)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	for _, s := range streams {
		listed, err := h.listed(ctx, s.Layout, s.Meta)
		if err != nil {
			return nil, err
		}
		out = append(out, listed)
	}
	return out, nil
}

// Listed is one relation as the edge shows it.
type Listed struct {
	Schema, Table string
	Log           bool
	// Columns is the schema's document, nil while there is none.
	Columns []byte
	// Heartbeat is the last one's document, nil while there is none.
	Heartbeat []byte
	// Interval is how often at least one should come, 0 where that is not known.
	Interval time.Duration
}

func (h *Hub) listed(ctx context.Context, l stream.Layout, meta stream.Meta) (Listed, error) {
	out := Listed{Schema: meta.Schema, Table: meta.Table, Log: meta.Log, Interval: meta.Heartbeat}
	for subject, to := range map[string]*[]byte{l.SchemaSubject(): &out.Columns, l.Heartbeat(): &out.Heartbeat} {
		msg, _, err := stream.Last(ctx, h.js, l.Stream, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return Listed{}, fmt.Errorf("%w: %w", ErrNotReady, err)
		}
		*to = msg.Data
	}
	return out, nil
}

// Connected says whether the broker is there.
func (h *Hub) Connected() bool { return h.nc.IsConnected() && h.opt.Past.Conn().IsConnected() }
