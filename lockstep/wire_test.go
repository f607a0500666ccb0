package lockstep_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/lockstep"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func row(txid, xmin uint64, deleted bool, data string) []byte {
	b := lockstep.AppendRowHead(nil, txid, xmin, deleted)
	return lockstep.AppendRowTail(append(b, data...))
}

// TestWire_Golden holds the bytes that existing clients depend on.
func TestWire_Golden(t *testing.T) {
	cur := lockstep.Cursor{Incarnation: "i1", Epoch: "e1", Seq: 42}
	flat := func(line []byte) []byte {
		b, err := lockstep.AppendFlat(nil, line)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	cases := map[string][]byte{
		"row":                row(549163, 551033, false, `{"name":"mydomain.com","user_id":1}`),
		"row_behind_xmin":    row(551040, 551033, false, `{"id":1}`),
		"row_deleted":        row(7, 9, true, `{"id":1}`),
		"heartbeat":          lockstep.AppendHeartbeat(nil, 1700000000, 551033, cur),
		"snapshot_completed": lockstep.AppendSnapshotCompleted(nil, 1700000000),
		"oversize":           lockstep.AppendOversize(nil, 549170, 549165, []byte(`{"id":7}`), 1600000, 1048576),
		"flat":               flat(row(549163, 551033, false, `{"name":"a,\"}b","updated_at":"2020","x":{"deleted_at":[1,{"y":"]"}]},"deleted_at":null}`)),
		"flat_deleted":       flat(row(12, 13, true, `{"id":1}`)),
		"flat_empty":         flat(row(12, 13, false, `{}`)),
		"flat_control":       flat(lockstep.AppendHeartbeat(nil, 1700000000, 5, cur)),
	}
	for name, got := range cases {
		file := filepath.Join("testdata", name+".jsonl")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %s want %s", name, got, want)
		}
		if !json.Valid(got) || bytes.Count(got, []byte("\n")) != 1 || got[len(got)-1] != '\n' {
			t.Errorf("%s: not one JSON document and a newline: %q", name, got)
		}
		if strings.HasPrefix(name, "flat") && name != "flat_control" {
			continue
		}
		if _, err := lockstep.Decode(got); err != nil {
			t.Errorf("%s: decode: %v", name, err)
		}
	}
}

func TestDecode_Refuses(t *testing.T) {
	for _, s := range []string{
		``, `{}`, `[]`, `1`, `{"txid":1}`, `{"txid":-1,"data":{}}`, `{"txid":1,"data":[]}`, `{"control":true}`,
		`{"txid":1,"data":{}}{"txid":2,"data":{}}`, `{"txid":1,"data":{`, `{"txid":18446744073709551616,"data":{}}`,
	} {
		if m, err := lockstep.Decode([]byte(s)); !errors.Is(err, lockstep.ErrMalformed) {
			t.Errorf("Decode(%q) = %v, %v; want ErrMalformed", s, m, err)
		}
	}
}

