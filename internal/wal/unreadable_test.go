package wal_test

import (
	"errors"
	"fmt"
	"testing"

	"bridge/internal/wal"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestDecoding_GivesUpOnlyWithoutProgress_I7: the slot is given up if Postgres fails again and again without getting further in
// the WAL; not for other errors, nor as long as it gets further.
func TestDecoding_GivesUpOnlyWithoutProgress_I7(t *testing.T) {
	t.Parallel()
	stream := func(code string) error { return fmt.Errorf("%w: %w", wal.ErrStream, &pgconn.PgError{Code: code}) }
	internal, gone, other := stream("XX000"), stream("58P01"), stream("57P01")
	type end struct {
		err error
		pos uint64
	}
	repeat := func(n int, e end) (all []end) {
		for range n {
			all = append(all, e)
		}
		return all
	}
	for name, tt := range map[string]struct {
		ends    []end
		givesUp bool
	}{
		"the same place":              {repeat(5, end{internal, 7}), true},
		"a file that is gone":         {repeat(5, end{gone, 0}), true},
		"not yet":                     {repeat(4, end{internal, 7}), false},
		"further each time":           {[]end{{internal, 1}, {internal, 2}, {internal, 3}, {internal, 4}, {internal, 5}, {internal, 6}}, false},
		"further, and then no more":   {append([]end{{internal, 1}}, repeat(5, end{internal, 2})...), true},
		"others in between":           {[]end{{internal, 7}, {other, 7}, {internal, 7}, {errors.New("x"), 0}, {internal, 7}, {internal, 7}, {internal, 7}}, true},
		"a connection that was ended": {repeat(9, end{other, 7}), false},
		"not of the stream":           {repeat(9, end{&pgconn.PgError{Code: "XX000"}, 7}), false},
		"no publication":              {repeat(1, end{stream("42704"), 7}), true},
	} {
		var d wal.Decoding
		gaveUp := false
		for i, e := range tt.ends {
			if gaveUp = d.Failed(e.err, e.pos); gaveUp && i+1 < len(tt.ends) {
				t.Errorf("%s: gave up after %d failures", name, i+1)
			}
		}
		if gaveUp != tt.givesUp {
			t.Errorf("%s: gave up: %v, want %v", name, gaveUp, tt.givesUp)
		}
	}
}
