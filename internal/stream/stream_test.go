package stream_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
)

// odd are names and keys with a meaning for a broker, a path or a shell, and pairs
// that a careless escape would make equal.
var odd = []string{
	"t", "T", "a.b", "a=2Eb", "a-b", "a_b", "a b", "a*b", "a>b", ">", "*", ".", "..", "", "=", "==", "=h", "row", "heartbeat",
	"fence", "x.row", "a/b", `a\b`, `a"b`, "a'b", "\x00", "\xff", "é", "日本", "a\nb", "$JS", "_INBOX", "=3D", "h", "=2E",
	strings.Repeat("a", 63), strings.Repeat("é", 31), strings.Repeat("é", 31) + "x", strings.Repeat("-", 63), strings.Repeat(".", 63),
}

// TestLayout_NamesAreInjective: no two relations share a stream or a subject, and no
// relation's filter matches the other's messages, whatever their names.
func TestLayout_NamesAreInjective(t *testing.T) {
	t.Parallel()
	streams, subjects := map[string]string{}, map[string]string{}
	for _, schema := range odd {
		for _, table := range odd {
			who := fmt.Sprintf("%q.%q", schema, table)
			l := stream.NewLayout("lockstep", schema, table, false)
			if other, ok := streams[l.Stream]; ok {
				t.Errorf("%s and %s are both stream %s", who, other, l.Stream)
			}
			streams[l.Stream] = who
			if strings.ContainsAny(l.Stream, ".*> /\\\t\r\n") || len(l.Stream) > 255 {
				t.Errorf("%s: %q is not a valid stream name", who, l.Stream)
			}
			if schema == "" || table == "" {
				continue // Postgres has no such names
			}
			for _, s := range []string{l.Heartbeat(), l.Fence(), l.Batch(), l.SchemaSubject(), l.Alive(), strings.TrimSuffix(l.Rows(), ".>")} {
				if other, ok := subjects[s]; ok {
					t.Errorf("%s and %s share subject %s", who, other, s)
				}
				subjects[s] = who
				if n := strings.Count(s, "."); n != 3 || !strings.HasPrefix(s, strings.TrimSuffix(l.All(), ">")) {
					t.Errorf("%s: subject %q has %d dots, or is not in %s", who, s, n, l.All())
				}
			}
		}
	}
}

// TestLayout_KindOf: KindOf distinguishes all kinds of messages, and does not know
// those of another relation.
func TestLayout_KindOf(t *testing.T) {
	t.Parallel()
	for _, log := range []bool{false, true} {
		l := stream.NewLayout("lockstep", "public", "t", log)
		row, _ := l.AppendRowSubject(nil, [][]byte{[]byte("heartbeat")})
		for subject, want := range map[string]stream.Kind{
			string(row): stream.KindRow, l.Heartbeat(): stream.KindHeartbeat, l.Fence(): stream.KindFence, l.Batch(): stream.KindBatch,
			l.SchemaSubject(): stream.KindSchema, l.Alive(): stream.KindAlive, "lockstep.public.t.other": stream.KindUnknown,
			"lockstep.public.t2.row.1": stream.KindUnknown, "lockstep.public.t": stream.KindUnknown, "lockstep.public.t.rows": stream.KindUnknown, "": stream.KindUnknown,
		} {
			if got := l.KindOf(subject); got != want {
				t.Errorf("log %v: %q is kind %d, want %d", log, subject, got, want)
			}
		}
	}
}

// No stream stores a request as its own message, whatever its relation's name.
func TestLayout_RequestsAreNoMessages(t *testing.T) {
	for _, name := range []string{"t", "a.b", "with space", "reconcile", strings.Repeat("ü", 31)} {
		l := stream.NewLayout("lockstep", "reconcile", name, false)
		if got := strings.Split(l.Reconcile(), "."); len(got) != 3 || got[0] != "_lockstep" || got[1] != "reconcile" || got[2] != l.Stream {
			t.Errorf("%q: got the subject %q", name, l.Reconcile())
		}
		if n := strings.Count(l.All(), "."); n < 3 {
			t.Errorf("%q: a stream with the subjects %s would store requests", name, l.All())
		}
	}
}

// TestLayout_LongKey: a key of 4 KB has a short subject of its own. The header gives
// the key back.
func TestLayout_LongKey(t *testing.T) {
	t.Parallel()
	l := stream.NewLayout("lockstep", "public", "t", false)
	subjects := map[string]int{}
	for i := range 3 {
		key := [][]byte{bytes.Repeat([]byte{'k'}, 4096), fmt.Append(nil, i)}
		subject, needsKey := l.AppendRowSubject(nil, key)
		if !needsKey || len(subject) > 300 {
			t.Fatalf("a subject of %d bytes, key in the header %v", len(subject), needsKey)
		}
		subjects[string(subject)] = i
		if _, err := l.Key(string(subject), ""); err == nil {
			t.Error("Key took a hash for a key")
		}
		got, err := l.Key(string(subject), string(stream.AppendKey(nil, key)))
		if err != nil || !reflect.DeepEqual(got, key) {
			t.Errorf("key %d did not come back: %v", i, err)
		}
	}
	if len(subjects) != 3 {
		t.Errorf("3 keys have %d subjects", len(subjects))
	}
	for n := 190; n < 210; n++ { // around the limit
		key := [][]byte{bytes.Repeat([]byte{'k'}, n)}
		subject, needsKey := l.AppendRowSubject(nil, key)
		if needsKey != (n > 200) {
			t.Errorf("%d bytes: subject %s, key in the header %v", n, subject, needsKey)
		}
	}
}

