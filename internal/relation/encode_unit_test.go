package relation_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"bridge/internal/relation"
)

// someTypes are invented types, with OIDs that are easy to read below.
var someTypes = relation.Types{
	1:  {Kind: relation.TypeString, Delim: ','},
	2:  {Kind: relation.TypeNumber, Delim: ','},
	3:  {Kind: relation.TypeBool, Delim: ','},
	4:  {Kind: relation.TypeTimestamp, Delim: ','},
	5:  {Kind: relation.TypeTimestampTZ, Delim: ','},
	6:  {Kind: relation.TypeJSON, Delim: ','},
	7:  {Kind: relation.TypeHstore, Delim: ','},
	8:  {Kind: relation.TypeVector, Elem: 2, Delim: ','},
	9:  {Kind: relation.TypeString, Delim: ';'},
	10: {Kind: relation.TypeServer, Delim: ','},
	11: {Kind: relation.TypeComposite, Delim: ',', Attributes: []relation.Attribute{{Name: "a", TypeOID: 2}, {Name: `"b`, TypeOID: 1}}},
	12: {Kind: relation.TypeDomain, Elem: 101, Delim: ','},
	13: {Kind: relation.TypeComposite, Delim: ',', Attributes: []relation.Attribute{
		{Name: "p", TypeOID: 11}, {Name: "ps", TypeOID: 111}, {Name: "d", TypeOID: 12}, {Name: "h", TypeOID: 107}, {Name: "t", TypeOID: 105},
	}},
	14: {Kind: relation.TypeComposite, Delim: ','},
	15: {Kind: relation.TypeComposite, Delim: ',', Attributes: []relation.Attribute{{Name: "s", TypeOID: 110}}},
	16: {Kind: relation.TypeComposite, Delim: ',', Attributes: []relation.Attribute{{Name: "self", TypeOID: 116}}},

	101: {Kind: relation.TypeArray, Elem: 1}, 102: {Kind: relation.TypeArray, Elem: 2}, 105: {Kind: relation.TypeArray, Elem: 5},
	107: {Kind: relation.TypeArray, Elem: 7}, 108: {Kind: relation.TypeArray, Elem: 8}, 109: {Kind: relation.TypeArray, Elem: 9},
	110: {Kind: relation.TypeArray, Elem: 10}, 111: {Kind: relation.TypeArray, Elem: 11}, 112: {Kind: relation.TypeArray, Elem: 12},
	113: {Kind: relation.TypeArray, Elem: 13}, 114: {Kind: relation.TypeArray, Elem: 14}, 116: {Kind: relation.TypeArray, Elem: 16},
}

