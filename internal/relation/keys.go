package relation

import (
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// A key is its text: what Postgres prints, and what clients see in the JSON. Two
// keys are the same if each column prints the same. Postgres' own equality may be
// coarser; see Column.Coarse. SQL that compares keys must then compare their
// spelling, too.

// SpellingSQL returns an expression for how Postgres prints the coarse columns of
// the key, and an empty string if there are none. column returns the expression for
// a column.
func SpellingSQL(rel *Relation, column func(n, i int) string) string {
	var coarse []string
	for n, i := range rel.Key {
		if rel.Columns[i].Coarse {
			coarse = append(coarse, column(n, i))
		}
	}
	return spellingSQL(coarse)
}

// spellingSQL has ROW, because casts to text don't print all types as Postgres
// does: that of bpchar removes blanks.
func spellingSQL(columns []string) string {
	if len(columns) == 0 {
		return ""
	}
	return "ROW(" + strings.Join(columns, ", ") + ")::text"
}

// KeyName returns a string that is different for each key.
func KeyName(key [][]byte) string {
	var name []byte
	for _, k := range key {
		name = append(strconv.AppendInt(name, int64(len(k)), 10), ':')
		name = append(name, k...)
	}
	return string(name)
}

// KeyArrays turns keys into array literals, one for each column of the key.
func KeyArrays(keys iter.Seq[[][]byte], columns int) [][]byte {
	arrays := make([][]byte, columns)
	for key := range keys {
		for i, value := range key {
			sep := byte(',')
			if arrays[i] == nil {
				sep = '{'
			}
			arrays[i] = append(arrays[i], sep, '"')
			for _, c := range value {
				if c == '"' || c == '\\' {
					arrays[i] = append(arrays[i], '\\')
				}
				arrays[i] = append(arrays[i], c)
			}
			arrays[i] = append(arrays[i], '"')
		}
	}
	for i := range arrays {
		if arrays[i] == nil {
			arrays[i] = []byte{'{'}
		}
		arrays[i] = append(arrays[i], '}')
	}
	return arrays
}

// KeysCondition returns the SQL condition that a key is one of several, given as
// one array parameter for each column, as KeyArrays returns them:
// (a, b) IN (SELECT unnest($1::a[]), unnest($2::b[])). In FROM, unnest would make
// the columns of a composite type columns of its own. Postgres has no arrays of
// arrays, so keys that are arrays are passed as text.
func KeysCondition(rel *Relation, columns string) string {
	values := make([]string, len(rel.Key))
	for n, i := range rel.Key {
		typ, cast := rel.Columns[i].Type, ""
		if strings.HasSuffix(typ, "[]") {
			typ, cast = "text", "::"+typ
		}
		values[n] = fmt.Sprintf("unnest($%d::%s[])%s", n+1, typ, cast)
	}
	return fmt.Sprintf("(%s) IN (SELECT %s)", columns, strings.Join(values, ", "))
}
