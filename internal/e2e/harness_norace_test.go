//go:build !race

package e2e_test

import "time"

const (
	// long limits every wait for something that must come. Where users are promised a time, the test has a limit of its
	// own.
	long = 25 * time.Second
	// scale divides the size of big tables.
	scale = 1
)