// FuzzLayout: a subject gives its key back, and two different keys or names never
// have the same subject.
func FuzzLayout(f *testing.F) {
	for i, s := range odd {
		f.Add(s, "b", odd[len(odd)-1-i], "c")
		f.Add(s, s, s+".", s+"=")
	}
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		l := stream.NewLayout("lockstep", "public", "t", false)
		keys := [][][]byte{{[]byte(a), []byte(b)}, {[]byte(c), []byte(d)}, {[]byte(a + "." + b)}, {[]byte(a)}, {[]byte(c)}}
		seen := map[string][][]byte{}
		for _, key := range keys {
			raw, needsKey := l.AppendRowSubject(nil, key)
			subject, header := string(raw), ""
			if other, ok := seen[subject]; ok && !reflect.DeepEqual(other, key) {
				t.Fatalf("%q and %q are both %q", key, other, subject)
			}
			seen[subject] = key
			if len(subject) > 300 || strings.ContainsAny(subject, " *>\t\r\n\x00") || strings.Contains(subject, "..") || l.KindOf(subject) != stream.KindRow {
				t.Fatalf("%q is not a valid subject for a row", subject)
			}
			if needsKey {
				header = string(stream.AppendKey(nil, key))
			}
			got, err := l.Key(subject, header)
			if err != nil || len(got) != len(key) {
				t.Fatalf("key %q came back as %q: %v", key, got, err)
			}
			for i := range key {
				if !bytes.Equal(got[i], key[i]) {
					t.Fatalf("key %q came back as %q", key, got)
				}
			}
		}
		one, two := stream.NewLayout("lockstep", a, b, false), stream.NewLayout("lockstep", c, d, false)
		if same := a == c && b == d; (one.Stream == two.Stream) != same || (one.All() == two.All()) != same {
			t.Fatalf("%q.%q is %s %s, %q.%q is %s %s", a, b, one.Stream, one.All(), c, d, two.Stream, two.All())
		}
	})
}

// TestEpochs_Holds: an epoch's places end at the fence of the next epoch. A stream that has the epoch has all that was
// before it.
func TestEpochs_Holds(t *testing.T) {
	t.Parallel()
	e := stream.Epochs{{"a", 1}, {"b", 10}, {"c", 20}}
	for _, c := range []struct {
		epoch string
		seq   uint64
		want  bool
	}{
		{"a", 1, true},
		{"a", 9, true},
		{"a", 10, false}, // the broker lost a's tail and gave the sequence out again
		{"b", 9, true},
		{"b", 10, true},
		{"c", 20, true},
		{"c", 25, true},
		{"c", 26, false},
		{"d", 5, false},
		{"", 5, false},
	} {
		if got := e.Holds(c.epoch, c.seq, 25); got != c.want {
			t.Errorf("(%s, %d): %v, want %v", c.epoch, c.seq, got, c.want)
		}
	}
}

// TestEpochs_At: At returns the epoch of each sequence.
func TestEpochs_At(t *testing.T) {
	t.Parallel()
	e := stream.Epochs{{"a", 2}, {"b", 10}}
	for seq, want := range map[uint64]string{0: "", 1: "", 2: "a", 9: "a", 10: "b", 99: "b"} {
		if got := e.At(seq); got != want {
			t.Errorf("%d: %q, want %q", seq, got, want)
		}
	}
}

// TestEpochs_Append: Append forgets epochs that the broker lost or that are too old.
func TestEpochs_Append(t *testing.T) {
	t.Parallel()
	var e stream.Epochs
	for i := range 100 {
		e = e.Append(stream.Epoch{ID: fmt.Sprint("e", i), First: uint64(10 * (i + 1))})
	}
	if len(e) != 64 || e[0].ID != "e36" || e[63].ID != "e99" {
		t.Fatalf("%d epochs, from %v to %v", len(e), e[0], e[len(e)-1])
	}
	before := e.String()
	back := e.Append(stream.Epoch{ID: "back", First: 980})
	if n := len(back); back[n-1].ID != "back" || back[n-2].ID != "e96" {
		t.Errorf("after a lost tail: %v", back[len(back)-3:])
	}
	if e.String() != before {
		t.Error("Append changed the list it was called on")
	}
}

