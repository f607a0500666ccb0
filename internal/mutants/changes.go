package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// here is the file that lists the mutants.
const here = "internal/mutants/mutants.go"

// changes is what changed since a git revision.
type changes struct {
	files map[string]bool
	was   map[string]string // the text of each mutant at the revision, by name
	is    map[string]string // the text of each mutant now, by name
}

func changesSince(rev string) (*changes, error) {
	c := &changes{files: map[string]bool{}}
	for _, args := range [][]string{{"diff", "--name-only", rev, "--"}, {"ls-files", "-o", "--exclude-standard"}} {
		out, err := exec.Command("git", args...).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		for line := range strings.Lines(string(out)) {
			c.files[strings.TrimSpace(line)] = true
		}
	}
	now, err := os.ReadFile(here)
	if err != nil {
		return nil, err
	}
	c.is = entries(now)
	if before, err := exec.Command("git", "show", rev+":"+here).Output(); err == nil {
		c.was = entries(before)
	}
	return c, nil
}

var entryName = regexp.MustCompile(`name: "([^"]+)"`)

// entries returns the text of each mutant in the source of the file that lists them, by name.
func entries(src []byte) map[string]string {
	list := map[string]string{}
	for text := range strings.SplitSeq(string(src), "\n\t{\n") {
		if m := entryName.FindStringSubmatch(text); m != nil {
			list[m[1]] = text
		}
	}
	return list
}

// touch reports whether a mutant must be tried again: it, the file that it breaks, or a file with its test has changed.
func (c *changes) touch(m mutant) (bool, error) {
	if c.files[m.file] || c.is[m.name] != c.was[m.name] {
		return true, nil
	}
	tests, err := testFiles(m)
	if err != nil {
		return false, err
	}
	for _, f := range tests {
		if c.files[f] {
			return true, nil
		}
	}
	return false, nil
}

// testFiles returns the files that have a mutant's test.
func testFiles(m mutant) ([]string, error) {
	function, err := regexp.Compile(`^func (` + m.test + `)\(`)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(m.pkg, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var found []string
	seen := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			name := function.FindSubmatch(s.Bytes())
			if name == nil {
				continue
			}
			seen[string(name[1])] = true
			if f := filepath.ToSlash(f); !slices.Contains(found, f) {
				found = append(found, f)
			}
		}
	}
	for name := range strings.SplitSeq(m.test, "|") {
		if !seen[name] {
			return nil, fmt.Errorf("mutant %s: no file of %s has the test %s", m.name, m.pkg, name)
		}
	}
	return found, nil
}
