package poller_test

import (
	"testing"

	"bridge/internal/poller"
)

// TestOneLine: a value of type json can't forge a line.
func TestOneLine(t *testing.T) {
	t.Parallel()
	b := []byte("{\"v\":{\r\n \"a\":\n1}}")
	poller.OneLine(b)
	if got, want := string(b), `{"v":{   "a": 1}}`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
