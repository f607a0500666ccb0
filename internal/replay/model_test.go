package replay_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// This is a model of what makes a block of a stream true that is read from the broker once and then sent to many clients,
// while the stream goes on. It has the stream of latest versions, tombstones that expire, a broker that goes back, an edge
// that fills blocks message by message, and clients that are slow, come back, and check their state at every heartbeat.
//
// The rules are the contract of blocks. TestModel_Blocks_I2 shows that under them no client sees a heartbeat at which its
// state is none of the relation's. With any one of them removed, some do, or get nowhere.
//
// A block has these marks. High is the highest position that a stream has shown; it never falls along the stream. The floor
// is the High below which tombstones may be gone.
//
//   - highBefore: the stream's High before the block was filled.
//   - floorAfter: the stream's floor after that.
//   - until: the stream's end after that, if the block has holes; else 0.
//
// A client keeps holds, the High from which on it must be told of every delete, and hold, the sequence from which on
// heartbeats pass.

// rule is one of the rules that a model can break.
type rule string

const (
	none rule = ""
	// A heartbeat passes only at or after hold, and hold is at least the until of each block sent.
	ruleUntil rule = "until holds heartbeats back"
	// hold is at first the stream's end when the client came.
	ruleEnd rule = "the end at the request holds heartbeats back"
	// until is the stream's end after the last hole was met, not the first.
	ruleEndAfter rule = "until is asked for after the last hole"
	// A block whose floorAfter is above holds cuts the client.
	ruleFloor rule = "a floor above holds cuts"
	// floorAfter is taken after the block was filled, not before.
	ruleFloorAfter rule = "the floor is asked for after the filling"
	// holds is at most the highBefore of each block sent.
	ruleHigh rule = "holds is at most the High before the filling"
	// highBefore is taken before the block is filled, not after.
	ruleHighBefore rule = "High is asked for before the filling"
	// A block is void when the floor is above its highBefore; else its clients are cut for ever.
	ruleVoidFloor rule = "a block below the floor is void"
	// A block is void when the stream no longer holds its last place, and also when it no longer holds the end that it had
	// after the filling: highBefore and until are of that branch.
	ruleVoidEpoch rule = "a block that the stream lost is void"
	ruleVoidEnd   rule = "a block of a branch that the stream lost is void"
	// That is looked at after the filling, too.
	ruleEpochAfter rule = "the epoch is looked at after the filling"
	// A client whose stream went back is cut.
	ruleCut rule = "a stream that went back cuts"
	// Whoever resumes in a stream that went back gets heartbeats only from its end on.
	ruleTrusted rule = "heartbeats of the past hold for nobody who resumes"
)

type modelMessage struct {
	seq, high uint64
	key       int // -1 for a heartbeat, -2 for a fence
	version   uint64
	deleted   bool
	// since is what the message shows, epoch the run in which it was stored.
	since uint64
	epoch int
	// truth is the relation's state, on heartbeats.
	truth map[int]uint64
}

// modelStream is the stream as its leader has it.
type modelStream struct {
	messages []modelMessage // in order, without those that were replaced or removed
	last     uint64
	high     uint64
	floor    uint64
	epoch    int
}

func (s *modelStream) clone() *modelStream {
	c := *s
	c.messages = slices.Clone(s.messages)
	return &c
}

func (s *modelStream) store(m modelMessage) {
	s.last++
	s.high = max(s.high, m.high)
	m.seq, m.high, m.epoch = s.last, s.high, s.epoch
	s.messages = slices.DeleteFunc(s.messages, func(old modelMessage) bool { return old.key == m.key })
	s.messages = append(s.messages, m)
}

// from returns the first message at or after seq.
func (s *modelStream) from(seq uint64) (modelMessage, bool) {
	i := slices.IndexFunc(s.messages, func(m modelMessage) bool { return m.seq >= seq })
	if i < 0 {
		return modelMessage{}, false
	}
	return s.messages[i], true
}

// epochAt returns the epoch of a place: that of the fence before it.
type modelEpochs map[int]uint64 // the first sequence of each epoch that the stream has

func (e modelEpochs) holds(epoch int, seq, last uint64) bool {
	first, ok := e[epoch]
	if !ok || seq < first {
		return false
	}
	for other, begins := range e {
		if other > epoch {
			last = min(last, begins-1)
		}
	}
	return seq <= last
}

