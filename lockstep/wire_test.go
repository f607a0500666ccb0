package lockstep_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/lockstep"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func row(txid, xmin uint64, deleted bool, data string) []byte {
	b := lockstep.AppendRowHead(nil, txid, xmin, deleted)
	return lockstep.AppendRowTail(append(b, data...))
}

func change(txid, xmin uint64, deleted bool, action lockstep.Action, old, data string) []byte {
	var o []byte
	if old != "" {
		o = []byte(old)
	}
	b := lockstep.AppendChangeHead(nil, txid, xmin, deleted, lockstep.Change{Action: action, Old: o})
	return lockstep.AppendRowTail(append(b, data...))
}

// insert is the change that an event comes from.
var insert = lockstep.Change{
	Action: lockstep.ActionInsert, Event: []byte("00000001-000000000193a5d8-000000000193a558-0000"),
	CommittedAt: lockstep.AppendTime(nil, time.Date(2026, 11, 30, 13, 0, 0, 123456789, time.FixedZone("", 3600))),
}

func event(txid, xmin uint64, c lockstep.Change, data string) []byte {
	return lockstep.AppendRowTail(append(lockstep.AppendChangeHead(nil, txid, xmin, false, c), data...))
}

// TestEvent: what an event says is decoded, and its text in a header is parsed.
func TestEvent(t *testing.T) {
	at := time.Date(2026, 11, 30, 12, 0, 0, 123456000, time.UTC)
	m, err := lockstep.Decode(event(12, 13, lockstep.Change{Action: lockstep.ActionUpdate, Event: insert.Event, CommittedAt: insert.CommittedAt, Unchanged: []byte(`["a","b"]`)}, `{}`))
	if err != nil || m.Row.Event != string(insert.Event) || !m.Row.CommittedAt.Equal(at) || !slices.Equal(m.Row.Unchanged, []string{"a", "b"}) {
		t.Errorf("decoded %+v, %v", m.Row, err)
	}
	for _, line := range [][]byte{lockstep.AppendTruncate(nil, 7, 9, insert), lockstep.AppendOversize(nil, 7, 9, insert, []byte(`{}`), 1, 1), lockstep.AppendRefused(nil, 7, 9, insert, []byte(`{}`), 1, "r")} {
		if m, err := lockstep.Decode(line); err != nil || m.Control.Event != string(insert.Event) || m.Control.Action != lockstep.ActionInsert || !m.Control.CommittedAt.Equal(at) {
			t.Errorf("%s is decoded as %+v, %v", line, m.Control, err)
		}
	}
	text := insert.AppendText([]byte("x "))
	if string(text) != "x 00000001-000000000193a5d8-000000000193a558-0000 insert 2026-11-30T12:00:00.123456Z" {
		t.Errorf("the text is %q", text)
	}
	if c, err := lockstep.ParseChange(text[2:]); err != nil || !reflect.DeepEqual(c, insert) {
		t.Errorf("parsed %+v, %v", c, err)
	}
	if text := (lockstep.Change{Action: lockstep.ActionRead}).AppendText(nil); text != nil {
		t.Errorf("a row that was read has the text %q", text)
	}
	for _, text := range []string{"", " ", "  ", "a", "a b", "a b ", "a  c", " b c"} {
		if c, err := lockstep.ParseChange([]byte(text)); !errors.Is(err, lockstep.ErrMalformed) {
			t.Errorf("%q is parsed as %+v, %v", text, c, err)
		}
	}
}

// TestWire_Golden: the encoded documents are the bytes that existing clients depend
// on.
func TestWire_Golden(t *testing.T) {
	cur := lockstep.Cursor{Incarnation: "i1", Epoch: "e1", Seq: 42, Holds: 551034, Since: 551033}
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
		"position":           lockstep.AppendPosition(nil, cur),
		"snapshot_completed": lockstep.AppendSnapshotCompleted(nil, 1700000000),
		"oversize":           lockstep.AppendOversize(nil, 549170, 549165, lockstep.Change{}, []byte(`{"id":7}`), 1600000, 1048576),
		"oversize_refused":   lockstep.AppendRefused(nil, 549170, 549165, lockstep.Change{}, []byte(`{"id":7}`), 1600000, "a \"limit\" (error 10077)"),
		"oversize_event":     lockstep.AppendOversize(nil, 549170, 549165, insert, []byte(`{"id":7}`), 1600000, 1048576),
		"truncate_event":     lockstep.AppendTruncate(nil, 7, 9, lockstep.Change{Action: lockstep.ActionTruncate, Event: insert.Event, CommittedAt: insert.CommittedAt}),
		"gap":                lockstep.AppendGap(nil, 549165, `the slot was "dropped"`),
		"event":              event(12, 13, insert, `{"id":1}`),
		"event_unchanged":    event(12, 13, lockstep.Change{Action: lockstep.ActionUpdate, Event: insert.Event, CommittedAt: insert.CommittedAt, Old: []byte(`{"id":1}`), Unchanged: []byte(`["body"]`)}, `{"id":2}`),
		"flat_event":         flat(event(12, 13, lockstep.Change{Action: lockstep.ActionUpdate, Event: insert.Event, CommittedAt: insert.CommittedAt, Old: []byte(`{"data":1}`), Unchanged: []byte(`["data"]`)}, `{"id":2,"event":"x"}`)),
		"flat":               flat(row(549163, 551033, false, `{"name":"a,\"}b","updated_at":"2020","x":{"deleted_at":[1,{"y":"]"}]},"deleted_at":null}`)),
		"flat_deleted":       flat(row(12, 13, true, `{"id":1}`)),
		"flat_empty":         flat(row(12, 13, false, `{}`)),
		"flat_change":        flat(change(12, 13, false, lockstep.ActionUpdate, `{"id":1,"data":{"x":"}"},"deleted":true}`, `{"id":2,"data":{"x":1}}`)),
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
			t.Errorf("%s: want one JSON document and a newline, got %q", name, got)
		}
		if strings.HasPrefix(name, "flat") && name != "flat_control" {
			continue
		}
		m, err := lockstep.Decode(got)
		if err != nil {
			t.Errorf("%s: decode: %v", name, err)
			continue
		}
		var since uint64
		if m.Row != nil {
			since = m.Row.Since
		} else {
			since = m.Control.Since
		}
		if n := lockstep.Since(got); n != since {
			t.Errorf("%s: Since returns %d, the document has %d", name, n, since)
		}
	}
}

