//go:build race

package e2e_test

import "time"

// The race detector makes everything some ten times slower.
const (
	long  = 2 * time.Minute
	scale = 5
)