// TestEpochs_RoundTrip: ParseEpochs reads what String writes, and refuses anything
// else.
func TestEpochs_RoundTrip(t *testing.T) {
	t.Parallel()
	for _, e := range []stream.Epochs{nil, {{"a", 1}}, {{"a", 1}, {"B9", math.MaxUint64}}} {
		got, err := stream.ParseEpochs(e.String())
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%v came back as %v, %v", e, got, err)
		}
	}
	for _, text := range []string{",", "a", "a@", "@1", "a@-1", "a@1,", "a@x", "a@18446744073709551616"} {
		if got, err := stream.ParseEpochs(text); !errors.Is(err, stream.ErrLayout) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// TestConfig_RoundTrip: ReadMeta returns what Config was given.
func TestConfig_RoundTrip(t *testing.T) {
	t.Parallel()
	for _, log := range []bool{false, true} {
		for _, database := range []string{"app", "a/b", "", "1/2/3/x", "ü \"'"} {
			m := stream.Meta{
				Schema: `odd "schema"`, Table: "a.b\x01", Incarnation: "I1", Floor: math.MaxUint64, Log: log, Tidied: !log,
				Source: capture.Source{System: math.MaxUint64, Timeline: 3, OID: 9, Database: database},
			}
			cfg := stream.Config(stream.NewLayout("lockstep", m.Schema, m.Table, log), m, stream.Settings{MaxAge: time.Hour, MaxBytes: 1 << 20})
			got, err := stream.ReadMeta(cfg)
			if err != nil || got != m {
				t.Errorf("%+v came back as %+v, %v", m, got, err)
			}
			if (cfg.MaxMsgsPerSubject == 1) == log || (cfg.MaxAge == time.Hour) != log || !cfg.AllowDirect || cfg.Replicas != 1 {
				t.Errorf("log %v: %+v", log, cfg)
			}
			cfg.Metadata["lockstep-layout"] = "0"
			if _, err := stream.ReadMeta(cfg); !errors.Is(err, stream.ErrLayout) {
				t.Errorf("another version's stream: %v", err)
			}
		}
	}
}

// TestMessages_RoundTrip: each control message is read as it was written.
func TestMessages_RoundTrip(t *testing.T) {
	t.Parallel()
	l := stream.NewLayout("lockstep", "public", "t", false)
	hb := capture.Heartbeat{Snapshot: "5:9:7", Since: 5, Durable: "4:4:", High: 8, LSN: 1 << 40, Published: "p"}
	cursor := lockstep.Cursor{Incarnation: "I", Epoch: "e", Seq: 12}
	epochs := stream.Epochs{{"e", 3}}
	msg := stream.NewHeartbeat(l, hb, capture.Source{Database: "app"}, epochs, 6, 17, cursor)
	msg.Header.Set(stream.HighHeader, "8")
	if got, err := stream.ParseHeartbeat(msg.Header, msg.Data); err != nil || got != hb {
		t.Errorf("heartbeat %+v came back as %+v, %v", hb, got, err)
	}
	if d, err := lockstep.Decode(msg.Data); err != nil || d.Control.Cursor != cursor.String() || d.Control.Timestamp != 17 {
		t.Errorf("heartbeat's document %s: %v", msg.Data, err)
	}
	if got := msg.Header.Get(stream.FloorHeader); got != "6" {
		t.Errorf("heartbeat has the floor %q, want 6", got)
	}
	for _, name := range []string{stream.HighHeader} {
		h := nats.Header{stream.HighHeader: {"8"}, stream.DurableHeader: {"4:4:"}}
		h.Del(name)
		if _, err := stream.ParseHeartbeat(h, msg.Data); !errors.Is(err, stream.ErrLayout) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	if _, err := stream.ParseHeartbeat(msg.Header, []byte(`{"control":true,"type":"other"}`)); !errors.Is(err, stream.ErrLayout) {
		t.Errorf("another type: %v", err)
	}
	b := capture.Batch{Snapshot: "9:9:", Previous: "5:9:7", Durable: "4:4:", LSN: 1 << 40, After: [][]byte{[]byte("a"), {}}, Compare: true, Published: "p"}
	if got, err := stream.ParseBatch(stream.NewBatch(l, b).Data); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("batch %+v came back as %+v, %v", b, got, err)
	}
	for _, bad := range []string{"", "{}", "[]", `{"type":"other"}`} {
		if _, err := stream.ParseBatch([]byte(bad)); !errors.Is(err, stream.ErrLayout) {
			t.Errorf("batch %q: %v", bad, err)
		}
	}
	fence := stream.NewFence(l, "I", epochs, 6)
	if fence.Header.Get(stream.IncarnationHeader) != "I" || fence.Header.Get(stream.EpochsHeader) != "e@3" || fence.Header.Get(stream.FloorHeader) != "6" {
		t.Errorf("fence: %v", fence.Header)
	}
}

// TestCheckPrefix: CheckPrefix accepts only prefixes that are safe in every name.
func TestCheckPrefix(t *testing.T) {
	t.Parallel()
	for prefix, ok := range map[string]bool{
		"lockstep": true, "a_1": true, strings.Repeat("a", 30): true, strings.Repeat("a", 31): false,
		"": false, "A": false, "a.b": false, "a-b": false, "a*": false, ">": false, "a b": false, "_": false, "_lockstep": false,
	} {
		if err := stream.CheckPrefix(prefix); (err == nil) != ok {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}
