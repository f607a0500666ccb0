package relation

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Form turns the rows of a relation, in Postgres' text form, into the data of
// documents. Two goroutines MUST NOT use it at the same time.
type Form struct {
	rel       *Relation
	data, key *Encoder
	// arrays says of each column of the key whether it is an array.
	arrays []bool
}

// NewForm returns the form of a relation whose columns have these types. The txid
// column, the deleted column and those of the protocol are not part of the data.
// The error wraps ErrStaleTypes if a type is not among types.
func NewForm(rel *Relation, types Types) (*Form, error) {
	f := &Form{rel: rel}
	var err error
	if f.data, err = NewEncoder(types, rel.Columns, func(i int) bool {
		return i == rel.Txid || i == rel.Deleted || rel.Columns[i].Protocol
	}); err != nil {
		return nil, err
	}
	if f.key, err = NewEncoder(types, rel.Columns, func(i int) bool { return !slices.Contains(rel.Key, i) }); err != nil {
		return nil, err
	}
	if f.arrays, err = keyArrays(rel, types); err != nil {
		return nil, err
	}
	for _, i := range rel.Key {
		if f.key.server[i] {
			return nil, fmt.Errorf("key column %s: its type has its own cast to json, and a key can't have such a type; name another key", rel.Columns[i].Name)
		}
	}
	return f, nil
}

// ServerSide returns Encoder.ServerSide of the data.
func (f *Form) ServerSide() []bool { return f.data.ServerSide() }

// Encodable returns the values that the other methods take. values has the text of
// each column, and after these the JSON of each column that only the server can
// turn into JSON. Encodable puts that JSON in the place of the column. It uses
// columns as memory, and may be given it again.
func (f *Form) Encodable(columns *[][]byte, values [][]byte) [][]byte {
	n := len(f.rel.Columns)
	if len(values) == n {
		return values
	}
	*columns = append((*columns)[:0], values[:n]...)
	for i, yes := range f.data.server {
		if yes {
			(*columns)[i] = values[n]
			n++
		}
	}
	return *columns
}

// AppendData appends the JSON object of a row, on one line; see
// Encoder.AppendObject.
func (f *Form) AppendData(dst []byte, values [][]byte) ([]byte, error) {
	return f.AppendPatched(dst, values, nil)
}

// Absent, as the ready JSON of a column, leaves the column out.
var Absent = []byte{}

func isAbsent(raw []byte) bool { return raw != nil && len(raw) == 0 }

// AppendPatched is AppendData with ready JSON for some columns: where raw is not
// nil, it has the JSON of the column, which replaces the value; or it is Absent.
func (f *Form) AppendPatched(dst []byte, values, raw [][]byte) ([]byte, error) {
	start := len(dst)
	dst, err := f.data.appendPatched(dst, values, raw)
	onOneLine(dst[start:])
	return dst, err
}

// AppendAbsent appends the JSON array of the names of the columns that are Absent in
// raw. It appends nothing if there are none.
func (f *Form) AppendAbsent(dst []byte, raw [][]byte) []byte {
	open := byte('[')
	for i, r := range raw {
		if isAbsent(r) {
			dst = appendString(append(dst, open), []byte(f.rel.Columns[i].Name))
			open = ','
		}
	}
	if open == ',' {
		dst = append(dst, ']')
	}
	return dst
}

// AppendKey appends the JSON object of a key's columns, given in key order.
func (f *Form) AppendKey(dst []byte, key [][]byte) ([]byte, error) {
	values := make([][]byte, len(f.rel.Columns))
	for n, i := range f.rel.Key {
		values[i] = key[n]
	}
	start := len(dst)
	dst, err := f.key.AppendObject(dst, values)
	onOneLine(dst[start:])
	return dst, err
}

// Txid returns the transaction ID of the row. The relation MUST have a txid
// column.
func (f *Form) Txid(values [][]byte) (uint64, error) {
	txid, err := parseTxid(values[f.rel.Txid])
	if err != nil {
		return 0, fmt.Errorf("column %s: %w", f.rel.Columns[f.rel.Txid].Name, err)
	}
	return txid, nil
}

// Deleted reports whether the row is marked as deleted.
func (f *Form) Deleted(values [][]byte) bool {
	return f.rel.Deleted >= 0 && isDeleted(values[f.rel.Deleted])
}

// onOneLine replaces the line breaks in a row's JSON with blanks. Only values of
// type json have any, between their tokens, where a blank means the same: Postgres
// returns such values as they were stored. With its line breaks, a stored value
// could forge a document for a client that reads line by line.
func onOneLine(data []byte) {
	for _, c := range [2]byte{'\n', '\r'} {
		for {
			i := bytes.IndexByte(data, c)
			if i < 0 {
				break
			}
			data[i] = ' '
		}
	}
}

// isDeleted reads the value of a deleted column: true, or a timestamp.
func isDeleted(value []byte) bool {
	return value != nil && string(value) != "f"
}

var errNoTxid = errors.New("not a transaction ID, which is a number from 0 on")

func parseTxid(text []byte) (uint64, error) {
	var n uint64
	for _, c := range text {
		if c < '0' || c > '9' || n > math.MaxUint64/10 {
			return 0, errNoTxid
		}
		n = n*10 + uint64(c-'0')
	}
	if len(text) == 0 {
		return 0, errNoTxid
	}
	return n, nil
}
