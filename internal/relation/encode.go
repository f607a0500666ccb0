package relation

import (
	"fmt"
	"slices"
)

// Encoder appends rows as JSON objects. From the text form of a value it makes,
// byte for byte, what Postgres' to_json returns for the column. (For to_json the
// server would need four to five times the CPU per row that it needs for the
// text.)
//
// The text MUST come from a session with client_encoding UTF8, TimeZone UTC,
// DateStyle 'ISO, MDY', IntervalStyle postgres, bytea_output hex and
// extra_float_digits 1. The Encoder appends what to_json prints in that session.
// So regclass and money also depend on the session's search_path and lc_monetary.
//
// A json value is appended as it is, as to_json does, and may have line breaks
// between its tokens. AppendObject appends no other line breaks: a caller that
// needs one line may replace each by a blank.
//
// An Encoder has scratch memory: two goroutines MUST NOT use it at the same time.
type Encoder struct {
	// Static after construction.
	columns []encodedColumn
	server  []bool

	// Owned by AppendObject.
	scratch []byte
}

// maxScratch is how much scratch memory an Encoder keeps from row to row.
const maxScratch = 1 << 20

type encodedColumn struct {
	name string
	// key is `{"name":`, or `,"name":`, ready to be appended.
	key []byte
	// value is nil for a column that is left out.
	value *node
}

// node is a type with all types that it is made of. For a domain it is the type
// below.
type node struct {
	kind TypeKind
	// delim separates the elements of an array; elem is their type.
	delim byte
	elem  *node
	// fields are the attributes of a composite type.
	fields []encodedField
}

type encodedField struct {
	key   []byte
	value *node
}

// NewEncoder returns an Encoder for rows of these columns. It leaves out the
// columns for which skip returns true; a nil skip leaves out none. The error wraps
// ErrStaleTypes if a type is not among types.
func NewEncoder(types Types, columns []Column, skip func(i int) bool) (*Encoder, error) {
	e := &Encoder{columns: make([]encodedColumn, len(columns)), server: make([]bool, len(columns))}
	c := compiler{types: types, nodes: map[uint32]*node{}}
	names := 0
	for i, col := range columns {
		e.columns[i].name = col.Name
		if skip != nil && skip(i) {
			continue
		}
		n, err := c.compile(col.TypeOID)
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", col.Name, err)
		}
		e.columns[i].key = objectKey(names, col.Name)
		e.columns[i].value = n
		e.server[i] = n.kind == TypeServer
		names++
	}
	return e, nil
}

// objectKey returns the JSON text before the nth value of an object.
func objectKey(n int, name string) []byte {
	start := byte(',')
	if n == 0 {
		start = '{'
	}
	return append(appendString([]byte{start}, []byte(name)), ':')
}

type compiler struct {
	types Types
	// nodes has the compiled types; nil for a type that is being compiled.
	nodes map[uint32]*node
}

// compile returns the node of a type. If only the server can turn a part of the
// type into JSON, the same is true for the whole type.
func (c *compiler) compile(oid uint32) (*node, error) {
	if n, ok := c.nodes[oid]; ok {
		if n == nil {
			return nil, fmt.Errorf("type %d is made of itself", oid)
		}
		return n, nil
	}
	t, ok := c.types[oid]
	if !ok {
		return nil, fmt.Errorf("type %d is not in the catalog: %w", oid, ErrStaleTypes)
	}
	c.nodes[oid] = nil
	n := &node{kind: t.Kind}
	var err error
	switch t.Kind {
	case TypeDomain:
		n, err = c.compile(t.Elem)
	case TypeArray, TypeVector:
		if n.elem, err = c.compile(t.Elem); err == nil {
			n.delim = c.types[t.Elem].Delim // like array_out, which takes it from the element's type
			if n.elem.kind == TypeServer {
				n = n.elem
			}
		}
	case TypeComposite:
		n, err = c.compileComposite(t)
	}
	if err != nil {
		return nil, err
	}
	c.nodes[oid] = n
	return n, nil
}

func (c *compiler) compileComposite(t Type) (*node, error) {
	n := &node{kind: TypeComposite, fields: make([]encodedField, len(t.Attributes))}
	for i, a := range t.Attributes {
		value, err := c.compile(a.TypeOID)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", a.Name, err)
		}
		if value.kind == TypeServer {
			return value, nil
		}
		n.fields[i] = encodedField{key: objectKey(i, a.Name), value: value}
	}
	return n, nil
}

// ServerSide says for each column whether only the server can turn it into JSON:
// its type, or a part of it, has a cast to json, other than that of hstore. As the
// value of such a column, AppendObject takes the text of to_json(column). A
// capture without that text can't publish the column. ServerSide is false for
// columns that are left out.
func (e *Encoder) ServerSide() []bool { return slices.Clone(e.server) }

// AppendObject appends the JSON object of a row. values has one value for each
// column that the Encoder was made for, also for those left out; nil is NULL.
//
// An error means that a value is not the text form of its type as it was loaded.
// Then nothing is appended. The error wraps ErrStaleTypes if the number of a
// composite's attributes has changed. (The text does not show that an attribute got
// another name, or was replaced by another: compare Types for that.)
func (e *Encoder) AppendObject(dst []byte, values [][]byte) ([]byte, error) {
	return e.appendPatched(dst, values, nil)
}

// appendPatched is AppendObject with ready JSON for some columns: where raw is not
// nil, it has the JSON of the column, which replaces the value. A column whose JSON is
// empty is left out.
func (e *Encoder) appendPatched(dst []byte, values, raw [][]byte) ([]byte, error) {
	if len(values) != len(e.columns) {
		return dst, fmt.Errorf("encode row: got %d values for %d columns", len(values), len(e.columns))
	}
	start := len(dst)
	for i := range e.columns {
		c := &e.columns[i]
		if c.value == nil {
			continue
		}
		if raw != nil && isAbsent(raw[i]) {
			continue
		}
		dst = append(dst, c.key...)
		if raw != nil && raw[i] != nil {
			dst = append(dst, raw[i]...)
			continue
		}
		if values[i] == nil {
			dst = append(dst, "null"...)
			continue
		}
		var err error
		if dst, err = e.append(dst, values[i], c.value); err != nil {
			e.scratch = e.scratch[:0]
			return dst[:start], fmt.Errorf("encode column %q: %w", c.name, err)
		}
	}
	if len(dst) == start {
		dst = append(dst, '{')
	}
	dst[start] = '{' // the first column may be left out
	if cap(e.scratch) > maxScratch {
		e.scratch = nil
	}
	return append(dst, '}'), nil
}

// append appends one value that is not NULL, like datum_to_json of json.c.
func (e *Encoder) append(dst, text []byte, n *node) ([]byte, error) {
	switch n.kind {
	case TypeString:
		return appendString(dst, text), nil
	case TypeNumber:
		return appendNumber(dst, text), nil
	case TypeBool:
		return appendBool(dst, text)
	case TypeTimestamp, TypeTimestampTZ:
		return appendTimestamp(dst, text, n.kind == TypeTimestampTZ)
	case TypeJSON, TypeServer:
		return append(dst, text...), nil
	case TypeArray:
		return e.appendArray(dst, text, n)
	case TypeVector:
		return e.appendVector(dst, text, n)
	case TypeComposite:
		return e.appendComposite(dst, text, n)
	case TypeHstore:
		return e.appendHstore(dst, text)
	}
	return dst, fmt.Errorf("no rule for kind %d", n.kind)
}
