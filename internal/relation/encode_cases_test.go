package relation_test

// typeCase has values of one base, range or multirange type, or of one of Postgres'
// own domains.
type typeCase struct {
	// literals are quoted, exprs are used as they are.
	literals, exprs []string
	// exclude says why the case has no values; NULL is tested all the same.
	exclude string
}

func lit(literals ...string) typeCase { return typeCase{literals: literals} }
func expr(exprs ...string) typeCase   { return typeCase{exprs: exprs} }
func internal(reason string) typeCase { return typeCase{exclude: reason} }
func (c typeCase) with(exprs ...string) typeCase {
	c.exprs = append(c.exprs, exprs...)
	return c
}

// extensions are those that add types.
var extensions = []string{
	"hstore", "citext", "ltree", "isn", "cube", "seg", "intarray", "lo", "earthdistance", "pg_trgm", "tablefunc",
}

// anyBytes is a text with all characters from 1 to 0x7f, and some others.
const anyBytes = `(SELECT string_agg(chr(i), '') FROM generate_series(1, 127) i) || 'äß€😀' || chr(128) || chr(8232) || chr(8233)`

var nasty = []string{
	"", " ", "a", "NULL", "null", "Null", `"`, `\`, `""`, `\\`, `\"`, `"\`, ",", ";", "|", "{}", "{", "}", "()", "(", ")", "[1:1]={1}",
	"a b", "\t", "\n", "\r\n", "\v", "\f", "\b", "\x01", "\x1f", "\x7f", "äß€😀", `{"a,b",NULL}`, `("a ""b""",)`, "'", `'\''`, "=>", "/", "<>&", "\u2028",
}

var timestamps = []string{
	"2020-02-29 00:00:00", "1999-12-31 23:59:59.999999", "2020-01-01 12:34:56.1", "infinity", "-infinity", "0044-03-15 01:02:03 BC",
	"4713-01-01 00:00:00 BC", "0001-12-31 23:59:59.5 BC", "0001-01-01", "10000-01-01", "294276-12-31 23:59:59.999999", "epoch",
}

var numbers = lit("0", "1", "-1", "7", "10", "-12", "127")

// typeCases has an entry for each type of Postgres and of the extensions, by
// pg_type.typname. TestEncode_EveryType fails for a type without one.
var typeCases = map[string]typeCase{
	"bool": lit("t", "f"),
	"int2": numbers.with("'-32768'", "'32767'"),
	"int4": numbers.with("'-2147483648'", "'2147483647'"),
	"int8": numbers.with("'-9223372036854775808'", "'9223372036854775807'", "'9007199254740993'"),
	"float4": numbers.with("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'1e20'", "'1.17549435e-38'", "'3.4028235e38'", "'0.1'", "'16777217'",
		"'1e-45'"),
	"float8": numbers.with("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'1e20'", "'2.2250738585072014e-308'", "'1.7976931348623157e308'",
		"'5e-324'", "'0.1'", "'0.30000000000000004'", "'9007199254740993'", "'1e15'", "'1e16'", "'-1e-5'"),
	"numeric": numbers.with("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'0.0'", "'0.000'", "'1.10'", "'-0.5'", "'1e50'", "'1e-30'",
		"'12345678901234567890123456789012345678901234567890.12345678901234567890'", "'-99999999999999999999'", "repeat('9', 1000)"),
	"money":   lit("0", "12.34", "-1234567.89", "92233720368547758.07", "-92233720368547758.08"),
	"text":    lit(nasty...).with(anyBytes, "repeat(E'x\"y\\\\', 5000)"),
	"varchar": lit(nasty...).with(anyBytes),
	"bpchar":  lit(nasty...).with(anyBytes),
	"name":    lit(nasty...).with("repeat('ä', 31)"),
	"char":    lit("a", "", `"`, `\`, ",", "{", "}", "(", ")", " ", "\n", "\x01"),
	"bytea":   lit("", `\x00`, `\x00ff5c22`, `abc`, `\134\000`),
	"json": lit(`{"a":  1, "b" : [1,2 , {}], "a":"\u00e9\n"}`, `"x"`, `null`, ` [ ] `, `1e400`, "{\n\t\"k\"\r\n: \"}\\\"{,(\"\n}", `"é\\ \""`, `-0`,
		`12345678901234567890.10`, `true`, "\"\x7f\u2028\""),
	"jsonb": lit(`{"b":  1, "a" : [1,2 , {}], "a":"\u00e9\n"}`, `"x"`, `null`, `[]`, `1e40`, "{\n\"k\": \"}\\\"{,(\"\n}", `-0`, `1.10`, `"\u0001\\"`,
		`12345678901234567890.10`, `true`),
	"jsonpath":    lit(`$`, `$."a b"[*] ? (@.x > 1 && @.y like_regex "^\\d+$")`, `strict $.a`),
	"xml":         lit(`<a/>`, `<?xml version="1.0" encoding="UTF-8"?><a b="c">x &lt; "y" \ </a>`, "a\n<b/>\t", ``),
	"date":        lit("2020-02-29", "infinity", "-infinity", "0044-03-15 BC", "4713-01-01 BC", "0001-01-01", "10000-01-01", "5874897-12-31", "epoch"),
	"timestamp":   lit(timestamps...),
	"timestamptz": lit(timestamps...).with("'2020-06-01 12:00:00+05:30'", "'1883-11-18 12:00:00 America/New_York'", "'0001-01-01 00:00:00+14'"),
	"time":        lit("00:00", "23:59:59.999999", "24:00", "12:34:56.1"),
	"timetz":      lit("00:00+00", "23:59:59.999999-12:30", "24:00+05:53:28", "12:34:56.1+15:59"),
	"interval": lit("0", "1 year 2 mons 3 days 04:05:06.789", "-1 day +1 hour", "-178000000 years", "178000000 years", "1 mon -1 day", "00:00:00.000001",
		"-00:00:01"),
	"uuid":    lit("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
	"bit":     lit("", "0", "1", "10101"),
	"varbit":  lit("", "0", "1", "10101"),
	"inet":    lit("0.0.0.0", "192.168.1.1/24", "::1", "2001:db8::/32", "::ffff:1.2.3.4"),
	"cidr":    lit("0.0.0.0/0", "192.168.1.0/24", "2001:db8::/32"),
	"macaddr": lit("08:00:2b:01:02:03"), "macaddr8": lit("08:00:2b:01:02:03:04:05"),
	"point":    lit("(0,0)", "(-1.5,1e300)", "(NaN,Infinity)"),
	"line":     lit("{1,-1,0}", "{0.1,2,3}"),
	"lseg":     lit("[(0,0),(1,1)]"),
	"box":      lit("(1,1),(0,0)", "(1e10,2.5),(-3,-4)"),
	"path":     lit("((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"),
	"polygon":  lit("((0,0),(1,1),(2,0))"),
	"circle":   lit("<(0,0),1>"),
	"tsvector": lit("", `a:1A fat:2B,4C cat:5D`, `'it''s' 'a b' '\\' '"' ','`),
	"tsquery":  lit("", `fat & (rat | !cat)`, `'a b':*A <-> '\\'`, `'"'`),
	"oid":      lit("0", "4294967295"), "xid": lit("0", "4294967295"), "cid": lit("0", "4294967295"),
	"xid8": lit("0", "18446744073709551615"), "tid": lit("(0,0)", "(4294967295,65535)"), "pg_lsn": lit("0/0", "FFFFFFFF/FFFFFFFF"),
	"pg_snapshot": lit("10:20:10,14,15", "1:1:"), "txid_snapshot": lit("10:20:10,14,15", "1:1:"),
	"regclass": lit("pg_class", "-", "4000000000").with(`'"we ird,"'`), "regtype": lit("int4", "-", `"char"`, "text[]", "timestamp with time zone", "pg_class"),
	"regproc": lit("now", "-"), "regprocedure": lit("now()", "-", "abs(integer)", "pg_catalog.date_part(text,timestamp with time zone)"),
	"regoper": lit("0", "||/"), "regoperator": lit("0", "+(integer,integer)", "!~~*(text,text)", "-(NONE,integer)"),
	"regrole": expr("'-'::text", "'pg_monitor'::text"), "regnamespace": lit("pg_catalog", "-"), "regcollation": lit(`"C"`, "-", `"default"`),
	"regconfig": lit("english", "-"), "regdictionary": lit("simple", "-"),
	"refcursor":  lit(nasty...),
	"int2vector": lit("", "1", "1 -2 3"), "oidvector": lit("", "1", "1 4294967295 3"),
	"aclitem": expr(`makeaclitem('pg_monitor'::text::regrole, 'pg_read_all_data'::text::regrole, 'SELECT', true)`, `makeaclitem(0, 10, 'INSERT', false)`),

	"pg_node_tree":                 expr("(SELECT ev_action FROM pg_rewrite ORDER BY oid LIMIT 1)"),
	"pg_ndistinct":                 expr("(SELECT stxdndistinct FROM pg_statistic_ext_data)"),
	"pg_dependencies":              expr("(SELECT stxddependencies FROM pg_statistic_ext_data)"),
	"pg_mcv_list":                  expr("(SELECT stxdmcv FROM pg_statistic_ext_data)"),
	"gtsvector":                    internal("lives in GiST indexes; its input function refuses everything"),
	"pg_brin_bloom_summary":        internal("lives in BRIN indexes; its input function refuses everything"),
	"pg_brin_minmax_multi_summary": internal("lives in BRIN indexes; its input function refuses everything"),

	"int4range": lit("empty", "[1,5)", "(,)", "[3,]"), "int8range": lit("empty", "[1,5)", "(,9223372036854775807)"),
	"numrange":       lit("empty", "[1.10,5.0)", "(,)", "[-Infinity,NaN]"),
	"daterange":      lit("empty", "[2020-01-01,infinity)", "[0044-03-15 BC,)"),
	"tsrange":        lit("empty", "[2020-01-01,infinity]", `("0044-03-15 01:02:03 BC",)`),
	"tstzrange":      lit("empty", "[2020-01-01 00:00+02,infinity]", `("0044-03-15 01:02:03+00 BC",)`),
	"int4multirange": lit("{}", "{[1,5),[7,8)}"), "int8multirange": lit("{}", "{[1,5),(9,)}"),
	"nummultirange": lit("{}", "{[1.10,5.0),[6,7]}"), "datemultirange": lit("{}", "{[2020-01-01,2020-01-02)}"),
	"tsmultirange": lit("{}", "{[2020-01-01,2020-01-02)}"), "tstzmultirange": lit("{}", "{[2020-01-01,2020-01-02)}"),

	"cardinal_number": lit("0", "1"), "character_data": lit(nasty...), "sql_identifier": lit(nasty...), "time_stamp": lit("2020-01-01 01:02:03.44"),
	"yes_or_no": lit("YES", "NO"),

	"hstore": lit("", "a=>1", `"a b"=>NULL, c=>"NULL", ""=>"", "\"\\"=>"\\\"=>,", bb=>x, a=>y`, "k=>\"\n\t\x01{}(),\"", "a=>true, b=>1.10, c=>null").
		with("hstore('all', " + anyBytes + ")"),
	"citext": lit(nasty...),
	"ltree":  lit("", "Top.Science", "a_b.c"), "lquery": lit("*.a{1,2}.!b|c", "a@*%"), "ltxtquery": lit("a & !b@", "(a|b) & c*"),
	"ean13": lit("978-0-11-000222-4"), "isbn": lit("0-11-000222-9"), "isbn13": lit("978-0-11-000222-4"), "ismn": lit("9790060115615"),
	"ismn13": lit("9790060115615"), "issn": lit("1436-4522"), "issn13": lit("977-1436-452-00-8"), "upc": lit("220356483481"),
	"cube": lit("(1,2),(3,4.5)", "(1)", "()"), "seg": lit("1.10", "1..2", "~5", "<3", "5 .. "), "query_int": lit("1&(2|!3)", "42"),
	"lo": lit("1"), "earth": expr("ll_to_earth(1, 2)"),
	"ghstore":     internal("lives in GiST indexes; its input function refuses everything"),
	"gtrgm":       internal("lives in GiST indexes; its input function refuses everything"),
	"intbig_gkey": internal("lives in GiST indexes; its input function refuses everything"),
	"ltree_gist":  internal("lives in GiST indexes; its input function refuses everything"),
}
