package simtest

import (
	"fmt"
	"strings"
	"time"
)

// Violation is a broken invariant.
type Violation struct {
	Invariant string
	Log       *Log // nil if no client saw it
	Event     int  // the index in the log at which it was seen
	Text      string
}

func (v Violation) String() string {
	if v.Log == nil {
		return v.Invariant + ": " + v.Text
	}
	return fmt.Sprintf("%s: client %s of %s, event %d: %s", v.Invariant, v.Log.Client, v.Log.Relation, v.Event, v.Text)
}

// Counts is how much a check compared.
type Counts struct {
	Rows, Heartbeats, Positions, Connections, Cuts, Refusals, Repeats int
	// Snapshots is at how many of the heartbeats the snapshot was known.
	Snapshots int
}

func (c *Counts) add(o Counts) {
	c.Rows += o.Rows
	c.Heartbeats += o.Heartbeats
	c.Positions += o.Positions
	c.Snapshots += o.Snapshots
	c.Connections += o.Connections
	c.Cuts += o.Cuts
	c.Refusals += o.Refusals
	c.Repeats += o.Repeats
}

// maxViolations is how many violations of one log are kept. The first ones are enough to see what happened.
const maxViolations = 20

// Check judges everything that a client saw.
func Check(t *Truth, l *Log) (Counts, []Violation) {
	c := &checker{truth: t, log: l, state: State{}}
	c.connected()
	events := l.Events()
	for i := range events {
		c.i = i
		c.event(&events[i])
		if len(c.violations) >= maxViolations {
			break
		}
	}
	return c.counts, c.violations
}

// CheckFinal judges what a client holds at the end, after writes have stopped. The client had time to follow (I1), or
// to resume from the token with which its log begins (I3).
func CheckFinal(t *Truth, l *Log) []Violation {
	var found []Violation
	invariant, events := "I1", l.Events()
	if len(events) > 0 && events[0].Kind == Adopted {
		invariant = "I3"
	}
	for _, text := range Differences(t.Final, l.State()) {
		found = append(found, Violation{invariant, l, len(events) - 1, text})
	}
	return found
}

// Differences describes the keys in which a state differs from the relation.
func Differences(final map[string]FinalRow, s State) []string {
	var diff []string
	for key, want := range final {
		got, ok := s[key]
		switch {
		case want.Deleted && (!ok || got.Deleted):
		case !ok:
			diff = append(diff, fmt.Sprintf("row %s is missing, want txid %d %s", key, want.Txid, want.Data))
		case got.Deleted != want.Deleted:
			diff = append(diff, fmt.Sprintf("row %s: got deleted=%v (txid %d, ver %d), want txid %d %s", key, got.Deleted, got.Txid, got.Ver, want.Txid, want.Data))
		case got.Hash != hash([]byte(want.Data)) || got.Txid != want.Txid:
			diff = append(diff, fmt.Sprintf("row %s: got another version (txid %d, ver %d, op %d), want txid %d %s", key, got.Txid, got.Ver, got.Op, want.Txid, want.Data))
		}
	}
	for key, got := range s {
		if _, ok := final[key]; !ok && !got.Deleted {
			diff = append(diff, fmt.Sprintf("row %s (txid %d, ver %d) is not in the relation", key, got.Txid, got.Ver))
		}
	}
	return diff
}

// checker walks through one log.
type checker struct {
	truth *Truth
	log   *Log
	i     int
	state State

	// What was seen in the current connection.
	completed bool
	seen      map[string]int64 // the highest Ver by key
	shownRow  *Event           // the first row with the highest since of all rows
	shownBeat uint64           // the highest since of all heartbeats
	lastBeat  *Event
	lastRow   *Event
	epochs    map[string]bool
	doubts    []Violation // those since the last heartbeat; see doubt

	counts     Counts
	violations []Violation
}

func (c *checker) fail(invariant, format string, args ...any) {
	c.violations = append(c.violations, Violation{invariant, c.log, c.i, fmt.Sprintf(format, args...)})
}

func (c *checker) connected() {
	c.completed, c.shownRow, c.lastBeat, c.doubts = false, nil, nil, nil
	c.seen, c.shownBeat, c.epochs = map[string]int64{}, 0, map[string]bool{}
}

func (c *checker) event(e *Event) {
	switch e.Kind {
	case Connected:
		c.connected()
		c.lastRow = nil
		c.counts.Connections++
	case RowSeen:
		c.counts.Rows++
		c.lastRow = e
		e = c.named(e)
		c.row(e)
	case HeartbeatSeen:
		c.heartbeat(e)
	case PositionSeen:
		c.position(e)
	case CompletedSeen:
		if c.completed {
			c.fail("I2", "a second snapshot_completed in one connection")
		}
		c.completed = true
	case CutSeen:
		c.counts.Cuts++
		if e.Torn && !e.Own && !within(c.truth.EdgeKills, e.At-killSlack, e.At+killSlack) {
			c.fail("I11", "the stream was cut within a chunk, although no edge was killed")
		}
	case Refused:
		c.counts.Refusals++
		c.refused(e)
	case Odd:
		c.fail("I11", "%s", e.Text)
	}
	c.state = e.apply(c.state)
	if e.Kind == Adopted {
		c.nameAll()
	}
}

// killSlack is how far the time at which a client saw a cut may be from the time at which the nemesis noted the kill.
const killSlack = 2 * time.Second

func (c *checker) refused(e *Event) {
	switch e.Status {
	case 503, 404: // not ready, and no stream yet
	case 409, 410:
		if e.Since == 0 && strings.Contains(e.Text, "cursor_gone") {
			return // a cursor from the first load, and the stream no longer has it: there is no since in it
		}
		if e.Status == 410 && c.truth.Tidied && c.truth.deletedFrom(e.Since) {
			return
		}
		if !c.truth.WAL {
			c.fail("I3", "since %d was refused with %d, although no crash takes a position back: %s", e.Since, e.Status, e.Text)
		} else if !within(c.truth.Losses, 0, e.At) {
			c.fail("I3", "since %d was refused with %d, although nothing was lost: %s", e.Since, e.Status, e.Text)
		}
	default:
		c.fail("I3", "since %d was refused with %d: %s", e.Since, e.Status, e.Text)
	}
}
