package doctest_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// words are in back-ticks in documents, look like names of Go by the rules of stale, and are none.
func words() []string {
	return []string{
		// columns, documents and messages
		"alive", "data", "deleted", "oversize", "since", "truncate", "txid",
		// Postgres
		"json", "xip", "xmax", "xmin", "TimeZone", "current",
		// NATS, Go and its modules
		"MaxMsgsPerSubject", "jetstreamext", "replace",
		// commands
		"bridge", "httpedge",
	}
}

// code is what the Go files of the module declare.
type code struct {
	packages map[string]map[string]bool // names at package level, by the package's name
	types    map[string][]*typ          // by the type's name
	tests    map[string]bool
	// home is the package whose type is meant where several have one of the name.
	home string
}

// typ is a declared type, with what can be said after its name and a dot.
type typ struct {
	pkg, name string
	members   map[string]bool
	embedded  []string // names of types, of this package or qualified
}

func newCode() *code {
	return &code{packages: map[string]map[string]bool{}, types: map[string][]*typ{}, tests: map[string]bool{}}
}

func parse(t *testing.T, r *repo) *code {
	t.Helper()
	c := newCode()
	for name, text := range r.text {
		if path.Ext(name) != ".go" {
			continue
		}
		if err := c.add(name, text); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// add takes the declarations of a file. Of tests it takes only the names of their functions: documents explain what
// is shipped.
func (c *code) add(name, text string) error {
	file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, "_test.go") {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && testName.MatchString(f.Name.Name) {
				c.tests[f.Name.Name] = true
			}
		}
		return nil
	}
	pkg := file.Name.Name
	if pkg == "main" {
		pkg = path.Base(path.Dir(name))
	}
	if c.packages[pkg] == nil {
		c.packages[pkg] = map[string]bool{}
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				c.packages[pkg][d.Name.Name] = true
			} else if recv := typeName(d.Recv.List[0].Type); recv != "" {
				c.typ(pkg, recv).members[d.Name.Name] = true
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				c.addSpec(pkg, s)
			}
		}
	}
	return nil
}

func (c *code) addSpec(pkg string, s ast.Spec) {
	switch s := s.(type) {
	case *ast.ValueSpec:
		for _, n := range s.Names {
			c.packages[pkg][n.Name] = true
		}
	case *ast.TypeSpec:
		c.packages[pkg][s.Name.Name] = true
		t := c.typ(pkg, s.Name.Name)
		var fields *ast.FieldList
		switch u := s.Type.(type) {
		case *ast.StructType:
			fields = u.Fields
		case *ast.InterfaceType:
			fields = u.Methods
		default:
			return
		}
		for _, f := range fields.List {
			for _, n := range f.Names {
				t.members[n.Name] = true
			}
			if len(f.Names) == 0 {
				e := typeName(f.Type)
				t.embedded = append(t.embedded, e)
				t.members[e[strings.LastIndex(e, ".")+1:]] = true
			}
		}
	}
}

func (c *code) typ(pkg, name string) *typ {
	for _, t := range c.types[name] {
		if t.pkg == pkg {
			return t
		}
	}
	t := &typ{pkg: pkg, name: name, members: map[string]bool{}}
	c.types[name] = append(c.types[name], t)
	return t
}

// typeName is the name of a type without pointers and type arguments, "" for one that has none.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.IndexListExpr:
		return typeName(e.X)
	case *ast.SelectorExpr:
		return typeName(e.X) + "." + e.Sel.Name
	}
	return ""
}

// has tells whether t, or a type that it embeds, has a method or field of that name.
func (c *code) has(t *typ, member string) bool {
	if t.members[member] {
		return true
	}
	return slices.ContainsFunc(t.embedded, func(e string) bool {
		pkg, name, qualified := strings.Cut(e, ".")
		if !qualified {
			pkg, name = t.pkg, e
		}
		return slices.ContainsFunc(c.types[name], func(o *typ) bool { return o.pkg == pkg && o != t && c.has(o, member) })
	})
}

