package simtest

import "fmt"

// Capture is how the bridges of a run capture the relations.
type Capture string

// Captures.
const (
	Poll Capture = "poll"
	WAL  Capture = "wal"
)

// Captures returns all captures.
func Captures() []Capture { return []Capture{Poll, WAL} }

// ParseCapture parses the value of an option.
func ParseCapture(text string) (Capture, error) {
	switch c := Capture(text); c {
	case Poll, WAL:
		return c, nil
	}
	return "", fmt.Errorf("capture %q is neither %s nor %s", text, Poll, WAL)
}

// relations returns those of the workload. Polling reads the orders through a view, in which deleted orders stay.
func (c Capture) relations() [2]string {
	if c == WAL {
		return [2]string{Accounts, Orders}
	}
	return [2]string{Accounts, OrdersFeed}
}

// Tables returns BRIDGE_TABLES. A view needs its key there. Orders that were deleted are soon removed from their stream. One
// relation in three keeps every change, if it is read from the WAL.
func (c Capture) Tables() string {
	if c == WAL {
		return Accounts + "(capture=wal)," + Orders + "(capture=wal;tombstones=3s)," + Notes + "(capture=wal;history=log;max_age=1d)"
	}
	return Accounts + "," + OrdersFeed + "(key=shop+no;tombstones=3s)"
}

// slot is the name of the replication slot, by the default of BRIDGE_NAME.
const slot = "lockstep"