func encoderOf(t testing.TB, oids ...uint32) *relation.Encoder {
	t.Helper()
	cols := make([]relation.Column, len(oids))
	for i, oid := range oids {
		cols[i] = relation.Column{Name: fmt.Sprintf("c%d", i), TypeOID: oid}
	}
	enc, err := relation.NewEncoder(someTypes, cols, nil)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func TestAppendObject(t *testing.T) {
	for _, tc := range []struct {
		oid        uint32
		text, want string
	}{
		{1, "", `""`},
		{1, "a\"\\\b\f\n\r\t\x01\x1f\x7f\u2028<>", `"a\"\\\b\f\n\r\t\u0001\u001f` + "\x7f\u2028" + `<>"`},
		{2, "-0.10e+5", `-0.10e+5`},
		{2, "-Infinity", `"-Infinity"`},
		{2, "01", `"01"`},
		{5, "2006-01-02 15:04:05.9-07", `"2006-01-02T15:04:05.9-07:00"`},
		{5, "10000-01-02 15:04:05+05:53:28 BC", `"10000-01-02T15:04:05+05:53:28 BC"`},
		{6, `{"a" : 1e400}`, `{"a" : 1e400}`},
		{7, `"a\"\\"=>"NULL", "b"=>NULL`, `{"a\"\\": "NULL", "b": null}`},
		{8, "1 -2 3", `[1,-2,3]`},
		{10, `{"as":"it is"}`, `{"as":"it is"}`},
		{102, "[0:1][5:5]={{1},{NULL}}", `[[1],[null]]`},
		{101, `{"a,b","NULL","",NULL,"\"\\\\"}`, `["a,b","NULL","",null,"\"\\\\"]`},
		{108, `{"1 2",3,""}`, `[[1,2],[3],[]]`},
		{109, `{(1,1),(0,0);(2,2),(0,0)}`, `["(1,1),(0,0)","(2,2),(0,0)"]`},
		{112, `{"{1,\"\\\"\"}",NULL}`, `[["1","\""],null]`},
		{11, `(1,"a ""b"" \\")`, `{"a":1,"\"b":"a \"b\" \\"}`},
		{11, `(,)`, `{"a":null,"\"b":null}`},
		{11, `(,"")`, `{"a":null,"\"b":""}`},
		{
			13, `("(1,"",)"")","{""(,\\""(,\\"")"",NULL}",,"{""\\""a\\""=>NULL""}",{})`,
			`{"p":{"a":1,"\"b":",)"},"ps":[{"a":null,"\"b":"(,"},null],"d":null,"h":[{"a": null}],"t":[]}`,
		},
		{114, `{(),NULL}`, `[{},null]`},
	} {
		got, err := encoderOf(t, tc.oid).AppendObject([]byte("x"), [][]byte{[]byte(tc.text)})
		if want := `x{"c0":` + tc.want + "}"; err != nil || string(got) != want {
			t.Errorf("type %d: %s\n got %s %v\nwant %s", tc.oid, tc.text, got, err, want)
		}
	}
}

// TestAppendObject_EveryByte puts each byte at each place of a word.
func TestAppendObject_EveryByte(t *testing.T) {
	enc := encoderOf(t, 1)
	escapes := map[byte]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	for b := range 256 {
		want := string([]byte{byte(b)})
		if e, ok := escapes[byte(b)]; ok {
			want = e
		} else if b < ' ' {
			want = fmt.Sprintf(`\u%04x`, b)
		}
		for place := range 20 {
			before, after := strings.Repeat("!", place), strings.Repeat("\xff", 19-place)
			for _, twice := range []int{1, 2} {
				got, err := enc.AppendObject(nil, [][]byte{[]byte(before + strings.Repeat(string([]byte{byte(b)}), twice) + after)})
				if w := `{"c0":"` + before + strings.Repeat(want, twice) + after + `"}`; err != nil || string(got) != w {
					t.Fatalf("byte %#x: got %q %v, want %q", b, got, err, w)
				}
			}
		}
	}
}

func TestAppendObject_Errors(t *testing.T) {
	for _, tc := range []struct {
		oid   uint32
		stale bool
		texts []string
	}{
		{3, false, []string{"", "true", "x"}},
		{4, false, []string{"", "2020-01-01", "01/02/2006 15:04:05", "Mon Jan 02 15:04:05 2006", "02.01.2006 15:04:05", "2020-01-01T00:00:00", "2020-01-01 00:00:00\""}},
		{5, false, []string{"2006-01-02 15:04:05", "2006-01-02 15:04:05 UTC"}},
		{7, false, []string{`"a"`, `"a"=>`, `"a"=>"b`, `"a"=>"b",`, `"a"=>"b" "c"=>NULL`, `a=>"b"`, `"a`, `"a\`, `"a"=>NUL`}},
		{101, false, []string{"", "{", "}", "{{}}", "{,}", "{a", "{a,", "{a,}", `{"a}`, `{"a\`, `{"a"b}`, "{a}}", "{a}b", "{a\"}", "[1:1]", "[", "a", "{{a},b", "{{{{{{{a}}}}}}}"}},
		{11, false, []string{"", "(", ")", "1,2", "(1,2", `(1,"2)`, `(1,"2"x)`, `(1,2)3)`, `(1,2"")`, `(1,"\)`, "((1,2)"}},
		{11, true, []string{"()", "(1)", "(1,2,3)", "(,,)"}},
		{13, true, []string{`("(1)",,,,)`, `(,"{""(1,2,3)""}",,,)`}},
		{14, true, []string{"(1)", "(,)"}},
	} {
		for _, text := range tc.texts {
			got, err := encoderOf(t, 1, tc.oid).AppendObject([]byte("x"), [][]byte{nil, []byte(text)})
			if err == nil || string(got) != "x" || errors.Is(err, relation.ErrStaleTypes) != tc.stale {
				t.Errorf("type %d: %s: got %s %v, want an error, stale %v", tc.oid, text, got, err, tc.stale)
			}
		}
	}
	if _, err := encoderOf(t, 1, 1).AppendObject(nil, [][]byte{nil}); err == nil {
		t.Error("got no error for one value of two")
	}
}

func TestNewEncoder(t *testing.T) {
	cols := []relation.Column{{Name: "gone", TypeOID: 999}, {Name: "a", TypeOID: 1}, {Name: "server", TypeOID: 15}, {Name: "b", TypeOID: 2}}
	if _, err := relation.NewEncoder(someTypes, cols, nil); !errors.Is(err, relation.ErrStaleTypes) {
		t.Errorf("got %v, want ErrStaleTypes", err)
	}
	if _, err := relation.NewEncoder(someTypes, []relation.Column{{TypeOID: 16}}, nil); err == nil {
		t.Error("got no error for a type made of itself")
	}
	for _, tc := range []struct{ skip, want, server string }{
		{"0", `{"a":"x","server":{},"b":1}`, "[false false true false]"},
		{"01", `{"server":{},"b":1}`, "[false false true false]"},
		{"023", `{"a":"x"}`, "[false false false false]"},
		{"0123", `{}`, "[false false false false]"},
	} {
		enc, err := relation.NewEncoder(someTypes, cols, func(i int) bool { return strings.Contains(tc.skip, fmt.Sprint(i)) })
		if err != nil {
			t.Fatal(err)
		}
		got, err := enc.AppendObject(nil, [][]byte{[]byte("?"), []byte("x"), []byte("{}"), []byte("1")})
		if err != nil || string(got) != tc.want || fmt.Sprint(enc.ServerSide()) != tc.server {
			t.Errorf("skip %s: got %s %v, ServerSide %v, want %s %s", tc.skip, got, err, enc.ServerSide(), tc.want, tc.server)
		}
	}
}

func TestAppendObject_DoesNotAllocate(t *testing.T) {
	enc := encoderOf(t, 2, 1, 5, 2, 3, 11)
	values := [][]byte{
		[]byte("549163"), []byte("mydomain.com"), []byte("2024-05-06 07:08:09.123456+00"), []byte("1.50"), nil, []byte(`(1,"a ""b""")`),
	}
	dst := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := enc.AppendObject(dst, values); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations a row", n)
	}
}

// FuzzAppendObject: any text becomes JSON or an error. The type json is left out,
// because its values are appended as they are.
func FuzzAppendObject(f *testing.F) {
	for _, seed := range []string{
		"", "t", "-1.5e3", "NaN", "2006-01-02 15:04:05.9-07 BC", `"a\"\\"=>"NULL", "b"=>NULL`, "1 2 3", "{}", "{{1,2},{NULL,4}}", "[0:1]={1,2}",
		`{"a,b","NULL","",NULL,"\"\\\\"}`, "{(1,1),(0,0);(2,2),(0,0)}", `{"{1,\"\\\"\"}",NULL}`, `(1,"a ""b"" \\")`, "(,)", "()", "{(),()}",
		`("(1,"",)"")","{""(,\\""(,\\"")"",NULL}",,"{""\\""a\\""=>NULL""}",{})`, `{"(\"(1,\"\"x\"\")\",,,,)"}`,
	} {
		f.Add([]byte(seed))
	}
	oids := []uint32{1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 14, 101, 102, 105, 107, 108, 109, 111, 112, 113, 114}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, oid := range oids {
			enc := encoderOf(t, oid)
			got, err := enc.AppendObject([]byte("x"), [][]byte{text})
			if err != nil && string(got) != "x" || err == nil && !json.Valid(got[1:]) {
				t.Errorf("type %d: got %q %v", oid, got, err)
			}
			again, err2 := enc.AppendObject([]byte("x"), [][]byte{text})
			if string(again) != string(got) || (err2 == nil) != (err == nil) {
				t.Errorf("type %d: got %q %v the first time, then %q %v", oid, got, err, again, err2)
			}
		}
	})
}

func BenchmarkAppendObject(b *testing.B) {
	for _, bc := range []struct {
		name   string
		oids   []uint32
		values []string
	}{
		{"5 columns", []uint32{2, 1, 5, 2, 3}, []string{"549163", "mydomain.example.com", "2024-05-06 07:08:09.123456+00", "12345678901234567890.1234", "t"}},
		{"text of 1 KB", []uint32{1}, []string{strings.Repeat("0123456789abcdef", 64)}},
		{"text of 1 KB with escapes", []uint32{1}, []string{strings.Repeat("0123456789\nab\"de", 64)}},
		{"nested", []uint32{13, 101}, []string{
			`("(1,"",)"")","{""(,\\""(,\\"")"",NULL}",,"{""\\""a\\""=>NULL""}",{})`, `{a,b,"c d",NULL,"\"e\""}`,
		}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			enc, dst := encoderOf(b, bc.oids...), []byte(nil)
			values := make([][]byte, len(bc.values))
			for i, v := range bc.values {
				values[i] = []byte(v)
			}
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if dst, err = enc.AppendObject(dst[:0], values); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(dst)))
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
