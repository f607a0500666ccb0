package relation

import (
	"bytes"
	"errors"
	"fmt"
)

var (
	errArray     = errors.New("malformed array")
	errComposite = errors.New("malformed composite")
	errHstore    = errors.New("malformed hstore")
)

// maxDims is Postgres' MAXDIM.
const maxDims = 6

// appendArray turns the output of array_out (arrayfuncs.c) into that of
// array_to_json_internal (json.c). Bounds are lost, and an array without elements
// has no dimensions.
//
//	{}                       []
//	[0:1][5:5]={{1},{NULL}}  [[1],[null]]
//	{"a,b","NULL",""}        ["a,b","NULL",""]
func (e *Encoder) appendArray(dst, s []byte, n *node) ([]byte, error) {
	if len(s) > 0 && s[0] == '[' {
		s = s[bytes.IndexByte(s, '=')+1:]
	}
	if string(s) == "{}" {
		return append(dst, "[]"...), nil
	}
	depth, i := 0, 0
	for {
		for i < len(s) && s[i] == '{' {
			dst = append(dst, '[')
			depth++
			i++
		}
		if depth == 0 || depth > maxDims {
			return dst, errArray
		}
		var err error
		if dst, i, err = e.appendElement(dst, s, i, n); err != nil {
			return dst, err
		}
		for i < len(s) && s[i] == '}' && depth > 0 {
			dst = append(dst, ']')
			depth--
			i++
		}
		switch {
		case depth == 0 && i == len(s):
			return dst, nil
		case depth == 0 || i == len(s) || s[i] != n.delim:
			return dst, errArray
		}
		dst = append(dst, ',')
		i++
	}
}

// appendElement appends the element that begins at s[i], and returns where it
// ends. array_out quotes an element that is empty, reads NULL, or has a byte with a
// special meaning. Inside quotes, a backslash stands before quotes and backslashes.
func (e *Encoder) appendElement(dst, s []byte, i int, n *node) ([]byte, int, error) {
	if i < len(s) && s[i] == '"' {
		mark := len(e.scratch)
		text, end, ok := e.unquote(s, i, false)
		if !ok {
			return dst, i, errArray
		}
		dst, err := e.append(dst, text, n.elem)
		e.scratch = e.scratch[:mark]
		return dst, end, err
	}
	end := i
	for ; end < len(s) && s[end] != n.delim && s[end] != '}'; end++ {
		if b := s[end]; b == '"' || b == '\\' || b == '{' {
			return dst, i, errArray
		}
	}
	switch text := s[i:end]; {
	case len(text) == 0:
		return dst, i, errArray
	case string(text) == "NULL":
		return append(dst, "null"...), end, nil
	default:
		dst, err := e.append(dst, text, n.elem)
		return dst, end, err
	}
}

// unquote returns the text between the quote at s[i] and the next quote that is
// not escaped, and the place after that one. A backslash escapes any byte. If
// doubled is true, as in a composite, two quotes stand for one. The text is part of
// s, or of the end of e.scratch, which the caller then cuts off.
func (e *Encoder) unquote(s []byte, i int, doubled bool) (text []byte, end int, ok bool) {
	i++
	start, mark, escaped := i, len(e.scratch), false
	for {
		n := 0
		for i+n < len(s) && s[i+n] != '"' && s[i+n] != '\\' {
			n++
		}
		if i+n == len(s) {
			return nil, i, false
		}
		b, next := s[i+n], byte(0)
		if i+n+1 < len(s) {
			next = s[i+n+1]
		}
		if b == '"' && !(doubled && next == '"') {
			if !escaped {
				return s[start : i+n], i + n + 1, true
			}
			e.scratch = append(e.scratch, s[i:i+n]...)
			return e.scratch[mark:], i + n + 1, true
		}
		if i+n+1 == len(s) {
			return nil, i, false
		}
		escaped = true
		e.scratch = append(append(e.scratch, s[i:i+n]...), next)
		i += n + 2
	}
}

