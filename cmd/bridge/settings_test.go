package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"bridge/cmd/internal/program"
	"bridge/internal/relation"
)

var update = flag.Bool("update", false, "write the table of settings into docs/settings.md")

const settingsFile = "../../docs/settings.md"

// The table of settings in docs/settings.md is what the program knows of them.
func TestSettings_DocumentIsTheProgram(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(settingsFile)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(b), "<!-- settings: bridge -->\n")
	got, after, ended := strings.Cut(rest, "<!-- end of settings -->")
	if !found || !ended {
		t.Fatal("docs/settings.md has no table of the bridge's settings between its two marks")
	}
	want := program.MarkdownSettings(prefix, &Config{})
	switch {
	case got == want:
	case *update:
		text := before + "<!-- settings: bridge -->\n" + want + "<!-- end of settings -->" + after
		if err := os.WriteFile(settingsFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("docs/settings.md has another table than the program; run make docs, or put this there:\n\n%s", want)
	}
}

// docs/settings.md has a line for each option of BRIDGE_TABLES, and no others.
func TestSettings_OptionsOfRelations(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(settingsFile)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "\n| option | meaning |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if !found {
		t.Fatal("docs/settings.md has no table of options")
	}
	var got []string
	for line := range strings.SplitSeq(table, "\n") {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "| `"), "=")
		got = append(got, name)
	}
	_, err = relation.ParseSpecs("a(nonsense=1)")
	if err == nil {
		t.Fatal("an option that there is not was taken")
	}
	_, names, _ := strings.Cut(err.Error(), "the options are ")
	if list := strings.Join(got, ", "); list != names {
		t.Errorf("docs/settings.md describes the options %s; there are %s", list, names)
	}
}
