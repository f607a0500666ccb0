package view

import (
	"errors"
	"fmt"
	"strings"
)

// node is a node of a query tree: {LABEL :field value :field value}. A value is a
// string, a list ([]any), a *node, or nil.
type node struct {
	label  string
	fields map[string]any
}

func (n *node) child(field string) *node {
	c, _ := n.fields[field].(*node)
	return c
}

func (n *node) list(field string) []any {
	c, _ := n.fields[field].([]any)
	return c
}

func (n *node) text(field string) string {
	c, _ := n.fields[field].(string)
	return c
}

// has reports whether a field has another value than false, 0 and nothing.
func (n *node) has(field string) bool {
	switch v := n.fields[field].(type) {
	case nil:
		return false
	case string:
		return v != "false" && v != "0" && v != ""
	case []any:
		return len(v) > 0
	}
	return true
}

// number returns the number in a field, -1 if there is none.
func (n *node) number(field string) int {
	i := -1
	if _, err := fmt.Sscanf(n.text(field), "%d", &i); err != nil {
		return -1
	}
	return i
}

var errTree = errors.New("the catalog's query tree has an unknown form")

// maxDepth bounds how deep nodes are nested. Postgres itself takes no deeper query.
const maxDepth = 10_000

// parseTree parses the text form of a pg_node_tree. The names of nodes and fields
// may be any: versions of Postgres have different ones.
func parseTree(text string) (any, error) {
	p := &treeParser{text: text}
	v, err := p.value(0)
	if err == nil && p.next() != "" {
		err = errTree
	}
	return v, err
}

// treeParser splits a tree into tokens as pg_strtok does: white space separates
// them, brackets are tokens of their own, and a backslash takes the meaning from
// the character after it.
type treeParser struct {
	text string
	pos  int
	// ahead is a token that was taken and given back.
	ahead string
}

func (p *treeParser) next() string {
	if t := p.ahead; t != "" {
		p.ahead = ""
		return t
	}
	for p.pos < len(p.text) && strings.IndexByte(" \n\t", p.text[p.pos]) >= 0 {
		p.pos++
	}
	start := p.pos
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		if strings.IndexByte(" \n\t(){}", c) >= 0 {
			break
		}
		if c == '\\' {
			p.pos++
		}
		p.pos++
	}
	if p.pos == start && start < len(p.text) {
		p.pos++
	}
	p.pos = min(p.pos, len(p.text))
	return p.text[start:p.pos]
}

func (p *treeParser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errTree
	}
	switch t := p.next(); t {
	case "", ")", "}":
		return nil, errTree
	case "<>":
		return nil, nil
	case "(":
		list := []any{}
		for {
			if t = p.next(); t == ")" {
				return list, nil
			}
			p.ahead = t
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
	case "{":
		return p.node(depth)
	default:
		return unescape(t), nil
	}
}

func (p *treeParser) node(depth int) (any, error) {
	n := &node{label: p.next(), fields: map[string]any{}}
	for {
		t := p.next()
		if t == "}" {
			return n, nil
		}
		name, ok := strings.CutPrefix(t, ":")
		if !ok {
			return nil, errTree
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.fields[name] = v
		// A constant is its length, and then its bytes in brackets.
		if t = p.next(); t != "[" {
			p.ahead = t
			continue
		}
		bytes := []string{unescape(fmt.Sprint(v))}
		for t = p.next(); t != "]"; t = p.next() {
			if t == "" {
				return nil, errTree
			}
			bytes = append(bytes, t)
		}
		n.fields[name] = strings.Join(bytes, " ")
	}
}

// unescape removes the backslashes of a token.
func unescape(token string) string {
	if strings.IndexByte(token, '\\') < 0 {
		return token
	}
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		if token[i] == '\\' && i+1 < len(token) {
			i++
		}
		b.WriteByte(token[i])
	}
	return b.String()
}
