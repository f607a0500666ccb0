package relation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"bridge/internal/topic"
)

var optionNames = []string{"key", "txid", "deleted", "history", "max_age", "max_bytes", "tombstones", "reconcile", "capture", "actions", "events", "republish"}

// maxIdent is NAMEDATALEN-1. Postgres silently cuts longer names.
const maxIdent = 63

// ParseSpecs parses BRIDGE_TABLES: entries separated by commas. White space
// between tokens is ignored.
//
//	entry    = ( relation | "*" ) [ "(" option { ";" option } ")" ] | "-" relation
//	relation = name | name "." name         without a schema, it is public
//	option   = word "=" value | word "=" name { "+" name }
//	name     = letters, digits, _ and $     folded to lower case, as in SQL
//	         | '"' anything '"'             taken as it is, "" for a quote
//
// The options of * are those of every table that it stands for.
//
// The error joins a *SpecError for each mistake.
func ParseSpecs(s string) (Specs, error) { return parseSpecs(s, Specs{}) }

// ParseArguments parses the relations that a command names, as ParseSpecs does.
// An entry without options has those that it has in configured.
func ParseArguments(args []string, configured Specs) (Specs, error) {
	return parseSpecs(strings.Join(args, ","), configured)
}

func parseSpecs(s string, configured Specs) (Specs, error) {
	var specs Specs
	var errs []error
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return Specs{}, errors.New("not valid UTF-8 text")
	}
	entries := splitEntries(s)
	if last := entries[len(entries)-1]; len(entries) > 1 && blank(last.text) {
		entries = entries[:len(entries)-1] // a comma after the last entry is allowed
	}
	if len(entries) == 1 && blank(s) {
		return Specs{}, errors.New("names no relation: list some, such as users,orders, or * for every table of schema public that qualifies")
	}
	seen := make(map[Name]int)
	for i, e := range entries {
		p := &specParser{whole: s, text: e.text, base: e.pos, number: i + 1, configured: configured}
		p.entry(&specs, seen)
		errs = append(errs, p.errs...)
	}
	if len(specs.Except) > 0 && specs.All == nil && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("-%s leaves a relation out of *, but there is no *", specs.Except[0].Quoted()))
	}
	if len(errs) > 0 {
		return Specs{}, errors.Join(errs...)
	}
	return specs, nil
}

// specParser parses one entry. Its methods report a mistake by fail, which
// returns false. A syntax error ends the entry; after a wrong value, parsing goes
// on, to find all of them.
type specParser struct {
	whole, text string
	base, pos   int
	number      int
	errs        []error
	// configured has the options of entries without options.
	configured Specs
}

func (p *specParser) fail(pos int, format string, args ...any) bool {
	shown := strings.Join(strings.Fields(p.text), " ")
	if shown == "" {
		shown = "(empty)"
	}
	if r := []rune(shown); len(r) > 60 {
		shown = string(r[:60]) + "…"
	}
	p.errs = append(p.errs, &SpecError{
		Entry:    shown,
		Number:   p.number,
		Position: utf8.RuneCountInString(p.whole[:p.base+pos]) + 1,
		What:     fmt.Sprintf(format, args...),
	})
	return false
}

func (p *specParser) entry(specs *Specs, seen map[Name]int) {
	p.space()
	start := p.pos
	switch {
	case p.pos == len(p.text):
		p.fail(start, "no relation between two commas")
		return
	case p.take('*'):
		if specs.All != nil {
			p.fail(start, "* is there twice")
		}
		all := NewSpec(Name{})
		if p.space(); p.peek() == '(' {
			if !p.options(&all) {
				return
			}
		} else if p.configured.All != nil {
			all = *p.configured.All
		}
		specs.All = &all
		p.end("after *")
		return
	}
	except := p.take('-')
	n, ok := p.name()
	if !ok {
		return
	}
	spec := NewSpec(n)
	if p.space(); p.peek() == '(' {
		if except {
			p.fail(p.pos, "a relation that - leaves out has no options")
			return
		}
		if !p.options(&spec) {
			return
		}
	} else if i := slices.IndexFunc(p.configured.List, func(c Spec) bool { return c.Name == n }); i >= 0 {
		spec = p.configured.List[i]
	}
	if !p.end("after the relation") {
		return
	}
	if first, ok := seen[n]; ok {
		p.fail(start, "%s is already entry %d", n.Quoted(), first)
		return
	}
	seen[n] = p.number
	if except {
		specs.Except = append(specs.Except, n)
		return
	}
	specs.List = append(specs.List, spec)
}