func (e modelEpochs) at(seq uint64) int {
	epoch := 0
	for other, begins := range e {
		if begins <= seq {
			epoch = max(epoch, other)
		}
	}
	return epoch
}

type modelBlock struct {
	first, last                   uint64
	epoch                         int // of last
	documents                     []modelMessage
	highBefore, floorAfter, until uint64
	end                           uint64 // of the stream after the filling, in endEpoch
	endEpoch                      int

	// While it is filled.
	holes            bool
	endAtHole        uint64 // the stream's end when the first hole was met
	floorBefore      uint64
	generationBefore int
}

// hole takes note of a hole that was met when the stream ended at last.
func (b *modelBlock) hole(last uint64) {
	if !b.holes {
		b.holes, b.endAtHole = true, last
	}
}

type modelClient struct {
	state       map[int]uint64
	since       uint64 // of the last document
	next        uint64
	holds, hold uint64
	generation  int
	connected   bool
	fresh       bool // it asked for everything
	cuts        int
	beats       int
}

type modelWorld struct {
	t      *rand.Rand
	broken rule

	truth map[int]uint64
	gone  map[int]uint64 // when a key was deleted last
	txid  uint64
	beat  uint64 // the since of the last heartbeat
	s     *modelStream
	// epochs is what the stream has of them, generation how often it went back.
	epochs     modelEpochs
	generation int
	backups    []func()
	// away says that no writer has begun since then.
	away bool
	// said is the floor in a stored heartbeat, removable that of the round before.
	said, removable uint64

	blocks  []*modelBlock
	filling *modelBlock
	at      uint64 // the next sequence of filling
	clients []*modelClient
	fault   string
}

const modelKeys = 5

func newModel(seed uint64, broken rule) *modelWorld {
	w := &modelWorld{t: rand.New(rand.NewPCG(seed, 1)), broken: broken, truth: map[int]uint64{}, gone: map[int]uint64{}, txid: 10, s: &modelStream{}, epochs: modelEpochs{}}
	w.fence()
	w.heartbeat()
	for range 3 {
		w.clients = append(w.clients, &modelClient{state: map[int]uint64{}})
	}
	return w
}

func (w *modelWorld) fence() {
	w.s.epoch++
	w.epochs[w.s.epoch] = w.s.last + 1
	w.s.store(modelMessage{key: -2})
}

func (w *modelWorld) write() {
	w.txid++
	key := w.t.IntN(modelKeys)
	_, there := w.truth[key]
	gone := there && w.t.IntN(3) == 0
	if gone {
		delete(w.truth, key)
		w.gone[key] = w.txid
	} else {
		w.truth[key] = w.txid
	}
	w.send(key, w.txid, gone)
}

func (w *modelWorld) send(key int, txid uint64, gone bool) {
	w.s.store(modelMessage{key: key, version: txid, deleted: gone, high: txid, since: min(txid, w.beat)})
}

func (w *modelWorld) heartbeat() {
	w.beat = w.txid + 1
	w.s.store(modelMessage{key: -1, high: w.beat, since: w.beat, truth: maps.Clone(w.truth)})
	w.said = w.s.floor
}

// expire is a round in which old tombstones are removed, and the floor is raised above others.
func (w *modelWorld) expire() {
	w.s.messages = slices.DeleteFunc(w.s.messages, func(m modelMessage) bool { return m.deleted && m.high < w.removable })
	w.removable = w.said
	for _, m := range w.s.messages {
		if m.deleted && w.t.IntN(2) == 0 {
			w.s.floor = max(w.s.floor, m.high+1)
			return
		}
	}
}

// save copies the broker's store, and back puts the copy in its place. The floor stands in the stream's configuration, which
// the broker does not lose.
func (w *modelWorld) save() {
	s, epochs := w.s.clone(), maps.Clone(w.epochs)
	w.backups = append(w.backups, func() {
		floor, epoch := w.s.floor, w.s.epoch
		w.s, w.epochs = s.clone(), maps.Clone(epochs)
		w.s.floor, w.s.epoch = floor, epoch
		w.generation++
		w.said, w.removable = 0, 0
	})
}

func (w *modelWorld) back() {
	if len(w.backups) == 0 {
		return
	}
	w.backups[w.t.IntN(len(w.backups))]()
	w.backups, w.away = nil, true
}

