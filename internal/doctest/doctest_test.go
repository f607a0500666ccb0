// Package doctest holds the documents of this module to its code and to each other. It needs no servers.
//
//   - Every name in back-ticks that the rules of names_test.go take for a name of Go must be declared. This holds for
//     DESIGN.md, CONTRIBUTING.md, docs/design and docs/adr.
//   - Every test that a document names must exist.
//   - Every relative link must lead to a file of the repository, and its anchor to a heading.
//   - A document with a limit must not be longer.
//   - A drawing that has a light and a dark form must be the same in both, but for its colours.
//
// Markdown in blocks of code is not checked, except for names of tests.
package doctest_test

import (
	"encoding/xml"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// limits are the longest that a document may be, in lines. A longer one is no overview any more: move a part of it to
// a document of its own.
func limits() map[string]int {
	return map[string]int{"README.md": 180, "DESIGN.md": 250}
}

func TestDocuments_NamesAreDeclared(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	code := parse(t, repo)
	for _, doc := range repo.documents() {
		if !namesCode(doc) {
			continue
		}
		code := *code
		code.home = home(doc)
		for i, line := range prose(repo.text[doc]) {
			if strings.Count(line, "`")%2 != 0 {
				t.Errorf("%s:%d: a span in back-ticks goes on in another line, where this test can't read it", doc, i+1)
			}
		}
		for _, span := range spans(repo.text[doc]) {
			if why := code.stale(span.text, repo); why != "" {
				t.Errorf("%s:%d: `%s`: %s", doc, span.line, span.text, why)
			}
		}
	}
}

func TestDocuments_TestsExist(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	code := parse(t, repo)
	for _, doc := range repo.documents() {
		for _, name := range testNames(repo.text[doc]) {
			if !code.tests[name.text] {
				t.Errorf("%s:%d: no test is called %s", doc, name.line, name.text)
			}
		}
	}
}

func TestDocuments_LinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	for _, doc := range repo.documents() {
		for _, l := range links(repo.text[doc]) {
			if why := repo.broken(doc, l.text); why != "" {
				t.Errorf("%s:%d: link to %s: %s", doc, l.line, l.text, why)
			}
		}
	}
}

func TestDocuments_KeepTheirLength(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	for doc, limit := range limits() {
		text, ok := repo.text[doc]
		if !ok {
			t.Errorf("%s does not exist", doc)
		}
		if n := strings.Count(text, "\n"); n > limit {
			t.Errorf("%s has %d lines, more than %d", doc, n, limit)
		}
	}
}

// The lines that README.md shows of the demo are lines that the demo prints.
func TestReadme_ShowsWhatTheDemoPrints(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	_, section, _ := strings.Cut(repo.text["README.md"], "`make demo` starts")
	section, _, found := strings.Cut(section, "`make test` runs")
	if !found {
		t.Fatal("README.md does not say what make demo and make test do")
	}
	shown := 0
	for line := range strings.SplitSeq(section, "\n") {
		line, indented := strings.CutPrefix(line, "    ")
		if !indented {
			continue
		}
		shown++
		found := false
		for file, text := range repo.text {
			found = found || path.Dir(file) == "internal/demo" && strings.Contains(text, line)
		}
		if !found {
			t.Errorf("the demo does not print %q", line)
		}
	}
	if shown == 0 {
		t.Error("README.md shows nothing of the demo")
	}
}

func TestDrawings_DifferInColoursAlone(t *testing.T) {
	t.Parallel()
	repo := readRepo(t)
	style := regexp.MustCompile(`(?s)<style>.*?</style>`)
	for light, text := range repo.text {
		if path.Ext(light) != ".svg" {
			continue
		}
		if err := xml.Unmarshal([]byte(text), new(struct{})); err != nil {
			t.Errorf("%s: %v", light, err)
		}
		dark, isLight := strings.CutSuffix(light, "-light.svg")
		if dark += "-dark.svg"; isLight && style.ReplaceAllString(text, "") != style.ReplaceAllString(repo.text[dark], "") {
			t.Errorf("%s and %s must differ in their style element alone", light, dark)
		}
	}
}

// namesCode tells whether a document's back-ticks are checked. Documents for users quote JSON, SQL and shells, where
// few words are names of Go.
func namesCode(doc string) bool {
	return doc == "DESIGN.md" || doc == "CONTRIBUTING.md" || path.Dir(doc) == "docs/design" || path.Dir(doc) == "docs/adr"
}

// home is the package whose types a document means where others have types of the same name.
func home(doc string) string {
	return map[string]string{
		"DESIGN.md": "poller", "docs/design/polling.md": "poller", "docs/design/wal.md": "wal",
		"docs/design/stream.md": "publish", "docs/design/edge.md": "replay",
	}[doc]
}

// located is a piece of a document.
type located struct {
	text string
	line int
}

// repo is the files of the module, by their slash-separated paths below its root.
type repo struct {
	files map[string]bool
	dirs  map[string]bool
	text  map[string]string // of documents, drawings and Go files
}

// documents are the paths of all Markdown files.
func (r *repo) documents() []string {
	var docs []string
	for name := range r.text {
		if path.Ext(name) == ".md" {
			docs = append(docs, name)
		}
	}
	return docs
}

func readRepo(t *testing.T) *repo {
	t.Helper()
	root := "../.."
	r := &repo{files: map[string]bool{}, dirs: map[string]bool{".": true}, text: map[string]string{}}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		switch {
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != "." && name != ".ci", d.IsDir() && name == "data":
			return filepath.SkipDir // of git, caches, and an embedded broker
		case d.IsDir():
			r.dirs[name] = true
			return nil
		}
		r.files[name] = true
		if ext := path.Ext(name); ext == ".go" || ext == ".md" || ext == ".svg" {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			r.text[name] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.files["go.mod"] || len(r.documents()) < 2 {
		t.Fatalf("no module in %s", root)
	}
	return r
}
