//go:build quick

package main

import (
	"time"

	"bridge/internal/publish"
)

// Shorter than in production, so that tests wait less after a kill. The lease still outlasts a pause of 1.6 s of a busy
// machine: its time to live less a tick, as in production.
var publishTiming = publish.Timing{LeaseTTL: 2 * time.Second, LeaseRetry: 100 * time.Millisecond, Tick: 400 * time.Millisecond}

const joinWithin, slotInterval = 3 * time.Second, 500 * time.Millisecond
