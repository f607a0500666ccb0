package relation_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var (
	encodeSeed  = flag.Uint64("encode.seed", 0, "seed of TestEncode_Random; 0 takes the clock")
	encodeCount = flag.Int("encode.count", 3000, "values in TestEncode_Random")
)

// TestEncode_Random compares random values with to_json.
func TestEncode_Random(t *testing.T) {
	s := newSession(t)
	s.exec(`CREATE EXTENSION hstore; CREATE EXTENSION citext`)
	s.exec(`CREATE TYPE pair AS (a text, b int); CREATE DOMAIN words AS text[]; CREATE DOMAIN dpair AS pair;
		CREATE TYPE deep AS (p pair, "ps" pair[], w words, ws words[], h hstore, t timestamptz, j json, d dpair[], x citext[], n numeric);
		CREATE TYPE deeper AS (one deep, many deep[], b box[], bool bool)`)
	seed := *encodeSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	again := fmt.Sprintf("go test ./internal/relation -run TestEncode_Random -encode.seed=%d -encode.count=%d", seed, *encodeCount)
	t.Log("again:", again)
	r := &randomValues{rand.New(rand.NewPCG(seed, 0))}
	types := []string{
		"text", "numeric", "float8", "float4", "int8", "timestamp", "timestamptz", "date", "bool", "box", "json", "hstore", "citext", "bytea",
		"interval", "pair", "words", "deep", "deeper", "text[]", "numeric[]", "timestamptz[]", "box[]", "json[]", "hstore[]", "pair[]", "words[]",
		"deep[]", "deeper[]", "dpair", "dpair[]", "bytea[]", "bool[]", "float4[]",
	}
	for left := *encodeCount; left > 0 && !t.Failed(); left -= 100 {
		var exprs []string
		for range min(left, 100) {
			exprs = append(exprs, r.value(types[r.IntN(len(types))], 0))
		}
		if server := s.compare(exprs...); server != nil {
			t.Errorf("left to the server: %q", server)
		}
	}
}

// randomValues makes SQL expressions.
type randomValues struct{ *rand.Rand }

// compositeTypes has the attributes of the types that the test creates.
var compositeTypes = map[string][]string{
	"pair":   {"text", "int4"},
	"deep":   {"pair", "pair[]", "words", "words[]", "hstore", "timestamptz", "json", "dpair[]", "citext[]", "numeric"},
	"deeper": {"deep", "deep[]", "box[]", "bool"},
}

// value returns a random expression of the type.
func (r *randomValues) value(typ string, depth int) string {
	if r.IntN(6) == 0 {
		return "NULL::" + typ
	}
	if elem, ok := strings.CutSuffix(typ, "[]"); ok {
		return r.array(elem, depth+1)
	}
	if attrs, ok := compositeTypes[typ]; ok {
		fields := make([]string, len(attrs))
		for i, a := range attrs {
			fields[i] = r.value(a, depth+1)
		}
		return "ROW(" + strings.Join(fields, ", ") + ")::" + typ
	}
	switch typ {
	case "words":
		return r.array("text", depth) + "::words"
	case "dpair":
		return r.value("pair", depth) + "::dpair"
	case "hstore":
		return fmt.Sprintf("hstore(%s, %s)", r.list("text", r.IntN(4), "array_remove(%s, NULL)"), "NULL::text[]")
	}
	return r.scalar(typ)
}

func (r *randomValues) array(elem string, depth int) string {
	n := r.IntN(4)
	switch {
	case n == 0:
		return "'{}'::" + elem + "[]"
	case depth < 3 && r.IntN(4) == 0 && elem != "words":
		return "ARRAY[" + r.list(elem, n, "%s") + ", " + r.list(elem, n, "%s") + "]"
	case r.IntN(5) == 0:
		return fmt.Sprintf("array_fill(%s, ARRAY[%d, %d], ARRAY[%d, %d])", r.value(elem, depth+1), n, r.IntN(3)+1, r.IntN(9)-4, r.IntN(3))
	case elem == "words": // ARRAY[] would make one array of them
		list := "'{}'::words[]"
		for range n {
			list = "array_append(" + list + ", " + r.value(elem, depth+1) + ")"
		}
		return list
	}
	return r.list(elem, n, "%s")
}

func (r *randomValues) list(elem string, n int, format string) string {
	values := make([]string, n)
	for i := range values {
		values[i] = r.value(elem, 3)
	}
	return fmt.Sprintf(format, "ARRAY["+strings.Join(values, ", ")+"]::"+elem+"[]")
}

func (r *randomValues) text() string {
	if r.IntN(3) == 0 {
		return nasty[r.IntN(len(nasty))]
	}
	const alphabet = "\"\"\\\\,;{}()[] \t\n\r\v\f\b\x01\x1b\x1f\x7f'=>:/NULnulabcäß€😀\u00a0\u2028"
	runes := []rune(alphabet)
	b := make([]rune, r.IntN(12))
	for i := range b {
		b[i] = runes[r.IntN(len(runes))]
	}
	return string(b)
}

func (r *randomValues) digits(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('0' + r.IntN(10))
	}
	return string(b)
}

func (r *randomValues) scalar(typ string) string {
	special := func(values ...string) (string, bool) {
		return values[r.IntN(len(values))], r.IntN(8) == 0
	}
	var v string
	ok := false
	switch typ {
	case "text", "citext":
		v = r.text()
	case "bool":
		v = []string{"t", "f"}[r.IntN(2)]
	case "int4":
		v = fmt.Sprint(int32(r.Uint32()))
	case "int8":
		v = fmt.Sprint(int64(r.Uint64() >> r.IntN(64)))
	case "numeric":
		if v, ok = special("NaN", "Infinity", "-Infinity"); !ok {
			v = []string{"", "-"}[r.IntN(2)] + r.digits(1+r.IntN(40)) + "." + r.digits(r.IntN(40))
		}
	case "float8", "float4":
		if v, ok = special("NaN", "Infinity", "-Infinity", "-0"); !ok {
			v = fmt.Sprintf("%de%d", int32(r.Uint32()), r.IntN(40)-30)
		}
	case "box":
		v = fmt.Sprintf("(%d,%d.5),(%de30,%d)", r.IntN(9), r.IntN(9), r.IntN(9), r.IntN(9))
	case "json":
		j := fmt.Sprintf("(json_build_object(%s, %s)::text || E'\\n ')::json", pgQuote(r.text()), pgQuote(r.text()))
		return j
	case "bytea":
		return "decode('" + strings.Repeat("0a5c22ff", r.IntN(4)) + "', 'hex')"
	case "interval":
		v = fmt.Sprintf("%d mons %d days %d.%s secs", r.IntN(4000)-2000, r.IntN(400)-200, r.IntN(400000)-200000, r.digits(r.IntN(7)))
	case "date", "timestamp", "timestamptz":
		return r.datetime(typ)
	}
	return pgQuote(v) + "::" + typ
}

func (r *randomValues) datetime(typ string) string {
	if r.IntN(8) == 0 {
		return []string{"'infinity'::", "'-infinity'::"}[r.IntN(2)] + typ
	}
	// 4713 BC to 294276 AD, most of them near.
	days := r.IntN(40000) - 20000
	switch r.IntN(4) {
	case 0:
		days = -r.IntN(2450000)
	case 1:
		days = r.IntN(100_000_000)
	}
	micros := r.Int64N(86400_000_000)
	if r.IntN(3) == 0 {
		micros -= micros % 1_000_000
	}
	return fmt.Sprintf("(timestamp '2000-01-01' + interval '%d days %d microseconds')::%s", days, micros, typ)
}