// TestFlat_Change: the flat dialect leaves out action and old. A column is never
// taken for a member of the document, whatever its name.
func TestFlat_Change(t *testing.T) {
	for _, c := range []struct {
		name string
		line []byte
		want string
	}{
		{"delete", change(7, 9, true, lockstep.ActionDelete, "", `{"id":1}`), `{"updated_at":7,"deleted_at":7,"id":1}`},
		{"delete with old", change(7, 9, true, lockstep.ActionDelete, `{"id":1,"v":false}`, `{"id":1}`), `{"updated_at":7,"deleted_at":7,"id":1}`},
		{"old ends in true", change(7, 9, false, lockstep.ActionUpdate, `{"id":1,"v":true}`, `{"id":1}`), `{"updated_at":7,"deleted_at":null,"id":1}`},
		{"column data in old", change(7, 9, false, lockstep.ActionUpdate, `{"id":1,"data":{"a":1}}`, `{"id":1,"data":{"b":2}}`), `{"updated_at":7,"deleted_at":null,"id":1,"data":{"b":2}}`},
		{"text in old", change(7, 9, false, lockstep.ActionUpdate, `{"a":",\"data\":{}}","b":[{"data":{}},"]"],"c" : 1}`, `{"a":"x"}`), `{"updated_at":7,"deleted_at":null,"a":"x"}`},
		{"empty old", change(7, 9, false, lockstep.ActionInsert, `{}`, `{"old":{},"action":"x"}`), `{"updated_at":7,"deleted_at":null,"old":{},"action":"x"}`},
		{"read", change(7, 9, false, lockstep.ActionRead, "", `{"data":true}`), `{"updated_at":7,"deleted_at":null,"data":true}`},
		{"truncate", lockstep.AppendTruncate(nil, 7, 9, lockstep.Change{}), `{"control":true,"type":"truncate","txid":7,"since":7}`},
	} {
		got, err := lockstep.AppendFlat(nil, c.line)
		if err != nil || string(got) != c.want+"\n" {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
		m, err := lockstep.Decode(c.line)
		if err != nil {
			t.Errorf("%s: decode: %v", c.name, err)
		}
		if txid, ok := lockstep.Txid(c.line); m.Row != nil && (txid != 7 || !ok) {
			t.Errorf("%s: Txid is %d, %v", c.name, txid, ok)
		}
		// Parts is for streams of latest versions. Here it must return nothing, not the
		// wrong member.
		if deleted, data, ok := lockstep.Parts(c.line); deleted || data != nil || ok {
			t.Errorf("%s: Parts are %v, %s, %v", c.name, deleted, data, ok)
		}
	}
}

func TestFlat_Refuses(t *testing.T) {
	const head = `{"txid":7,"current_xmin":9,"since":7,`
	for _, s := range []string{
		`{"txid":`, `{"txid":,"current_xmin":9,"since":7,"deleted":false,"data":{}}`,
		`{"txid":18446744073709551616,"current_xmin":9,"since":7,"deleted":false,"data":{}}`,
		head + `"deleted":false}`, head + `"deleted":maybe,"data":{}}`, head + `"data":{}}`,
		head + `"deleted":false,"data":`, head + `"deleted":false,"data":[]}`, head + `"deleted":false,"data":{`,
		head + `"deleted":false,"data":{"a"}}`, head + `"deleted":false,"data":{"a":"}}`,
		head + `"deleted":false,"action","data":{}}`, head + `"deleted":false,"action":"update`, head + `"deleted":false "data":{}}`,
		head + `"deleted":false,"action":"update","data":[]}`, head + `"deleted":false,"action":"update","old":{"data":{}}}`,
		head + `"deleted":false,"action":"update","old":,"data":{}}`, head + `"deleted":false,"action":"update","old":{"a":"`,
		head + `"deleted":false,"action":"update","old":{"a":[1,"data":{}}`,
	} {
		if got, err := lockstep.AppendFlat(nil, []byte(s+"\n")); !errors.Is(err, lockstep.ErrMalformed) {
			t.Errorf("AppendFlat(%s) = %q, %v; want ErrMalformed", s, got, err)
		}
	}
}

func BenchmarkAppendFlat(b *testing.B) {
	const data = `{"id":1,"name":"a name of some length","email":"ada@example.org","tags":["a","b"],"created":"2024-01-01T00:00:00+00:00"}`
	for name, line := range map[string][]byte{
		"row":    row(549163, 551033, false, data),
		"change": change(549163, 551033, false, lockstep.ActionUpdate, data, data),
	} {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			for b.Loop() {
				buf, _ = lockstep.AppendFlat(buf[:0], line)
			}
		})
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
		{lockstep.AppendOversize(nil, 7, 9, lockstep.Change{}, []byte(`{}`), 1, 1), 7, true},
		{lockstep.AppendRefused(nil, 7, 9, lockstep.Change{}, []byte(`{}`), 1, "r"), 7, true},
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
		{string(lockstep.AppendOversize(nil, 7, 9, lockstep.Change{}, []byte(`{}`), 1, 1)), false, "", false},
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
		t.Errorf("Parts allocates %v times", n)
	}
}

