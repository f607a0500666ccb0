package doctest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sees is the head of a table's first column, in which every span in back-ticks is a text or a metric of the programs.
const sees = "you see"

var (
	metric    = regexp.MustCompile(`\blockstep_(?:bridge|edge|broker)_(\w+)`)
	formatted = regexp.MustCompile(`%(?:\[\d+\])?[-+# 0]*(?:\d+)?(?:\.\d+)?[a-zA-Z]`)
)

func TestDocuments_MessagesExist(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	said := literals(t, repo)
	quoted := 0
	for _, doc := range repo.documents() {
		for _, m := range messages(repo.text[doc]) {
			quoted++
			if metric.FindString(m.text) != m.text && !said.has(m.text) {
				t.Errorf("%s:%d: no program says `%s`", doc, m.line, m.text)
			}
		}
		for _, s := range spans(repo.text[doc]) {
			if !said.hasMetric(s.text) {
				t.Errorf("%s:%d: there is no metric %s", doc, s.line, s.text)
			}
		}
	}
	if quoted == 0 {
		t.Errorf("no document has a table with a column %q", sees)
	}
}

// texts are the constant strings of the programs. A verb of a format is replaced by "…".
type texts []string

// has tells whether a text says all parts of the message, which "…" divides, in their order.
func (s texts) has(message string) bool {
	parts := strings.Split(message, "…")
	return slices.ContainsFunc(s, func(text string) bool {
		for _, part := range parts {
			_, after, found := strings.Cut(text, strings.TrimSpace(part))
			if !found {
				return false
			}
			text = after
		}
		return true
	})
}

// hasMetric tells whether every metric that a span names is one that a program makes.
func (s texts) hasMetric(span string) bool {
	for _, m := range metric.FindAllStringSubmatch(span, -1) {
		if !slices.Contains(s, m[0]) && !slices.Contains(s, m[1]) {
			return false
		}
	}
	return true
}

// literals are the texts of all Go files that are shipped.
func literals(t *testing.T, r *repo) texts {
	t.Helper()
	var found texts
	for name, text := range r.text {
		if path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || !shipped(name) {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			s, constant := literal(e)
			if constant {
				found = append(found, formatted.ReplaceAllString(s, "…"))
			}
			return !constant
		})
	}
	return found
}

// literal is the value of a string literal, or of several that are added.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		left, constant := literal(e.X)
		right, also := literal(e.Y)
		return left + right, constant && also && e.Op == token.ADD
	}
	return "", false
}

// shipped tells whether a file is part of the programs, not of tests and tools.
func shipped(name string) bool {
	for _, tool := range []string{"simtest", "testenv", "mutants", "stacktest", "demo", "archtest", "doctest", "e2e"} {
		if strings.HasPrefix(name, "internal/"+tool+"/") {
			return false
		}
	}
	return strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "lockstep/")
}

// messages are the spans in the first column of the tables that show what people see.
func messages(text string) []located {
	var found []located
	inside := false
	for i, line := range prose(text) {
		cell, isRow := strings.CutPrefix(line, "|")
		cell, _, _ = strings.Cut(cell, "|")
		switch {
		case !isRow:
			inside = false
		case strings.TrimSpace(cell) == sees:
			inside = true
		case inside:
			for _, m := range span.FindAllStringSubmatch(cell, -1) {
				found = append(found, located{m[1], i + 1})
			}
		}
	}
	return found
}

func TestMessages_AreFound(t *testing.T) {
	t.Parallel()
	doc := "| you see | why |\n|---|---|\n| `one`, or `two … three` | `no` |\n| four | `no` |\n\n| what | why |\n|---|---|\n| `no` | `no` |\n"
	if got, want := messages(doc), []located{{"one", 3}, {"two … three", 3}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTexts_HaveMessages(t *testing.T) {
	t.Parallel()
	r := &repo{text: map[string]string{
		"internal/a/a.go": "package a\nvar x = f(\"the slot %[2]q keeps %.1f MB\" + \" of WAL\", y+\" too\", `raw %d`)\nconst n = \"rows_total\"\n",
		"cmd/b/b.go":      "package main\nimport \"fmt\"\nvar d = \"lockstep_bridge_lag_seconds\"\n",
		"bench/c.go":      "package c\nvar s = \"no program\"\n", "internal/a/a_test.go": "package a\nvar s = \"no program\"\n", "internal/demo/d.go": "package d\nvar s = \"no program\"\n",
	}}
	s := literals(t, r)
	for message, said := range map[string]bool{
		"the slot … keeps … MB of WAL": true, "keeps … MB of WAL": true, "the slot": true, "… MB of WAL": true, "the slot … of WAL": true,
		"keeps … the slot": false, "the slot keeps": false, "too": true, "raw …": true, "rows_total": true, "no program": false, "package": false,
	} {
		if s.has(message) != said {
			t.Errorf("%q: got said %v, want %v", message, !said, said)
		}
	}
	for name, made := range map[string]bool{
		"lockstep_edge_rows_total": true, "lockstep_bridge_lag_seconds": true, "lockstep_edge_row_total": false, "lockstep_edge_lag_seconds": false,
		"lockstep_edge_rows_tot": false, "rate(lockstep_edge_rows_total[10m]) > 0": true, "rate(lockstep_edge_row_total[10m])": false, "lockstep_other_rows": true, "rows": true, "LOCKSTEP_LEASES": true,
	} {
		if s.hasMetric(name) != made {
			t.Errorf("%s: got made %v, want %v", name, !made, made)
		}
	}
}
