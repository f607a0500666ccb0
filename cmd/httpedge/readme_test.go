package main

import (
	"os"
	"strings"
	"testing"

	"bridge/cmd/internal/program"
)

// The README's table of settings is what the program knows of them.
func TestReadme_SettingsAreTheProgram(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), "<!-- settings: httpedge -->\n")
	got, _, ended := strings.Cut(rest, "<!-- end of settings -->")
	if !found || !ended {
		t.Fatal("README.md has no table of the edge's settings between its two marks")
	}
	if want := program.MarkdownSettings(prefix, &Config{}); got != want {
		t.Errorf("README.md has another table of settings than the program; put this there:\n\n%s", want)
	}
}
