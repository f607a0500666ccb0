package relation

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Form is how a relation's rows, in Postgres' text form, become the data of
// documents. Like its encoders it MUST NOT be used by two goroutines at once.
type Form struct {
	rel       *Relation
	data, key *Encoder
}

// NewForm returns the form of a relation whose columns are of these types. The
// columns that hold the row's transaction ID and mark it as deleted are not
// data. Its error wraps ErrStaleTypes where a type is not among those loaded.
func NewForm(rel *Relation, types Types) (*Form, error) {
	f := &Form{rel: rel}
	var err error
	if f.data, err = NewEncoder(types, rel.Columns, func(i int) bool { return i == rel.Txid || i == rel.Deleted }); err != nil {
		return nil, err
	}
	if f.key, err = NewEncoder(types, rel.Columns, func(i int) bool { return !slices.Contains(rel.Key, i) }); err != nil {
		return nil, err
	}
	for _, i := range rel.Key {
		if f.key.server[i] {
			return nil, fmt.Errorf("key column %s: its type has a cast to json of its own, which a key can't have; name another key", rel.Columns[i].Name)
		}
	}
	return f, nil
}

// ServerSide is the data's Encoder.ServerSide.
func (f *Form) ServerSide() []bool { return f.data.ServerSide() }

// Encodable returns the values that the form takes: those of the columns, but of
// one that only the server can turn into JSON what it made of it, which stands
// behind them all. columns is memory that is used again.
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

// AppendData appends a row's JSON object on one line; see Encoder.AppendObject.
func (f *Form) AppendData(dst []byte, values [][]byte) ([]byte, error) {
	return f.AppendPatched(dst, values, nil)
}

// AppendPatched is AppendData where raw, if not nil, has for some columns the
// JSON that stands for their values.
func (f *Form) AppendPatched(dst []byte, values, raw [][]byte) ([]byte, error) {
	start := len(dst)
	dst, err := f.data.appendPatched(dst, values, raw)
	onOneLine(dst[start:])
	return dst, err
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

// Txid returns the row's transaction ID, of a relation that has such a column.
func (f *Form) Txid(values [][]byte) (uint64, error) {
	txid, err := parseTxid(values[f.rel.Txid])
	if err != nil {
		return 0, fmt.Errorf("column %s: %w", f.rel.Columns[f.rel.Txid].Name, err)
	}
	return txid, nil
}

// Deleted says whether the row is marked as deleted.
func (f *Form) Deleted(values [][]byte) bool {
	return f.rel.Deleted >= 0 && isDeleted(values[f.rel.Deleted])
}

// onOneLine makes a row's JSON one line. The only line breaks in it are those
// between the tokens of values of type json, which Postgres gives as they were
// stored; a blank means the same. Left in, they would let a stored value forge
// a document for whoever reads line by line.
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

// isDeleted reads a deleted column: a boolean, or a timestamp that is not null.
func isDeleted(value []byte) bool {
	return value != nil && string(value) != "f"
}

var errNoTxid = errors.New("not a transaction ID, a number from 0 on")

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
