package relation_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"bridge/internal/relation"
	"bridge/internal/testenv"
)

// A row is found by its key as Postgres prints it, whatever the types of the key's columns are, also beside a column of
// another type.
func TestKeysCondition_OfEveryType_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, "CREATE EXTENSION citext", "CREATE TYPE pair AS (a int, b numeric)", "CREATE TYPE single AS (a text)",
		"CREATE TYPE nested AS (p pair, c text)", "CREATE DOMAIN couple AS pair", "CREATE DOMAIN price AS numeric", "CREATE DOMAIN prices AS numeric[]",
		"CREATE TYPE mood AS ENUM ('low', 'high')", `CREATE TYPE "Odd ""Name" AS (x int)`)
	conn := testenv.Conn(t, db)
	for typ, values := range map[string][]string{
		"int": {"1", "-7"}, "numeric": {"1.0", "1e-9", "NaN"}, "float8": {"0", "0.1", "Infinity"}, "text": {"", "a,b", `"`, "NULL"},
		"varchar(5)": {"abc"}, "char(5)": {"ab"}, "bpchar": {"a", "b "}, "citext": {"Ab"}, `"char"`: {"x", `\377`}, "name": {"n"}, "bytea": {`\x00ff`, `\x`},
		"uuid": {"11111111-2222-3333-4444-555555555555"}, "bool": {"t"}, "date": {"2026-02-03", "infinity"}, "timestamptz": {"2026-02-03 04:05:06.789+00"},
		"interval": {"1 day 02:00:00"}, "inet": {"10.0.0.1"}, "cidr": {"10.0.0.0/8"}, "macaddr": {"08:00:2b:01:02:03"}, "bit(3)": {"101"}, "varbit": {"1"},
		"jsonb": {`{"a": 1.0}`}, "money": {"$1.00"}, "numrange": {"[1.0,2.0)", "empty"}, "nummultirange": {"{[1.0,2.0)}"}, "tsvector": {"'a':1"},
		"numeric[]": {"{1.0,2}", "{}"}, "text[]": {`{a,"b,c",NULL}`}, "pair": {"(1,1.0)", "(,2)"}, "single": {`("a,b")`, "(x)"}, "nested": {`("(1,2.0)","c d")`},
		"couple": {"(1,1.0)"}, "price": {"1.00"}, "prices": {"{1.0}"}, "pair[]": {`{"(1,1.0)"}`}, "mood": {"high"}, `"Odd ""Name"`: {"(1)"}, "xid8": {"7"}, "regclass": {"pg_class"},
	} {
		for _, key := range []string{"k", "k, other", "other, k"} {
			testenv.Exec(t, db, "DROP TABLE IF EXISTS t", fmt.Sprintf("CREATE TABLE t (k %s, other int DEFAULT 5, txid bigint DEFAULT 1, PRIMARY KEY (%s))", typ, key))
			for _, v := range values {
				testenv.Exec(t, db, fmt.Sprintf("INSERT INTO t (k) VALUES (%s)", "'"+strings.ReplaceAll(v, "'", "''")+"'"))
			}
			specs, err := relation.ParseSpecs("t")
			if err != nil {
				t.Fatal(err)
			}
			rel, _, err := relation.Load(t.Context(), conn, specs.List[0])
			if err != nil {
				t.Errorf("%s: %v", typ, err)
				continue
			}
			var keys [][][]byte
			for _, v := range values {
				k := [][]byte{[]byte(v)}
				if typ == "char(5)" {
					k[0] = fmt.Appendf(nil, "%-5s", v)
				}
				switch key {
				case "k, other":
					k = append(k, []byte("5"))
				case "other, k":
					k = append([][]byte{[]byte("5")}, k...)
				}
				keys = append(keys, k)
			}
			params := relation.KeyArrays(slices.Values(keys), len(rel.Key))
			res := conn.PgConn().ExecParams(t.Context(), "SELECT k::text FROM t WHERE "+relation.KeysCondition(rel, key), params, nil, nil, nil).Read()
			if res.Err != nil || len(res.Rows) != len(values) {
				t.Errorf("%s, key (%s): %d rows found, %v; want %q", typ, key, len(res.Rows), res.Err, values)
			}
		}
	}
}