// appendVector splits the output of int2vectorout and oidvectorout: numbers with
// one blank between them.
func (e *Encoder) appendVector(dst, s []byte, n *node) ([]byte, error) {
	dst = append(dst, '[')
	for first := true; len(s) > 0; first = false {
		if !first {
			dst = append(dst, ',')
		}
		text, rest, _ := bytes.Cut(s, []byte{' '})
		var err error
		if dst, err = e.append(dst, text, n.elem); err != nil {
			return dst, err
		}
		s = rest
	}
	return append(dst, ']'), nil
}

// appendComposite turns the output of record_out (rowtypes.c) into that of
// composite_to_json (json.c). Neither has dropped attributes.
//
//	(1,"a ""b""",,"")    {"a":1,"b":"a \"b\"","c":null,"d":""}
func (e *Encoder) appendComposite(dst, s []byte, n *node) ([]byte, error) {
	if len(s) < 2 || s[0] != '(' || s[len(s)-1] != ')' {
		return dst, errComposite
	}
	if len(n.fields) == 0 {
		if len(s) > 2 {
			return dst, fieldsError(n)
		}
		return append(dst, "{}"...), nil
	}
	i := 1
	for f := range n.fields {
		dst = append(dst, n.fields[f].key...)
		var err error
		if dst, i, err = e.appendField(dst, s, i, n.fields[f].value); err != nil {
			return dst, err
		}
		last := f == len(n.fields)-1
		switch {
		case i == len(s) || s[i] != ',' && s[i] != ')':
			return dst, errComposite
		case last != (s[i] == ')'):
			return dst, fieldsError(n)
		}
		i++
	}
	if i != len(s) {
		return dst, errComposite
	}
	return append(dst, '}'), nil
}

func fieldsError(n *node) error {
	return fmt.Errorf("composite does not have %d attributes: %w", len(n.fields), ErrStaleTypes)
}

// appendField appends the attribute that begins at s[i], and returns where it
// ends. record_out prints nothing for NULL. It quotes an attribute that is empty or
// has a byte with a special meaning, and doubles quotes and backslashes.
func (e *Encoder) appendField(dst, s []byte, i int, n *node) ([]byte, int, error) {
	if i < len(s) && s[i] == '"' {
		mark := len(e.scratch)
		text, end, ok := e.unquote(s, i, true)
		if !ok {
			return dst, i, errComposite
		}
		dst, err := e.append(dst, text, n)
		e.scratch = e.scratch[:mark]
		return dst, end, err
	}
	end := i
	for ; end < len(s) && s[end] != ',' && s[end] != ')'; end++ {
		if b := s[end]; b == '"' || b == '\\' || b == '(' {
			return dst, i, errComposite
		}
	}
	if end == i {
		return append(dst, "null"...), end, nil
	}
	dst, err := e.append(dst, s[i:end], n)
	return dst, end, err
}

// appendHstore turns the output of hstore_out (contrib/hstore/hstore_io.c) into
// that of hstore_to_json. Both keep the order in which hstore sorts keys.
//
//	"a"=>"1", "b"=>NULL    {"a": "1", "b": null}
func (e *Encoder) appendHstore(dst, s []byte) ([]byte, error) {
	dst = append(dst, '{')
	for i := 0; i < len(s); {
		var err error
		if i > 0 {
			if i, err = skipText(s, i, ", "); err != nil {
				return dst, err
			}
			dst = append(dst, ", "...)
		}
		if dst, i, err = e.appendHstoreString(dst, s, i); err != nil {
			return dst, err
		}
		if i, err = skipText(s, i, "=>"); err != nil {
			return dst, err
		}
		dst = append(dst, ": "...)
		if end, err := skipText(s, i, "NULL"); err == nil {
			dst, i = append(dst, "null"...), end
			continue
		}
		if dst, i, err = e.appendHstoreString(dst, s, i); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

func (e *Encoder) appendHstoreString(dst, s []byte, i int) ([]byte, int, error) {
	if i >= len(s) || s[i] != '"' {
		return dst, i, errHstore
	}
	mark := len(e.scratch)
	text, end, ok := e.unquote(s, i, false)
	if !ok {
		return dst, i, errHstore
	}
	dst = appendString(dst, text)
	e.scratch = e.scratch[:mark]
	return dst, end, nil
}

func skipText(s []byte, i int, want string) (int, error) {
	if !bytes.HasPrefix(s[i:], []byte(want)) {
		return i, errHstore
	}
	return i + len(want), nil
}
