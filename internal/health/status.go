// Package health is what captures tell people and monitors: the status of each
// relation, and metrics.
package health

import "time"

// State is what the capture of a relation does.
type State string

// States of a capture.
const (
	StateStarting  State = "starting"
	StateStandby   State = "standby"
	StateFirstLoad State = "first load"
	StateLive      State = "live"
	StateFailing   State = "failing"
)

// Status is a capture's state for people and health checks.
type Status struct {
	State State
	// Note says more of the state, empty for nothing.
	Note string
	// Err is what keeps the relation from being captured, nil if nothing does.
	Err error
	// Heartbeat is when the last heartbeat was published, zero for never.
	Heartbeat time.Time
	// LoadDone and LoadRows are the progress of a batch that reads the whole
	// relation: rows read and rows expected.
	LoadDone, LoadRows int64
}
