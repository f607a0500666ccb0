package topic_test

import (
	"strings"
	"testing"

	"bridge/internal/topic"
)

// TestParse: a template must be a subject, whatever relation it is for, and must mean nothing to the broker but that.
func TestParse(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"off", "a", "a.b", "{schema}.{table}", "events.{schema}_{table}", "a.{key}", "a.{key}.b", "x-y.1/2", "{table}"} {
		if _, err := topic.Parse(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{
		"", ".", "a.", ".a", "a..b", "{key}", "a.x{key}", "a.{key}.{key}", "a.{id}", "a.{{wildcard(1)}}", "a.{", "a.}", "a.*", "a.>", "a.b>", "*",
		"$JS.API.STREAM.DELETE.x", "$KV.b.k", "$SYS.x", "a.$1", "a b", "a.\tb", "a.é", "a.\x00", strings.Repeat("a", 201),
	} {
		if got, err := topic.Parse(text); err == nil || got != "" {
			t.Errorf("%q is taken for %q", text, got)
		}
	}
}
