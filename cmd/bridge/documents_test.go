package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bridge/cmd/internal/program"
	"bridge/internal/relation"
)

var (
	// call is what a call of the program begins with; what it ends with is for the shell.
	call     = regexp.MustCompile(`^\s*(?:[A-Z_]+=\S+ +)*(?:\./bin/)?bridge((?: +[^ |>&;#]+)*)`)
	entries  = regexp.MustCompile(`\bBRIDGE_TABLES='?([^'\s` + "`" + `]+)`)
	variable = regexp.MustCompile(`\b(?:BRIDGE|HTTPEDGE|NATS)_[A-Z_]+[A-Z]\b`)
)

// Documents call the program with commands and options that it has, and give
// BRIDGE_TABLES values that it takes.
func TestDocuments_CommandsAreTheProgram(t *testing.T) {
	t.Parallel()
	for file, text := range documents(t) {
		fenced := false
		for i, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(strings.TrimSpace(line), "```") {
				fenced = !fenced
			}
			for _, args := range calls(line, fenced) {
				if why := wrongCall(args); why != "" {
					t.Errorf("%s:%d: bridge %s: %s", file, i+1, strings.Join(args, " "), why)
				}
			}
			for _, m := range entries.FindAllStringSubmatch(line, -1) {
				if _, err := relation.ParseSpecs(m[1]); err != nil && !strings.Contains(m[1], "…") {
					t.Errorf("%s:%d: BRIDGE_TABLES=%s: %v", file, i+1, m[1], err)
				}
			}
		}
	}
}

// calls returns the arguments of the program's calls in a line: the line itself
// in a block of code, else each span in back-ticks.
func calls(line string, fenced bool) [][]string {
	spans := strings.Split(line, "`")
	var found [][]string
	for i, s := range spans {
		if m := call.FindStringSubmatch(s); m != nil && (fenced || i%2 == 1) {
			found = append(found, strings.Fields(m[1]))
		}
	}
	return found
}

// wrongCall says what is wrong with the arguments of a call, "" if nothing is.
func wrongCall(args []string) string {
	if len(args) == 0 || slices.Contains([]string{"--help", "--version", "COMMAND"}, args[0]) {
		return ""
	}
	all := manuals()
	i := slices.IndexFunc(all, func(m manual) bool { return m.name == args[0] })
	if i < 0 {
		return "there is no such command"
	}
	help := all[i].arguments + all[i].long
	for _, a := range args[1:] {
		if strings.HasPrefix(a, "-") && a != "--help" && !regexp.MustCompile(`(?m)(^|[\s\[])`+regexp.QuoteMeta(a)+`\b`).MatchString(help) {
			return "it has no option " + a
		}
	}
	return ""
}

// Documents name settings that the programs have.
func TestDocuments_SettingsExist(t *testing.T) {
	t.Parallel()
	known := program.MarkdownSettings(prefix, &Config{})
	edge, err := os.ReadFile("../httpedge/config.go")
	if err != nil {
		t.Fatal(err)
	}
	others := []string{
		"NATS_PORT", "BRIDGE_PORT", "HTTPEDGE_PORT", // of docker-compose.yml
	}
	for file, text := range documents(t) {
		for i, line := range strings.Split(text, "\n") {
			for _, name := range variable.FindAllString(line, -1) {
				field := strings.ReplaceAll(strings.TrimPrefix(name, "HTTPEDGE_"), "_", "")
				if strings.Contains(known, "`"+name+"`") || slices.Contains(others, name) ||
					strings.HasPrefix(name, "HTTPEDGE_") && regexp.MustCompile(`(?im)^\t`+field+`\s+string`).Match(edge) {
					continue
				}
				t.Errorf("%s:%d: there is no setting %s", file, i+1, name)
			}
		}
	}
}

// documents returns the Markdown files for users by their names.
func documents(t *testing.T) map[string]string {
	found := map[string]string{}
	read := func(file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found[file] = string(b)
	}
	for _, name := range []string{"README.md", "SECURITY.md", "CONTRIBUTING.md"} {
		read("../../" + name)
	}
	err := filepath.WalkDir("../../docs", func(file string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(file) == ".md" {
			read(file)
		}
		return err
	})
	if err != nil || len(found) < 10 {
		t.Fatalf("%d documents: %v", len(found), err)
	}
	return found
}

func TestCalls_WrongOnesAreFound(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		line          string
		fenced, right bool
	}{
		{"run `bridge sql -no-tombstones users` and then", false, true},
		{"run `bridge sql -no-tombstone users` and then", false, false},
		{"bridge runs by itself, says `no bridge captures it now`", false, true},
		{"`bridge tales users`", false, false},
		{`DATABASE_URL="$ADMIN_URL" ./bin/bridge sql 'users(capture=wal)' | psql -v ON_ERROR_STOP=1`, true, true},
		{`DATABASE_URL="$ADMIN_URL" ./bin/bridge sequel users`, true, false},
		{"   ./bin/bridge check --jason", true, false},
		{"bridge check --json", true, true},
		{"   ./bin/bridge &", true, true},
	} {
		why := ""
		for _, args := range calls(tc.line, tc.fenced) {
			why += wrongCall(args)
		}
		if (why == "") != tc.right {
			t.Errorf("%s: got %q, want right %v", tc.line, why, tc.right)
		}
	}
}
