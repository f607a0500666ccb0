package lockstep

import (
	"bytes"
	"fmt"
	"strconv"
)

// AppendFlat appends a row's document, as the bridge encodes it, in the flat
// dialect, with its newline. Documents that are not rows are appended as they
// are.
func AppendFlat(dst, line []byte) ([]byte, error) {
	if !bytes.HasPrefix(line, []byte(rowTxid)) {
		return append(dst, line...), nil
	}
	head, data, ok := bytes.Cut(line, []byte(rowData))
	if !ok || len(data) == 0 || data[0] != '{' {
		return nil, fmt.Errorf("%w: a row without data", ErrMalformed)
	}
	txid, ok := Txid(line)
	if !ok {
		return nil, fmt.Errorf("%w: a row without txid", ErrMalformed)
	}
	dst = append(dst, `{"updated_at":`...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, `,"deleted_at":`...)
	if bytes.HasSuffix(head, []byte("true")) {
		dst = strconv.AppendUint(dst, txid, 10)
	} else {
		dst = append(dst, "null"...)
	}
	dst, err := appendMembers(dst, data)
	if err != nil {
		return nil, err
	}
	return append(dst, '}', '\n'), nil
}

// appendMembers appends the members of the object that obj begins with, each
// behind a comma, leaving out the two names that the dialect takes.
func appendMembers(dst, obj []byte) ([]byte, error) {
	i := 1
	for i < len(obj) && obj[i] != '}' {
		if obj[i] == ',' {
			i++
		}
		start := i
		colon := skipString(obj, i)
		if colon < 0 || colon >= len(obj) || obj[colon] != ':' {
			return nil, fmt.Errorf("%w: a member's name", ErrMalformed)
		}
		end := skipValue(obj, colon+1)
		if end < 0 {
			return nil, fmt.Errorf("%w: a member's value", ErrMalformed)
		}
		if name := string(obj[start:colon]); name != `"updated_at"` && name != `"deleted_at"` {
			dst = append(dst, ',')
			dst = append(dst, obj[start:end]...)
		}
		i = end
	}
	if i >= len(obj) {
		return nil, fmt.Errorf("%w: an object without an end", ErrMalformed)
	}
	return dst, nil
}

// skipString returns the place behind the string that begins at i, or -1.
func skipString(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// skipValue returns the place of the comma or brace that ends the member's
// value that begins at i, or -1.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			if i = skipString(b, i); i < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return -1
}