// TestCursor_RoundTrip: a cursor is read as it was written, in the form of today and in that of before. Everything else is
// an error.
func TestCursor_RoundTrip(t *testing.T) {
	for text, want := range map[string]lockstep.Cursor{
		"1.aZ09.x.9223372036854775808.7.5": {Incarnation: "aZ09", Epoch: "x", Seq: 1 << 63, Holds: 7, Since: 5},
		"1.a.b.1.0.0.v9":                   {Incarnation: "a", Epoch: "b", Seq: 1, View: "v9"},
		"aZ09.x.12":                        {Incarnation: "aZ09", Epoch: "x", Seq: 12, Old: true},
	} {
		if got, err := lockstep.ParseCursor(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %+v, %v, and back %s; want %+v", text, got, err, got, want)
		}
	}
	for _, s := range []string{
		"", "a.b", "a.b.c", "a.b.-1", ".b.1", "a..1", "a.b.1.2", "a\n.b.1",
		"2.a.b.1.2.3", "1.a.b.1.2", "1.a.b.1.2.", "1.a.b.1.2.3.", "1.a.b.1.2.3.v.w", "1.a.b.1.2.3.v-", "1.a..1.2.3", "1.a.b.1.-2.3",
	} {
		if c, err := lockstep.ParseCursor(s); !errors.Is(err, lockstep.ErrMalformed) {
			t.Errorf("ParseCursor(%q) = %v, %v, want ErrMalformed", s, c, err)
		}
	}
}

// FuzzDecode: any input gives a message or ErrMalformed. A row that is encoded again
// decodes to the same row.
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

// FuzzParts: Parts never panics, and agrees with Decode on every row that the bridge
// encodes. For a row that was cut off it returns nothing.
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

// FuzzFlat: AppendFlat never panics. A row becomes one valid JSON object, and a
// change becomes the same object as the row without action and old.
func FuzzFlat(f *testing.F) {
	f.Add([]byte(`{"a":1,"updated_at":"x","b":[{"c":"\"}"}]}`), false)
	f.Add([]byte(`{"a\\":"\\"}`), false)
	f.Add([]byte(`{"data":{"a":1},"deleted":true}`), true)
	f.Add([]byte(`{"x":",\"data\":{","v":true}`), false)
	f.Fuzz(func(t *testing.T, data []byte, deleted bool) {
		_, _ = lockstep.AppendFlat(nil, data)
		_, _ = lockstep.AppendFlat(nil, append([]byte(`{"txid":1,"current_xmin":2,"since":1,"deleted":false,"action":"update","old":`), data...))
		var compact bytes.Buffer
		if len(data) == 0 || data[0] != '{' || json.Compact(&compact, data) != nil {
			return
		}
		got, err := lockstep.AppendFlat(nil, row(5, 6, deleted, compact.String()))
		if err != nil {
			t.Fatalf("%s: %v", compact.Bytes(), err)
		}
		if !json.Valid(got) {
			t.Fatalf("%s became %s", compact.Bytes(), got)
		}
		for _, old := range []string{"", compact.String()} {
			line := change(5, 6, deleted, lockstep.ActionUpdate, old, compact.String())
			if changed, err := lockstep.AppendFlat(nil, line); err != nil || !bytes.Equal(changed, got) {
				t.Fatalf("%s became %s, %v; want %s", line, changed, err, got)
			}
		}
	})
}
