package doctest_test

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var (
	inlineLink = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)`)
	reference  = regexp.MustCompile(`^\s{0,3}\[[^\]]+\]:\s+<?([^\s>]+)`)
	attribute  = regexp.MustCompile(`\b(?:href|src|srcset)="([^"\s]+)`)
	heading    = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*#*$`)
	anchorTag  = regexp.MustCompile(`<a\s+(?:id|name)="([^"]+)"`)
	linkText   = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
	elsewhere  = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)
)

// links are the targets of a document's links and pictures, in Markdown and in HTML.
func links(text string) []located {
	var found []located
	for i, line := range prose(text) {
		line = span.ReplaceAllStringFunc(line, func(s string) string { return strings.Repeat("x", len(s)) })
		for _, form := range []*regexp.Regexp{inlineLink, reference, attribute} {
			for _, m := range form.FindAllStringSubmatch(line, -1) {
				found = append(found, located{m[1], i + 1})
			}
		}
	}
	return found
}

// anchors are the names under which a document's headings can be linked to.
func anchors(text string) []string {
	var found []string
	times := map[string]int{}
	for _, line := range prose(text) {
		for _, m := range anchorTag.FindAllStringSubmatch(line, -1) {
			found = append(found, m[1])
		}
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, linkText.ReplaceAllString(m[1], "$1"))
		if n := times[name]; n > 0 {
			found = append(found, fmt.Sprintf("%s-%d", name, n))
		} else {
			found = append(found, name)
		}
		times[name]++
	}
	return found
}

// broken says why a link of a document leads nowhere, "" if it does, or leads out of the repository.
func (r *repo) broken(doc, target string) string {
	if elsewhere.MatchString(target) || strings.HasPrefix(target, "//") {
		return ""
	}
	name, anchor, hasAnchor := strings.Cut(target, "#")
	if name == "" {
		name = doc
	} else {
		name = path.Join(path.Dir(doc), name)
	}
	switch {
	case strings.HasPrefix(target, "/"):
		return "not relative"
	case !r.files[name] && !r.dirs[name]:
		return "no such file"
	case !hasAnchor:
		return ""
	case path.Ext(name) != ".md":
		return "only documents have anchors"
	case !slices.Contains(anchors(r.text[name]), anchor):
		return "no such heading; there are " + strings.Join(anchors(r.text[name]), ", ")
	}
	return ""
}

func TestBroken_IsFound(t *testing.T) {
	t.Parallel()
	r := &repo{
		files: map[string]bool{"README.md": true, "docs/a.md": true, "docs/img/p.svg": true},
		dirs:  map[string]bool{".": true, "docs": true, "docs/img": true},
		text: map[string]string{
			"README.md": "# One\n\n## What `bridge sql` does, and *why*\n\n## One\n\n```\n# none\n```\n<a id=\"here\"></a>\n",
			"docs/a.md": "# A [link](b.md) in it\n",
		},
	}
	for _, tc := range []struct {
		doc, target string
		leads       bool
	}{
		{"README.md", "docs/a.md", true},
		{"README.md", "docs", true},
		{"README.md", "docs/b.md", false},
		{"README.md", "/docs/a.md", false},
		{"README.md", "https://example.org/none", true},
		{"README.md", "#one", true},
		{"README.md", "#one-1", true},
		{"README.md", "#one-2", false},
		{"README.md", "#none", false},
		{"README.md", "#here", true},
		{"README.md", "#what-bridge-sql-does-and-why", true},
		{"README.md", "#What-bridge-sql-does-and-why", false},
		{"docs/a.md", "../README.md#one", true},
		{"docs/a.md", "README.md", false},
		{"docs/a.md", "../../README.md", false},
		{"docs/a.md", "#a-link-in-it", true},
		{"docs/a.md", "img/p.svg", true},
		{"docs/a.md", "img/p.svg#l1", false},
	} {
		if why := r.broken(tc.doc, tc.target); (why == "") != tc.leads {
			t.Errorf("%s in %s: got %q, want leads %v", tc.target, tc.doc, why, tc.leads)
		}
	}
}

func TestLinks_OfAllForms(t *testing.T) {
	t.Parallel()
	doc := "[a](b.md) and ![c](d.svg \"title\"), [e](f.md#g)\n[h]: i.md\n" +
		"<source media=\"(prefers-color-scheme: dark)\" srcset=\"j.svg\"><img alt=\"\" src=\"k.svg\">\n" +
		"`[no](no.md)`\n\n    [no](no.md)\n\n```\n[no](no.md)\n```\n[l](m.md)\n"
	var got []string
	for _, l := range links(doc) {
		got = append(got, l.text)
	}
	if want := []string{"b.md", "d.svg", "f.md#g", "i.md", "j.svg", "k.svg", "m.md"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
