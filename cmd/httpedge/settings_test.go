package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"bridge/cmd/internal/program"
)

var update = flag.Bool("update", false, "write the table of settings into docs/settings.md")

// The table of settings in docs/settings.md is what the program knows of them.
func TestSettings_DocumentIsTheProgram(t *testing.T) {
	t.Parallel()
	const file = "../../docs/settings.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(b), "<!-- settings: httpedge -->\n")
	got, after, ended := strings.Cut(rest, "<!-- end of settings -->")
	if !found || !ended {
		t.Fatal("docs/settings.md has no table of the edge's settings between its two marks")
	}
	want := program.MarkdownSettings(prefix, &Config{})
	switch {
	case got == want:
	case *update:
		text := before + "<!-- settings: httpedge -->\n" + want + "<!-- end of settings -->" + after
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("docs/settings.md has another table than the program; run make docs, or put this there:\n\n%s", want)
	}
}