func (p *specParser) end(where string) bool {
	if p.space(); p.pos < len(p.text) {
		if c := p.peek(); c == '-' || c >= '0' && c <= '9' || c == '.' {
			return p.fail(p.pos, "unexpected %s %s: a name with such characters needs double quotes, as in SQL", p.char(), where)
		}
		return p.fail(p.pos, "unexpected %s %s: put commas between entries, options in ( ), and a name with blanks or capitals in double quotes", p.char(), where)
	}
	return true
}

func (p *specParser) name() (Name, bool) {
	first, ok := p.ident("a table or view")
	if !ok {
		return Name{}, false
	}
	if p.space(); !p.take('.') {
		return Name{Schema: defaultSchema, Table: first}, true
	}
	p.space()
	second, ok := p.ident("a table or view of schema " + quoteIdent(first))
	return Name{Schema: first, Table: second}, ok
}

// ident parses one name. As in SQL, a name without quotes is folded to lower case;
// only ASCII letters are folded.
func (p *specParser) ident(what string) (string, bool) {
	start := p.pos
	var name string
	if p.take('"') {
		var b strings.Builder
		for {
			i := strings.IndexByte(p.text[p.pos:], '"')
			if i < 0 {
				return "", p.fail(start, "the quote is never closed")
			}
			b.WriteString(p.text[p.pos : p.pos+i])
			p.pos += i + 1
			if !p.take('"') {
				break
			}
			b.WriteByte('"')
		}
		if name = b.String(); name == "" {
			return "", p.fail(start, "the name is empty")
		}
	} else {
		for p.pos < len(p.text) && (isIdentStart(p.peek()) || p.pos > start && isIdentByte(p.peek())) {
			p.pos++
		}
		if name = lowerASCII(p.text[start:p.pos]); name == "" {
			return "", p.fail(start, "unexpected %s: want the name of %s, in double quotes if it is not all letters, digits and _", p.char(), what)
		}
	}
	if len(name) > maxIdent {
		return "", p.fail(start, "the name is %d bytes long; Postgres cuts names at %d, so no relation or column has this one", len(name), maxIdent)
	}
	return name, true
}

func (p *specParser) options(spec *Spec) bool {
	open := p.pos
	p.pos++
	given := make(map[string]int)
	for {
		p.space()
		start := p.pos
		for p.pos < len(p.text) && isIdentByte(p.peek()) {
			p.pos++
		}
		name := lowerASCII(p.text[start:p.pos])
		if name == "" {
			if p.pos == len(p.text) {
				return p.fail(open, "the ( is never closed")
			}
			return p.fail(start, "unexpected %s: want an option: %s", p.char(), strings.Join(optionNames, ", "))
		}
		if p.space(); !p.take('=') {
			return p.fail(p.pos, "want = after option %s, got %s", name, p.char())
		}
		p.space()
		if _, twice := given[name]; twice {
			p.fail(start, "option %s is there twice", name)
		}
		given[name] = start
		if !p.value(name, start, spec) {
			return false
		}
		p.space()
		switch {
		case p.take(';'):
			if p.space(); p.peek() != ')' {
				continue
			}
			p.pos++
		case p.take(')'):
		case p.pos == len(p.text):
			return p.fail(open, "the ( is never closed")
		case p.peek() == ',':
			return p.fail(p.pos, "unexpected comma: put ; between options, and + between the columns of a list")
		default:
			return p.fail(p.pos, "unexpected %s: put ; between options, and + between the columns of a list", p.char())
		}
		if len(p.errs) == 0 {
			p.pairs(spec, given)
		}
		return true
	}
}

