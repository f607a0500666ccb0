// Package spell finds the name that a misspelt one was meant to be. It imports the
// standard library alone.
package spell

import "strings"

// Nearest returns the name most similar to s, and how many bytes they differ by.
// It returns "" if none differs by at most the given number. Case makes no
// difference.
func Nearest(s string, names []string, most int) (name string, differ int) {
	differ = most + 1
	for _, n := range names {
		if d := distance(strings.ToLower(s), strings.ToLower(n)); d < differ {
			name, differ = n, d
		}
	}
	return name, differ
}

// distance counts the bytes that were inserted, removed or replaced, and the
// neighbours that were swapped.
func distance(a, b string) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