var (
	testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark|Example)[A-Z][A-Za-z0-9_]*`)
	dotted   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*(\.[A-Za-z][A-Za-z0-9]*)*$`)
	filePath = regexp.MustCompile(`^[A-Za-z.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)+/?$`)
	fileName = regexp.MustCompile(`^[A-Za-z0-9_.-]+\.(go|md|sql|sh|yml|json|svg)$`)
	span     = regexp.MustCompile("`([^`\n]+)`")
)

// stale says what is wrong with the text of a span in back-ticks, "" for nothing. By its form the text is
//
//   - a path, if it begins with a file or folder of the module's root: `internal/poller`, `lockstep/doc.go`;
//   - a file, if it ends like one: `doc.go`;
//   - a test, which testNames finds;
//   - a name of Go, if it is made of letters, digits and dots, with at least one small letter, and is not in words.
//     After a dot it is a member of a type, or what a package declares: `session.poll`, `relation.Load`,
//     `stream.Epochs.Holds`. Without a dot a package declares it, or it is a package: `newQueries`, `poller`.
//     Several packages may have a type of one name; then that of the document's home is meant.
//
// Everything else (settings, SQL, metrics, commands with arguments) is not a name of Go.
func (c *code) stale(text string, r *repo) string {
	text = strings.TrimSuffix(text, "()")
	switch {
	case filePath.MatchString(text):
		first, _, _ := strings.Cut(text, "/")
		if name := path.Clean(text); (r.dirs[first] || r.files[first]) && !r.files[name] && !r.dirs[name] {
			return "no such file"
		}
		return ""
	case fileName.MatchString(text):
		for name := range r.files {
			if path.Base(name) == text {
				return ""
			}
		}
		return "no file of that name"
	case testName.MatchString(text), !dotted.MatchString(text), strings.ToUpper(text) == text, slices.Contains(words(), text):
		return ""
	}
	parts := strings.Split(text, ".")
	if len(parts) == 1 {
		return c.staleWord(text, r)
	}
	if len(parts) > 3 {
		return "not a name of Go"
	}
	last := parts[len(parts)-1]
	if len(parts) == 2 && c.packages[parts[0]][last] {
		return ""
	}
	types := c.types[parts[len(parts)-2]]
	atHome := func(t *typ) bool { return t.pkg == c.home }
	for _, t := range types {
		if len(parts) == 2 && !atHome(t) && slices.ContainsFunc(types, atHome) {
			continue
		}
		if (len(parts) == 2 || t.pkg == parts[0]) && c.has(t, last) {
			return ""
		}
	}
	if len(types) == 0 && c.packages[parts[0]] == nil {
		return fmt.Sprintf("no package or type is called %s", parts[0])
	}
	return "not declared"
}

func (c *code) staleWord(text string, r *repo) string {
	if c.packages[text] != nil || r.dirs[text] {
		return ""
	}
	for _, names := range c.packages {
		if names[text] {
			return ""
		}
	}
	return "no package declares it; a method or field needs its type before it (if this is no name of Go, words in names_test.go lists such)"
}

// spans are the texts in back-ticks that stand in no block of code.
func spans(text string) []located {
	var found []located
	for i, line := range prose(text) {
		for _, m := range span.FindAllStringSubmatch(line, -1) {
			found = append(found, located{m[1], i + 1})
		}
	}
	return found
}

// testNames are the tests that a document names anywhere.
func testNames(text string) []located {
	var found []located
	for i, line := range strings.Split(text, "\n") {
		for _, m := range testName.FindAllString(line, -1) {
			found = append(found, located{m, i + 1})
		}
	}
	return found
}

// prose is the lines of a document, with those in blocks of code empty.
func prose(text string) []string {
	lines := strings.Split(text, "\n")
	fence := ""
	blank := true
	for i, line := range lines {
		trimmed := strings.TrimLeft(line, " ")
		mark := trimmed[:len(trimmed)-len(strings.TrimLeft(trimmed, "`~"))]
		switch {
		case fence == "" && len(mark) >= 3:
			fence = mark
			lines[i] = ""
		case fence != "":
			if strings.HasPrefix(trimmed, fence) {
				fence = ""
			}
			lines[i] = ""
		case blank && strings.HasPrefix(line, "    "):
			lines[i] = "" // and blank stays: the block goes on
			continue
		}
		blank = strings.TrimSpace(line) == ""
	}
	return lines
}