func TestTxid(t *testing.T) {
	for _, c := range []struct {
		line []byte
		want uint64
		ok   bool
	}{
		{row(18446744073709551615, 1, false, `{}`), 18446744073709551615, true},
		{lockstep.AppendOversize(nil, 7, 9, []byte(`{}`), 1, 1), 7, true},
		{lockstep.AppendSnapshotCompleted(nil, 1), 0, false},
		{[]byte(`{"txid":`), 0, false},
	} {
		if got, ok := lockstep.Txid(c.line); got != c.want || ok != c.ok {
			t.Errorf("Txid(%s) = %d, %v; want %d, %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

func TestParts(t *testing.T) {
	for _, c := range []struct {
		line    string
		deleted bool
		data    string
		ok      bool
	}{
		{string(row(18446744073709551615, 1, false, `{"a":"}\\n","deleted":true}`)), false, `{"a":"}\\n","deleted":true}`, true},
		{string(row(7, 9, true, `{}`)), true, `{}`, true},
		{string(lockstep.AppendOversize(nil, 7, 9, []byte(`{}`), 1, 1)), false, "", false},
		{string(lockstep.AppendSnapshotCompleted(nil, 1)), false, "", false},
		{``, false, "", false},
		{`{"txid":1,"current_xmin":2,"since":1,"deleted":maybe,"data":{}}` + "\n", false, "", false},
		{`{"txid":,"current_xmin":2,"since":1,"deleted":true,"data":{}}` + "\n", false, "", false},
		{`{"txid":1,"current_xmin":2,"since":1,"deleted":true,"data":1}` + "\n", false, "", false},
		{`{"txid":1,"current_xmin":2,"since":1,"deleted":true,"data":{}}`, false, "", false},
		{`{"txid":1,"current_xmin":2,"since":1,"deleted":true,"data":}` + "\n", false, "", false},
	} {
		deleted, data, ok := lockstep.Parts([]byte(c.line))
		if deleted != c.deleted || string(data) != c.data || ok != c.ok {
			t.Errorf("Parts(%s) = %v, %s, %v; want %v, %s, %v", c.line, deleted, data, ok, c.deleted, c.data, c.ok)
		}
	}
	line := row(7, 9, false, `{"a":1}`)
	if n := testing.AllocsPerRun(100, func() { _, _, _ = lockstep.Parts(line) }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}

func TestCursor_RoundTrip(t *testing.T) {
	want := lockstep.Cursor{Incarnation: "aZ09", Epoch: "x", Seq: 1 << 63}
	got, err := lockstep.ParseCursor(want.String())
	if err != nil || got != want {
		t.Fatalf("got %v, %v; want %v", got, err, want)
	}
	for _, s := range []string{"", "a.b", "a.b.c", "a.b.-1", ".b.1", "a..1", "a.b.1.2", "a\n.b.1"} {
		if c, err := lockstep.ParseCursor(s); err == nil {
			t.Errorf("ParseCursor(%q) = %v, want an error", s, c)
		}
	}
}

// FuzzDecode: whatever comes over the wire is a message or ErrMalformed, and
// a message encodes to what decodes to the same.
func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.jsonl")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := lockstep.Decode(line)
		if err != nil {
			if !errors.Is(err, lockstep.ErrMalformed) {
				t.Fatalf("got %v, want ErrMalformed", err)
			}
			return
		}
		if (m.Row == nil) == (m.Control == nil) {
			t.Fatalf("not exactly one of row and control: %+v", m)
		}
		if m.Row == nil {
			return
		}
		again := lockstep.AppendRowHead(nil, m.Row.Txid, m.Row.CurrentXmin, m.Row.Deleted)
		again = lockstep.AppendRowTail(append(again, m.Row.Data...))
		m2, err := lockstep.Decode(again)
		if err != nil || m2.Row == nil || m2.Row.Txid != m.Row.Txid || m2.Row.Deleted != m.Row.Deleted || !bytes.Equal(m2.Row.Data, m.Row.Data) {
			t.Fatalf("%s decodes to %+v, %v; want %+v", again, m2.Row, err, m.Row)
		}
	})
}

// FuzzParts: it never panics, and agrees with Decode on every row that the
// bridge encodes; of a cut row it says nothing.
func FuzzParts(f *testing.F) {
	f.Add(row(7, 9, true, `{"a":"\n}"}`), true, []byte(`{"data":{}}`))
	f.Add([]byte(`{"txid":1,"current_xmin":2,"since":1,"deleted":`), false, []byte(`{}`))
	f.Fuzz(func(t *testing.T, line []byte, deleted bool, data []byte) {
		_, _, _ = lockstep.Parts(line)
		if !json.Valid(data) || data[0] != '{' || data[len(data)-1] != '}' {
			return
		}
		line = row(5, 6, deleted, string(data))
		gotDeleted, got, ok := lockstep.Parts(line)
		if !ok || gotDeleted != deleted || !bytes.Equal(got, data) {
			t.Fatalf("%s has the parts %v, %s, %v", line, gotDeleted, got, ok)
		}
		m, err := lockstep.Decode(line)
		if err != nil || m.Row.Deleted != deleted || !bytes.Equal(m.Row.Data, got) {
			t.Fatalf("%s decodes to %+v, %v", line, m.Row, err)
		}
		if _, _, ok := lockstep.Parts(line[:len(line)-1]); ok {
			t.Fatal("a document without its newline has parts")
		}
	})
}

// FuzzFlat: a row in the flat dialect is one valid JSON object, or an error.
func FuzzFlat(f *testing.F) {
	f.Add([]byte(`{"a":1,"updated_at":"x","b":[{"c":"\"}"}]}`))
	f.Add([]byte(`{"a\\":"\\"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var compact bytes.Buffer
		if len(data) == 0 || data[0] != '{' || json.Compact(&compact, data) != nil {
			return
		}
		got, err := lockstep.AppendFlat(nil, row(5, 6, false, compact.String()))
		if err != nil {
			t.Fatalf("%s: %v", compact.Bytes(), err)
		}
		if !json.Valid(got) {
			t.Fatalf("%s became %s", compact.Bytes(), got)
		}
	})
}
