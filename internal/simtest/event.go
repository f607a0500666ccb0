package simtest

import (
	"encoding/binary"
	"hash/fnv"
	"maps"
	"strconv"
	"sync"
	"time"

	"bridge/lockstep"
)

// Kind is the kind of an event.
type Kind uint8

// Kinds of events.
const (
	// Connected: a stream began, for a request with Since.
	Connected Kind = iota + 1
	// Emptied: the client forgot its state, to ask for everything.
	Emptied
	// Adopted: the client took State as its own, to resume from a token.
	Adopted
	// RowSeen, HeartbeatSeen, CompletedSeen: a document came.
	RowSeen
	HeartbeatSeen
	CompletedSeen
	// PositionSeen: the client was told where it is.
	PositionSeen
	// Ended: a finite stream ended with its final chunk.
	Ended
	// CutSeen: the stream was cut. Own says that the client did it, Torn that it was within a chunk.
	CutSeen
	// Refused: the answer was not a stream. Status and Text say what it was.
	Refused
	// Odd: the server broke the protocol. Text says how.
	Odd
)

// Version is what a client knows about a row's version.
type Version struct {
	// Ver is the version's place in the history of its key, Op the statement that made it. Both are 0 for a deleted row
	// that names only its key: see bare.
	Ver, Op int64
	Txid    uint64
	Deleted bool
	Balance int64
	// Hash is the hash of data. Blob is the MD5 of the large value in it, empty if there is none.
	Hash uint64
	Blob string
}

// bare says whether this is a deleted row that names only its key.
func (v Version) bare() bool { return v.Op == 0 && v.Deleted }

// State is what a client holds, by key.
type State map[string]Version

// Event is one thing that happened to a client.
type Event struct {
	At   time.Duration // since the run began
	Kind Kind
	Key  string
	Version
	Xmin      uint64
	Since     uint64
	Timestamp int64           // of a heartbeat
	Cursor    lockstep.Cursor // of a heartbeat or a position
	State     State           // of Adopted; must not be changed
	Own, Torn bool
	Status    int
	Text      string
}

// Log is everything that happened to one client of one relation.
type Log struct {
	Client, Relation string

	mu sync.Mutex
	// Guarded by mu.
	events []Event
	state  State
}

// NewLog returns the log of a client that holds nothing.
func NewLog(client, relation string) *Log {
	return &Log{Client: client, Relation: relation, state: State{}}
}

// Add appends an event and applies it to the client's state.
func (l *Log) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	l.state = e.apply(l.state)
}

// apply returns the state after the event. It may change s.
func (e *Event) apply(s State) State {
	switch e.Kind {
	case Emptied:
		return State{}
	case Adopted:
		return maps.Clone(e.State)
	case RowSeen:
		s[e.Key] = e.Version
	}
	return s
}

// State returns a copy of what the client holds now.
func (l *Log) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.state)
}

// Events returns what happened so far. The events must not be changed.
func (l *Log) Events() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[:len(l.events):len(l.events)]
}

// Token is a position that a client was shown, and what it held then.
type Token struct {
	Since uint64
	// Cursor is empty if only a since was shown.
	Cursor string
	At     time.Duration
	Of     string // the client
	State  State
}

// Token returns the token that event i showed, or false if it showed none.
func (l *Log) Token(i int) (Token, bool) {
	events := l.Events()
	e := &events[i]
	cursor := ""
	switch {
	case e.Since == 0:
		return Token{}, false
	case e.Kind == HeartbeatSeen || e.Kind == PositionSeen:
		cursor = e.Cursor.String()
	case e.Kind != RowSeen:
		return Token{}, false
	}
	begin := i
	for begin > 0 && events[begin].Kind != Emptied && events[begin].Kind != Adopted {
		begin--
	}
	s := State{}
	for j := begin; j <= i; j++ {
		s = events[j].apply(s)
	}
	return Token{Since: e.Since, Cursor: cursor, At: e.At, Of: l.Client, State: s}, true
}

// hash returns a fingerprint of b.
func hash(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

func (k Kind) String() string {
	names := [...]string{"", "connected", "emptied", "adopted", "row", "heartbeat", "completed", "position", "ended", "cut", "refused", "odd"}
	if int(k) < len(names) {
		return names[k]
	}
	return "kind " + strconv.Itoa(int(k))
}