// resume is a writer that goes on from the last heartbeat that the stream has.
func (w *modelWorld) resume() {
	i := slices.IndexFunc(w.s.messages, func(m modelMessage) bool { return m.key == -1 })
	before := w.s.messages[i]
	w.beat, w.away = before.since, false
	w.fence()
	for key := range modelKeys {
		switch now, there := w.truth[key]; {
		case there && now >= before.since:
			w.send(key, now, false)
		case !there && w.gone[key] >= before.since:
			w.send(key, w.gone[key], true)
		}
	}
}

// fill reads one message of a block more. What is not in a block yet is wanted from where a client is.
func (w *modelWorld) fill() {
	if w.filling == nil {
		c := w.clients[w.t.IntN(len(w.clients))]
		if !c.connected || w.block(c.next) != nil || c.next > w.s.last {
			return
		}
		w.filling = &modelBlock{first: c.next, highBefore: w.s.high, floorBefore: w.s.floor, generationBefore: w.generation}
		w.at = c.next
		return
	}
	b := w.filling
	m, ok := w.s.from(w.at)
	if covered := w.covered(b.first); covered > 0 && (!ok || m.seq >= covered) { // nothing is left up to the next block
		if covered > w.at {
			b.hole(w.s.last)
		}
		b.last, b.epoch = covered-1, w.epochs.at(covered-1)
		w.finish()
		return
	}
	if !ok || len(b.documents) > 0 && w.t.IntN(6) == 0 {
		w.finish()
		return
	}
	if m.seq != w.at {
		b.hole(w.s.last)
	}
	b.documents = append(b.documents, m)
	b.last, b.epoch, w.at = m.seq, m.epoch, m.seq+1
}

func (w *modelWorld) finish() {
	b := w.filling
	w.filling = nil
	if b.last == 0 {
		return
	}
	b.floorAfter, b.end = w.s.floor, w.s.last
	b.endEpoch = w.epochs.at(b.end)
	if b.holes {
		b.until = w.s.last
	}
	switch w.broken {
	case ruleEndAfter:
		b.until = b.endAtHole
	case ruleFloorAfter:
		b.floorAfter = b.floorBefore
	case ruleHighBefore:
		b.highBefore = w.s.high
	case ruleEpochAfter:
	default:
		if b.generationBefore != w.generation {
			return
		}
	}
	w.blocks = append(w.blocks, b)
}

// covered returns the first sequence after seq that a block has, 0 for none.
func (w *modelWorld) covered(seq uint64) uint64 {
	var next uint64
	for _, b := range w.blocks {
		if b.first > seq && (next == 0 || b.first < next) {
			next = b.first
		}
	}
	return next
}

// block returns the block that has the sequence.
func (w *modelWorld) block(seq uint64) *modelBlock {
	for _, b := range w.blocks {
		if b.first <= seq && seq <= b.last {
			return b
		}
	}
	return nil
}

// look drops the blocks that are void.
func (w *modelWorld) look() {
	w.blocks = slices.DeleteFunc(w.blocks, func(b *modelBlock) bool {
		lost := !w.epochs.holds(b.epoch, b.last, w.s.last)
		branch := !w.epochs.holds(b.endEpoch, b.end, w.s.last)
		switch w.broken {
		case ruleVoidEpoch:
			lost, branch = false, false
		case ruleVoidEnd:
			branch = false
		}
		return w.broken != ruleVoidFloor && w.s.floor > b.highBefore || lost || branch
	})
}

// connect is a client that comes, with what it has.
func (w *modelWorld) connect(c *modelClient) {
	if c.since < w.s.floor || c.cuts > 20 {
		c.state, c.since = map[int]uint64{}, 0
	}
	c.fresh = c.since == 0
	c.holds, c.next = c.since, 1
	if c.fresh {
		c.holds = max(w.s.high, w.s.floor)
	} else {
		at := slices.IndexFunc(w.s.messages, func(m modelMessage) bool { return m.high >= c.since })
		if at < 0 { // the source has not come that far again
			return
		}
		c.next = w.s.messages[at].seq
	}
	c.hold = 0
	if w.broken != ruleEnd {
		c.hold = w.s.last
	}
	if w.generation > 0 && !c.fresh && w.broken != ruleTrusted && w.away {
		c.hold = w.s.last + 1
	}
	c.connected, c.generation = true, w.generation
}

