package relation_test

import (
	"slices"
	"testing"

	"bridge/internal/relation"
	"bridge/internal/testenv"
)

// Keys that were read from a stream reach Postgres unchanged.
func TestKeyArrays(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	conn := testenv.Conn(t, testenv.Postgres(t))
	want := []string{"", "NULL", "null", `a"b`, `\`, "{,}", " ", "line\nbreak", "ümlaut", "'"}
	var keys [][][]byte
	for _, k := range want {
		keys = append(keys, [][]byte{[]byte(k), []byte("7")})
	}
	arrays := relation.KeyArrays(slices.Values(keys), 2)
	var got []string
	if err := conn.QueryRow(t.Context(), "SELECT $1::text::text[]", string(arrays[0])).Scan(&got); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if none := relation.KeyArrays(slices.Values([][][]byte(nil)), 1); string(none[0]) != "{}" {
		t.Errorf("no keys: got %q", none[0])
	}
	if relation.KeyName([][]byte{[]byte("a"), []byte("b")}) == relation.KeyName([][]byte{[]byte("a1:b"), {}}) {
		t.Error("two keys have one name")
	}
}

func TestForm_Text(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "18446744073709551615": 1<<64 - 1, "3": 3} {
		if got, err := relation.ParseTxid(text); got != want || err != nil {
			t.Errorf("ParseTxid(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "99999999999999999999", "1x"} {
		if got, err := relation.ParseTxid(text); err == nil {
			t.Errorf("ParseTxid(%q) = %d, want an error", text, got)
		}
	}
	for value, want := range map[string]bool{"t": true, "f": false, "2024-02-29 00:00:00": true} {
		if got := relation.IsDeleted([]byte(value)); got != want {
			t.Errorf("IsDeleted(%q) = %v", value, got)
		}
	}
	if relation.IsDeleted(nil) {
		t.Error("NULL is deleted")
	}
}

// A value of type json can't forge a line of its own.
func TestForm_OneLine(t *testing.T) {
	t.Parallel()
	b := []byte("{\"v\":{\r\n \"a\":\n1}}")
	relation.OneLine(b)
	if got, want := string(b), `{"v":{   "a": 1}}`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
