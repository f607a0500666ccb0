// Package health is how captures report to people and to monitoring: the status
// of each relation, its metrics, and the progress of loads.
package health

import "time"

// State is what the capture of a relation does now.
type State string

// States of a capture.
const (
	StateStarting  State = "starting"
	StateStandby   State = "standby"
	StateFirstLoad State = "first load"
	StateLive      State = "live"
	StateFailing   State = "failing"
)

// Status is the state of a capture, for people and health checks.
type Status struct {
	State State
	// Note says more about the state, if there is more to say.
	Note string
	// Err says why the relation can't be captured, nil if it can.
	Err error
	// Heartbeat is when the last heartbeat was published, zero before the first.
	Heartbeat time.Time
	// LoadDone and LoadRows are the progress of a batch that reads the whole
	// relation: the rows read so far, and the rows expected.
	LoadDone, LoadRows int64
}
