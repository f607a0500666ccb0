package capture_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"bridge/internal/capture"
	"bridge/internal/testenv"
)

func TestParseSnapshot_Refuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", ":", "::", "1:2", "0:1:", "2:1:", "1:2:3", "1:5:3,2", "1:5:3,3", "1:5:,3", "1:5:3,", "-1:2:", "1:+2:", "01:2:",
		"1:18446744073709551616:", "1:2:x", " 1:2:", "1:2:1:", "5:9:4",
	} {
		if got, err := capture.ParseSnapshot(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, got)
		}
	}
}

func FuzzParseSnapshot(f *testing.F) {
	f.Add("1:1:")
	f.Add("100:110:102,105")
	f.Add("1:18446744073709551615:18446744073709551614")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := capture.ParseSnapshot(in)
		if err != nil {
			return
		}
		if got := s.String(); got != in {
			t.Fatalf("%q: String gives %q", in, got)
		}
		if s.Visible(s.Xmax) || !s.Visible(s.Xmin-1) {
			t.Fatalf("%q: xmax is visible, or xmin-1 is not", in)
		}
		for _, x := range s.Xip {
			if s.Visible(x) {
				t.Fatalf("%q: %d is running and visible", in, x)
			}
		}
	})
}

// Visible must agree with pg_visible_in_snapshot for any snapshot and ID.
func TestSnapshot_VisibleAgreesWithPostgres(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs Postgres")
	}
	conn := testenv.Conn(t, testenv.Postgres(t))
	rng := rand.New(rand.NewPCG(1, 2))
	var snaps []string
	var ids []int64
	var want []bool
	for range 2000 {
		s := capture.Snapshot{Xmin: 1 + rng.Uint64N(50)}
		s.Xmax = s.Xmin + rng.Uint64N(60) // with more than 30 in progress, Postgres searches in another way
		for x := s.Xmin; x < s.Xmax; x++ {
			if rng.IntN(3) > 0 {
				s.Xip = append(s.Xip, x)
			}
		}
		parsed, err := capture.ParseSnapshot(s.String())
		if err != nil {
			t.Fatal(err)
		}
		id := rng.Uint64N(120)
		snaps, ids, want = append(snaps, s.String()), append(ids, int64(id)), append(want, parsed.Visible(id))
	}
	var got []bool
	err := conn.QueryRow(context.Background(), `
		SELECT array_agg(pg_visible_in_snapshot(x::text::xid8, s::pg_snapshot) ORDER BY n)
		  FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY u(s, x, n)`, snaps, ids).Scan(&got)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d in %s: got %v, Postgres says %v", ids[i], snaps[i], want[i], got[i])
		}
	}
	var now string
	if err := conn.QueryRow(context.Background(), "SELECT pg_current_snapshot()::text").Scan(&now); err != nil {
		t.Fatal(err)
	}
	if s, err := capture.ParseSnapshot(now); err != nil || s.String() != now || !strings.Contains(now, ":") {
		t.Errorf("got %v, %v of %s", s, err, now)
	}
}
