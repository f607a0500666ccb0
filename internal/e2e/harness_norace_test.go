//go:build !race

package e2e_test

import "time"

const (
	// long bounds every wait for something that must come; what must come
	// within a time that users are promised has a bound of its own.
	long = 25 * time.Second
	// scale divides the size of big tables.
	scale = 1
)
