package spell_test

import (
	"testing"

	"bridge/internal/spell"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"history", "key", "max_age"}
	for _, c := range []struct {
		s    string
		most int
		want string
	}{
		{"history", 0, "history"},
		{"HISTORY", 0, "history"},
		{"hsitory", 1, "history"},
		{"histor", 1, "history"},
		{"hisstory", 1, "history"},
		{"mex_age", 1, "max_age"},
		{"maxage", 0, ""},
		{"eky", 1, "key"},
		{"yek", 1, ""},
		{"", 2, ""},
		{"", 3, "key"},
	} {
		if got, differ := spell.Nearest(c.s, names, c.most); got != c.want || (got != "") != (differ <= c.most) {
			t.Errorf("Nearest(%q, %d) is %q, %d; want %q", c.s, c.most, got, differ, c.want)
		}
	}
}
