package main

import (
	"testing"
)

// TestMutants_Apply: the code that each mutant breaks stands where it says,
// once; so a mutant is noticed when the code moves on without it.
func TestMutants_Apply(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("two mutants are named %s", m.name)
		}
		names[m.name] = true
		dir := t.TempDir()
		if err := copyFile("../../"+m.file, dir+"/"+m.file); err != nil {
			t.Fatal(err)
		}
		if err := m.apply(dir); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
