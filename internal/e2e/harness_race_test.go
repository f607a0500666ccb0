//go:build race

package e2e_test

// The race detector makes everything some ten times slower.
const scale = 5