// value parses the value of an option. A wrong value does not end the entry.
func (p *specParser) value(name string, at int, spec *Spec) bool {
	start := p.pos
	switch name {
	case "key":
		return p.list(&spec.Key, "a key column")
	case "txid", "deleted":
		col, ok := p.ident("a column")
		if name == "txid" {
			spec.Txid = col
		} else {
			spec.Deleted = col
		}
		return ok
	case "actions":
		if !p.list(&spec.Actions, "an action") {
			return false
		}
		for _, a := range spec.Actions {
			if !slices.Contains(Actions, a) {
				p.fail(start, "unknown action %q: want some of %s, with + between them", a, strings.Join(Actions, ", "))
			}
		}
		return true
	}
	if i := strings.IndexAny(p.text[p.pos:], ";),(\""); i >= 0 {
		p.pos += i
	} else {
		p.pos = len(p.text)
	}
	v := strings.Trim(p.text[start:p.pos], whiteSpace)
	var err error
	switch name {
	case "history":
		spec.History, err = oneOf(v, HistoryLatest, HistoryLog)
	case "capture":
		spec.Capture, err = oneOf(v, CapturePoll, CaptureWAL)
	case "max_age":
		spec.MaxAge, err = ParseDuration(v)
	case "tombstones":
		spec.Tombstones, err = ParseDuration(v)
	case "reconcile":
		spec.Reconcile, err = ParseDuration(v)
	case "max_bytes":
		spec.MaxBytes, err = parseBytes(v)
	case "events":
		spec.Events, err = parseBool(v)
	case "republish":
		spec.Republish, err = topic.Parse(v)
	default:
		if near := nearest(name, optionNames); near != "" {
			p.fail(at, "unknown option %s: did you mean %s?", name, near)
		} else {
			p.fail(at, "unknown option %s: the options are %s", name, strings.Join(optionNames, ", "))
		}
		p.pos = start
		return p.skipValue()
	}
	if err != nil {
		p.fail(start, "%s=%s: %v", name, v, err)
	}
	return true
}

// pairs checks options that exclude each other. Each one is right by itself.
func (p *specParser) pairs(spec *Spec, given map[string]int) {
	for _, name := range []string{"max_age", "max_bytes"} {
		if at, ok := given[name]; ok && spec.History == HistoryLatest {
			p.fail(at, "%s limits a log: add history=log, or remove it (a latest stream keeps every row)", name)
		}
	}
	if at, ok := given["tombstones"]; ok && spec.History == HistoryLog {
		p.fail(at, "tombstones is for history=latest: a log is limited by max_age and max_bytes")
	}
	if at, ok := given["reconcile"]; ok && (spec.History == HistoryLog || len(spec.Actions) > 0) {
		p.fail(at, "reconcile compares a stream with its relation: one with history=log or actions= can't be compared")
	}
	if at, ok := given["actions"]; ok && spec.Capture == CapturePoll {
		p.fail(at, "actions needs capture=wal: polling sees only the result of changes")
	}
	if at, ok := given["events"]; ok && spec.Capture == CapturePoll {
		p.fail(at, "events needs capture=wal: polling sees only the result of changes")
	}
	if at, ok := given["events"]; ok && spec.History == HistoryLog {
		p.fail(at, "events is for history=latest: a log always says which change a row comes from; remove it")
	}
	if at, ok := given["republish"]; ok && spec.History == HistoryLog && spec.Republish.HasKey() {
		p.fail(at, "{key} in republish= needs history=latest: all rows of a log have one subject")
	}
	for _, k := range spec.Key {
		if k == spec.Txid || k == spec.Deleted {
			p.fail(given["key"], "column %s can't be in the key: it changes with the row", quoteIdent(k))
		}
	}
	if spec.Txid == spec.Deleted {
		p.fail(given["deleted"], "txid and deleted are the same column")
	}
}

func (p *specParser) list(to *[]string, what string) bool {
	for {
		p.space()
		start := p.pos
		name, ok := p.ident(what)
		if !ok {
			return false
		}
		if slices.Contains(*to, name) {
			p.fail(start, "%s is there twice", quoteIdent(name))
		} else {
			*to = append(*to, name)
		}
		if p.space(); !p.take('+') {
			return true
		}
	}
}

// skipValue skips the value of an unknown option.
func (p *specParser) skipValue() bool {
	for quoted := false; p.pos < len(p.text); p.pos++ {
		c := p.peek()
		if c == '"' {
			quoted = !quoted
		}
		if !quoted && (c == ';' || c == ')') {
			break
		}
	}
	return true
}

// whiteSpace is what may stand between two words. Other spaces of Unicode may be in a name,
// as in SQL.
const whiteSpace = " \t\r\n"

func blank(s string) bool { return strings.Trim(s, whiteSpace) == "" }

func (p *specParser) space() {
	for p.pos < len(p.text) && strings.IndexByte(whiteSpace, p.text[p.pos]) >= 0 {
		p.pos++
	}
}

func (p *specParser) peek() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *specParser) take(c byte) bool {
	if p.peek() != c || c == 0 {
		return false
	}
	p.pos++
	return true
}

// char names the character at the position, for an error.
func (p *specParser) char() string {
	r, n := utf8.DecodeRuneInString(p.text[p.pos:])
	if n == 0 {
		return "end of the entry"
	}
	return fmt.Sprintf("%q", string(r))
}
