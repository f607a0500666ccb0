package main

import (
	"os"
	"slices"
	"testing"
)

// For each mutant, the code that it breaks stands exactly once in its file, and its test exists. So the test fails if code
// or tests change and the mutant does not.
func TestMutants_Apply(t *testing.T) {
	t.Chdir("../..")
	names := map[string]bool{}
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("two mutants are named %s", m.name)
		}
		names[m.name] = true
		src, err := os.ReadFile(m.file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.apply(string(src)); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if _, err := testFiles(m); err != nil {
			t.Error(err)
		}
	}
}

// A mutant is tried again if it, the file that it breaks, or the file of its test changed since a revision, or if it is
// new.
func TestChanges_Touch(t *testing.T) {
	t.Chdir("../..")
	src, err := os.ReadFile(here)
	if err != nil {
		t.Fatal(err)
	}
	m := mutants[slices.IndexFunc(mutants, func(m mutant) bool { return m.pkg == "./internal/e2e" })]
	tests, err := testFiles(m)
	if err != nil {
		t.Fatal(err)
	}
	same := entries(src)
	if len(same) != len(mutants) {
		t.Fatalf("the source has %d entries, want %d", len(same), len(mutants))
	}
	edited := entries(src)
	edited[m.name] += "\n"
	for _, tc := range []struct {
		name string
		c    changes
		want bool
	}{
		{"nothing", changes{was: same, is: same}, false},
		{"another file", changes{files: map[string]bool{"README.md": true}, was: same, is: same}, false},
		{"its file", changes{files: map[string]bool{m.file: true}, was: same, is: same}, true},
		{"its test", changes{files: map[string]bool{tests[0]: true}, was: same, is: same}, true},
		{"its entry", changes{was: edited, is: same}, true},
		{"new", changes{is: same}, true},
	} {
		if got, err := tc.c.touch(m); err != nil || got != tc.want {
			t.Errorf("%s changed: got %v, %v, want %v", tc.name, got, err, tc.want)
		}
	}
}
