//go:build quick

package main

import (
	"time"

	"bridge/internal/publish"
)

// These times are shorter than in production, so that tests wait less after a kill. As there, a bridge keeps its lease
// through a pause of LeaseTTL less a Tick: here 1.6 s, for busy machines.
var publishTiming = publish.Timing{LeaseTTL: 2 * time.Second, LeaseRetry: 100 * time.Millisecond, Tick: 400 * time.Millisecond}

const joinWithin, slotInterval = 3 * time.Second, 500 * time.Millisecond

const orphansAfter = 2 * time.Second
