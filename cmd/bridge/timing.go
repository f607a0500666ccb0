//go:build !quick

package main

import (
	"time"

	"bridge/internal/publish"
)

// The build tag quick makes these times shorter, for tests (see timing_quick.go). Zero means the default of the package
// that waits.
var publishTiming publish.Timing

const joinWithin, slotInterval time.Duration = 0, 0

// orphansAfter is how long after its start a bridge looks for streams that nobody writes: other bridges, which start at
// the same time, have connected by then.
const orphansAfter = 30 * time.Second
