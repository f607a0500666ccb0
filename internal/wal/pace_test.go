package wal_test

import (
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/wal"
)

// Who reads or publishes pauses while much comes fast, and only then: a row that
// comes alone is not held up. The first 32 rounds only set the time.
func TestPace_PausesOnlyUnderLoad(t *testing.T) {
	for _, tc := range []struct {
		name          string
		every         time.Duration
		taken, rounds int
		naps          int
	}{
		{"fast", 50 * time.Microsecond, 100, 72, 9},
		{"slow", 200 * time.Microsecond, 100, 1000, 0},
		{"fast, and each pause brings little", 50 * time.Microsecond, 9, 80, 1},
		{"fast, and busy as it is", 50 * time.Microsecond, 1000, 1000, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				naps := 0
				p := wal.NewPace(func() { naps++; time.Sleep(time.Millisecond) }, 10, 1000)
				for range tc.rounds {
					time.Sleep(tc.every)
					p.Rest(tc.taken)
				}
				if naps != tc.naps {
					t.Errorf("%d pauses in %d rounds, want %d", naps, tc.rounds, tc.naps)
				}
			})
		})
	}
}
