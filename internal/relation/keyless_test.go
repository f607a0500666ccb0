package relation_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"bridge/internal/relation"
)

// For each value of a key, and each type, Go and Postgres agree on whether the row is keyless. A value with the JSON of
// another is keyless.
func TestForm_Keyless(t *testing.T) {
	tests := []struct{ name, create, typ, keyed, keyless string }{
		{"text", "", "text", `'' 'a' '[0:1]={1,2}'`, "NULL"},
		{"array", "", "int[]", `'{1,2}' '{}' '[1:1]={7}'`, `'[0:1]={1,2}' '[2:3]={1,2}' NULL`},
		{"array of text", "", "text[]", `'{"[0:1]={1,2}"}'`, `'[-1:-1]={a}' '[1:1][0:0]={{a}}'`},
		{"domain", "CREATE DOMAIN nums AS int[]", "nums", `'{1,2}'`, `'[0:1]={1,2}' NULL`},
		{"collation", "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)", "text[] COLLATE ci", `'{a}'`, `'[0:0]={a}'`},
		{"composite", "CREATE TYPE pair AS (a int, b int)", "pair", `'(1,2)' '(,)'`, "NULL"},
		{"array of composites", "CREATE TYPE pair AS (a int, b int)", "pair[]", `'{"(1,2)"}'`, `'[0:0]={"(1,2)"}'`},
		{"range", "", "int4range", `'[1,2)'`, "NULL"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := ready(t, tt.create+"; CREATE TABLE k (k "+tt.typ+" UNIQUE, txid bigint NOT NULL)")
			ctx := context.Background()
			for n, list := range []string{tt.keyed, tt.keyless} {
				for _, value := range strings.Fields(list) {
					if _, err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO k VALUES (%s, %d)", value, n)); err != nil {
						t.Fatal(err)
					}
				}
			}
			rel, _, err := relation.Load(ctx, conn, mustParse(t, "k").List[0])
			if err != nil {
				t.Fatal(err)
			}
			types, err := relation.LoadTypes(ctx, conn, rel.Columns)
			if err != nil {
				t.Fatal(err)
			}
			form, err := relation.NewForm(rel, types)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := conn.Query(ctx, "SELECT k::text, txid = 1, ("+form.KeylessSQL()+") FROM k r")
			if err != nil {
				t.Fatal(err)
			}
			var text *string
			var want, sql bool
			shown := map[string]string{}
			for rows.Next() {
				if err := rows.Scan(&text, &want, &sql); err != nil {
					t.Fatal(err)
				}
				values := make([][]byte, 2)
				if text != nil {
					values[0] = []byte(*text)
				}
				if got := form.Keyless(values); got != want || sql != want {
					t.Errorf("%q: in Go %v, in SQL %v, want %v", values[0], got, sql, want)
				}
				if want {
					continue
				}
				key, err := form.AppendKey(nil, values[:1])
				if err != nil {
					t.Fatal(err)
				}
				if other, ok := shown[string(key)]; ok {
					t.Errorf("%s and %s are both %s", *text, other, key)
				}
				shown[string(key)] = *text
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			if n, err := form.CountKeyless(ctx, conn, "true"); err != nil || int(n) != len(strings.Fields(tt.keyless)) {
				t.Errorf("counted %d, %v; want %d", n, err, len(strings.Fields(tt.keyless)))
			}
		})
	}
}

// A key whose type has arrays inside other values is refused: in JSON, some of its values are equal.
func TestForm_ArraysInsideKeys(t *testing.T) {
	for name, create := range map[string]string{
		"composite": "CREATE TYPE bag AS (a int[])", "nested composite": "CREATE TYPE inner_bag AS (a int[]); CREATE TYPE bag AS (i inner_bag)",
		"array of domains": "CREATE DOMAIN nums AS int[]; CREATE DOMAIN bag AS nums[]",
	} {
		t.Run(name, func(t *testing.T) {
			conn := ready(t, create+"; CREATE TABLE k (k bag PRIMARY KEY, txid bigint NOT NULL)")
			ctx := context.Background()
			rel, _, err := relation.Load(ctx, conn, mustParse(t, "k").List[0])
			if err != nil {
				t.Fatal(err)
			}
			types, err := relation.LoadTypes(ctx, conn, rel.Columns)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := relation.NewForm(rel, types); err == nil || !strings.Contains(err.Error(), "arrays inside other values") {
				t.Errorf("got %v", err)
			}
		})
	}
}
