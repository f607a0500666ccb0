package simtest

import "fmt"

// Capture is how the bridges of a run capture the relations.
type Capture string

// Captures.
const (
	Poll Capture = "poll"
	WAL  Capture = "wal"
)

// Captures are all.
func Captures() []Capture { return []Capture{Poll, WAL} }

// ParseCapture reads what an option says.
func ParseCapture(text string) (Capture, error) {
	switch c := Capture(text); c {
	case Poll, WAL:
		return c, nil
	}
	return "", fmt.Errorf("capture %q is neither %s nor %s", text, Poll, WAL)
}

// relations are those of the workload. Polling reads the orders through a view, in which what was deleted stays.
func (c Capture) relations() [2]string {
	if c == WAL {
		return [2]string{Accounts, Orders}
	}
	return [2]string{Accounts, OrdersFeed}
}

// Tables is the BRIDGE_TABLES for both; polling has to be told the view's key.
func (c Capture) Tables() string {
	if c == WAL {
		return Accounts + "(capture=wal)," + Orders + "(capture=wal)"
	}
	return Accounts + "," + OrdersFeed + "(key=shop+no)"
}

// slot is the name of the replication slot: BRIDGE_NAME is left as it is.
const slot = "lockstep"
