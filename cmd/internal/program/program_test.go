package program_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"bridge/cmd/internal/program"
)

// A duration has its unit, and the time of a line has milliseconds: on a terminal
// they are shown.
func TestLogger_TimesHaveUnits(t *testing.T) {
	t.Parallel()
	whole := 0
	for range 20 {
		var out strings.Builder
		log, err := program.Logger(&out, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.Info().Dur("dur", 62500*time.Millisecond).Msg("")
		var line struct{ Time, Dur string }
		if err := json.Unmarshal([]byte(out.String()), &line); err != nil || line.Dur != "1m2.5s" || !regexp.MustCompile(`:\d\d\.\d{3}`).MatchString(line.Time) {
			t.Fatalf("got %s, %v", out.String(), err)
		}
		if strings.Contains(line.Time, ".000") {
			whole++
		}
	}
	if whole == 20 {
		t.Error("the milliseconds are always 000")
	}
}

func TestInvalid_Bytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"64MiB": 64 << 20, "1048576": 1 << 20, "1.5 GiB": 3 << 29, "2mb": 2e6, "1TiB": 1 << 40,
		"1": 0, "2TiB": 0, "": 0, "-1": 0, "64M1B": 0, "lots": 0,
	} {
		var inv program.Invalid
		if got := inv.Bytes("X", text, 1<<20, 1<<40); got != want || (want == 0) != (inv.Err() != nil) {
			t.Errorf("%q: got %d, %v", text, got, inv.Err())
		}
		if err := inv.Err(); err != nil && !strings.Contains(err.Error(), "not a size from 1.0 MiB to 1.0 TiB, such as 64MiB") {
			t.Error(err)
		}
	}
}
