//go:build race

package main_test

import "time"

// The race detector makes everything some ten times slower.
const (
	long  = time.Minute
	scale = 5
)