func (w *modelWorld) cut(c *modelClient) {
	c.connected = false
	c.cuts++
}

// read sends a client what it does not have of one block.
func (w *modelWorld) read(c *modelClient) {
	if !c.connected {
		w.connect(c)
		return
	}
	if c.generation != w.generation && w.broken != ruleCut {
		w.cut(c)
		return
	}
	w.look()
	b := w.block(c.next)
	if b == nil {
		return
	}
	if w.broken != ruleHigh {
		c.holds = min(c.holds, b.highBefore)
	}
	if w.broken != ruleFloor && b.floorAfter > c.holds {
		w.cut(c)
		return
	}
	if w.broken != ruleUntil {
		c.hold = max(c.hold, b.until)
	}
	for _, m := range b.documents {
		if m.seq < c.next {
			continue
		}
		switch {
		case m.key >= 0 && m.deleted:
			delete(c.state, m.key)
			c.since = m.since
		case m.key >= 0:
			c.state[m.key] = m.version
			c.since = m.since
		case m.key == -1 && m.seq >= c.hold:
			if !maps.Equal(c.state, m.truth) && w.fault == "" {
				w.fault = fmt.Sprintf("at the heartbeat %d a client has %v, the relation had %v", m.seq, c.state, m.truth)
			}
			c.since, c.holds = m.since, m.high
			c.beats++
			c.cuts = 0
		}
	}
	c.next = b.last + 1
}

// unlessAway is something that needs a writer.
func (w *modelWorld) unlessAway(do func()) func() {
	return func() {
		if !w.away {
			do()
		}
	}
}

// run returns what went wrong, empty for nothing.
func (w *modelWorld) run() string {
	// How often each thing happens differs from run to run.
	does := []struct {
		weight int
		do     func()
	}{
		{10 + w.t.IntN(20), w.unlessAway(w.write)},
		{3 + w.t.IntN(15), w.unlessAway(w.heartbeat)},
		{2 + w.t.IntN(20), w.unlessAway(w.expire)},
		{1, w.save},
		{w.t.IntN(2), w.unlessAway(w.back)},
		{3, func() {
			if w.away {
				w.resume()
			}
		}},
		{5 + w.t.IntN(30), w.fill},
		{2 + w.t.IntN(40), func() { w.read(w.clients[w.t.IntN(len(w.clients))]) }},
		{2, func() { w.cut(w.clients[w.t.IntN(len(w.clients))]) }},
	}
	sum := 0
	for _, d := range does {
		sum += d.weight
	}
	for range 1000 {
		n := w.t.IntN(sum)
		for _, d := range does {
			if n -= d.weight; n < 0 {
				d.do()
				break
			}
		}
		if w.fault != "" {
			return w.fault
		}
	}
	// The writer rests but for heartbeats. Now every client gets a heartbeat, and soon.
	if w.away {
		w.resume()
	}
	for _, c := range w.clients {
		c.beats, c.cuts = 0, 0
		for range 400 {
			if c.beats > 0 || w.fault != "" {
				break
			}
			if w.t.IntN(20) == 0 {
				w.heartbeat()
			}
			w.fill()
			w.read(c)
		}
		if c.beats == 0 && w.fault == "" {
			return "a client gets no heartbeat any more"
		}
	}
	return w.fault
}

// TestModel_Blocks_I2: with all rules, no run of the model goes wrong. With any one of them removed, some do: so each is needed,
// and the model would find an engine that broke it.
func TestModel_Blocks_I2(t *testing.T) {
	t.Parallel()
	const seeds = 400
	for _, r := range []rule{none, ruleUntil, ruleEnd, ruleEndAfter, ruleFloor, ruleFloorAfter, ruleHigh, ruleHighBefore, ruleVoidFloor, ruleVoidEpoch, ruleVoidEnd, ruleEpochAfter, ruleCut, ruleTrusted} {
		t.Run(cmp.Or(string(r), "with all rules"), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(seeds) {
				fault := newModel(seed, r).run()
				switch {
				case fault == "":
				case r == none:
					t.Fatalf("with all rules, seed %d goes wrong: %s", seed, fault)
				default:
					t.Logf("without %q, seed %d goes wrong: %s", r, seed, fault)
					return
				}
			}
			if r != none {
				t.Errorf("without %q none of %d runs goes wrong: the model does not show that it is needed", r, seeds)
			}
		})
	}
}