func TestStale_IsFound(t *testing.T) {
	t.Parallel()
	c := newCode()
	for name, text := range map[string]string{
		"internal/poller/a.go": `package poller
			type session struct { listener; P *pair[int] }
			type pair[T any] struct{ n T }
			func (p *pair[T]) first() T { return p.n }
			func (s *session) poll() {}
			type Sink interface { Begin() error }
			func newQueries() {}
			const pace = 1`,
		"internal/poller/b.go":      "package poller\ntype listener struct{ woken bool }\nfunc (*listener) wait() {}",
		"cmd/bridge/main.go":        "package main\nfunc run() {}",
		"internal/poller/a_test.go": "package poller_test\nfunc TestPoll_Once(t *testing.T) {}\nfunc helper() {}",
	} {
		if err := c.add(name, text); err != nil {
			t.Fatal(err)
		}
	}
	r := &repo{
		files: map[string]bool{"lockstep/doc.go": true, "Makefile": true},
		dirs:  map[string]bool{"internal": true, "internal/poller": true, "lockstep": true, "cmd": true},
	}
	for text, declared := range map[string]bool{
		"session.poll": true, "session.poll()": true, "poller.session.poll": true, "poller.session": true,
		"session.pol": false, "poller.sessions": false, "wal.session.poll": false, "sessions.poll": false,
		"Sink.Begin": true, "poller.Sink.Begin": true, "Sink.End": false, "Begin": false,
		"session.P": true, "session.listener": true, "session.wait": true, "session.woken": true, "session.Wait": false,
		"pair.first": true, "pair.second": false,
		"newQueries": true, "newQuery": false, "pace": true, "paces": false, "poller": true, "wal": false,
		"bridge.run": true, "bridge.main": false, "cmd": true, "helper": false,
		"internal/poller": true, "internal/pollers": false, "lockstep/doc.go": true, "lockstep/docs.go": false,
		"elsewhere/doc.go": true, "doc.go": true, "docs.go": false,
		"BRIDGE_TABLES": true, "SELECT": true, "txid": true, "history=log": true, "a b": true, "Lockstep-High": true,
		"pg_type": true, "a.b.c.d": false, "TestPoll_Once": true,
	} {
		if why := c.stale(text, r); (why == "") != declared {
			t.Errorf("%s: got %q, want declared %v", text, why, declared)
		}
	}
	if err := c.add("internal/wal/a.go", "package wal\ntype session struct{ confirmed int }"); err != nil {
		t.Fatal(err)
	}
	for text, at := range map[string]string{"session.poll": "poller", "session.confirmed": "wal", "pair.first": "poller wal", "poller.session.poll": "poller wal"} {
		for _, c.home = range []string{"poller", "wal"} {
			if why := c.stale(text, r); (why == "") != strings.Contains(at, c.home) {
				t.Errorf("%s in a document of %s: got %q, want it declared in %s", text, c.home, why, at)
			}
		}
	}
	if !c.tests["TestPoll_Once"] || len(c.tests) != 1 {
		t.Errorf("got tests %v, want TestPoll_Once alone", c.tests)
	}
}

func TestSpans_StandInNoBlockOfCode(t *testing.T) {
	t.Parallel()
	doc := "A `b` and `c.d`\n\n    `no`\n\n    `no`\n\n- item `e`\n  goes on `f`\n    and on `g`\n\n```sh\n`no` TestOne\n```\n`h`, TestTwo_I7.\n"
	want := []located{{"b", 1}, {"c.d", 1}, {"e", 7}, {"f", 8}, {"g", 9}, {"h", 14}}
	if got := spans(doc); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := testNames(doc), []located{{"TestOne", 12}, {"TestTwo_I7", 14}}; !slices.Equal(got, want) {
		t.Errorf("got tests %v, want %v", got, want)
	}
}
