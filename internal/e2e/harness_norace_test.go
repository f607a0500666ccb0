//go:build !race

package e2e_test

// scale divides the size of big tables.
const scale = 1
