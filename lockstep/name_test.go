package lockstep_test

import (
	"slices"
	"strings"
	"testing"

	"bridge/lockstep"
)

// words returns all words of 1 to most letters of an alphabet.
func words(alphabet string, most int) []string {
	all, last := []string{}, []string{""}
	for range most {
		var next []string
		for _, w := range last {
			for _, c := range []byte(alphabet) {
				next = append(next, w+string(c))
			}
		}
		all, last = append(all, next...), next
	}
	return all
}

// Every relation has one name, and that name stands for it alone (issue 14, number 6). It takes all pairs of
// short hostile identifiers, and identifiers that look like a name.
func TestRelationName_IsOfOneRelation(t *testing.T) {
	t.Parallel()
	idents := append(words(`a."/%`, 3), "public", "public.users", "users", "ümlaut 💡", " ", "\n", "\\", "..", strings.Repeat("n", 63), `"a.b"`, `."a`)
	idents = append(idents, lockstep.ReservedNames()...)
	of := map[string][2]string{}
	for _, schema := range idents {
		for _, table := range idents {
			for _, name := range []string{lockstep.RelationName(schema, table), lockstep.QualifiedName(schema, table)} {
				if s, tab, err := lockstep.ParseRelation(name); err != nil || s != schema || tab != table {
					t.Fatalf("%q.%q has the name %q, which is parsed to %q.%q, %v", schema, table, name, s, tab, err)
				}
				if other, ok := of[name]; ok && other != [2]string{schema, table} {
					t.Fatalf("%q is the name of %q and of %q.%q", name, other, schema, table)
				}
				of[name] = [2]string{schema, table}
			}
		}
	}
}

// What a name stood for before there were reserved names and schemas with dots, it stands for still.
func TestParseRelation_OldNamesStay(t *testing.T) {
	t.Parallel()
	for _, name := range append(words(`ab."`, 7), "users", "public.users", "Mixed Case", "a/b", `"x"`, "a.b.c", "_flats", "Metrics") {
		schema, table, ok := strings.Cut(name, ".")
		if !ok {
			schema, table = "public", name
		}
		s, tab, err := lockstep.ParseRelation(name)
		if served := schema != "" && table != ""; served && (err != nil || s != schema || tab != table) {
			t.Fatalf("%q is parsed to %q.%q, %v; it was %q.%q", name, s, tab, err, schema, table)
		}
	}
}

func TestParseRelation_Table(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, schema, table, canonical string }{
		{"users", "public", "users", "users"},
		{"public.users", "public", "users", "users"},
		{"sales.orders", "sales", "orders", "sales.orders"},
		{"Mixed Case", "public", "Mixed Case", "Mixed Case"},
		{`"x"`, "public", `"x"`, `"x"`},
		{"public.public.users", "public", "public.users", "public.public.users"},
		{"a.b.t", "a", "b.t", "a.b.t"},
		{`."a.b".t`, "a.b", "t", `."a.b".t`},
		{`."a"".b".t.u`, `a".b`, "t.u", `."a"".b".t.u`},
		{`."a.b".".c".d`, "a.b", `".c".d`, `."a.b".".c".d`},
		{"public._flat", "public", "_flat", "public._flat"},
		{"_flats", "public", "_flats", "_flats"},
		{"app.metrics", "app", "metrics", "app.metrics"},
		{"public.", "", "", ""},
		{".users", "", "", ""},
		{".", "", "", ""},
		{"..", "", "", ""},
		{"", "", "", ""},
		{`."a".t`, "", "", ""},
		{`."a.b"`, "", "", ""},
		{`."a.b".`, "", "", ""},
		{`."a.b"t`, "", "", ""},
		{`."a.b`, "", "", ""},
		{`.""`, "", "", ""},
		{`."`, "", "", ""},
		{"metrics", "", "", ""},
		{"_ticket", "", "", ""},
	} {
		schema, table, err := lockstep.ParseRelation(c.name)
		if schema != c.schema || table != c.table || (err != nil) != (c.table == "") {
			t.Errorf("%q is parsed to %q.%q, %v; want %q.%q", c.name, schema, table, err, c.schema, c.table)
		}
		if err == nil && lockstep.RelationName(schema, table) != c.canonical {
			t.Errorf("%q.%q has the name %q, want %q", schema, table, lockstep.RelationName(schema, table), c.canonical)
		}
	}
	if names := lockstep.ReservedNames(); slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, ".") }) {
		t.Error(names)
	}
}
