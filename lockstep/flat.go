package lockstep

import (
	"bytes"
	"fmt"
	"strconv"
)

// AppendFlat takes a row's document as the bridge encodes it, and appends it in the
// flat dialect, with its newline. It appends a document that is not a row unchanged.
func AppendFlat(dst, line []byte) ([]byte, error) {
	if !bytes.HasPrefix(line, []byte(rowTxid)) {
		return append(dst, line...), nil
	}
	txid, ok := Txid(line)
	if !ok {
		return nil, fmt.Errorf("%w: a row without txid", ErrMalformed)
	}
	deleted, data, ok := cutToData(line)
	if !ok || len(data) == 0 || data[0] != '{' {
		return nil, fmt.Errorf("%w: a row without data", ErrMalformed)
	}
	dst = append(dst, `{"updated_at":`...)
	dst = strconv.AppendUint(dst, txid, 10)
	dst = append(dst, `,"deleted_at":`...)
	if deleted {
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

// cutToData returns whether a row's document says deleted, and the rest of it after
// the name of the member data. It goes from member to member, because a column of
// old may have the name data, and old comes first.
func cutToData(line []byte) (deleted bool, data []byte, ok bool) {
	deleted, rest, ok := cutHead(line)
	for ok {
		if data, ok = cutPrefix(rest, rowData); ok {
			return deleted, data, true
		}
		rest, ok = cutMember(rest)
	}
	return false, nil, false
}

// cutMember cuts off the comma at b's beginning and the member after it.
func cutMember(b []byte) (rest []byte, ok bool) {
	if len(b) == 0 || b[0] != ',' {
		return nil, false
	}
	colon := skipString(b, 1)
	if colon < 0 || colon >= len(b) || b[colon] != ':' {
		return nil, false
	}
	end := skipValue(b, colon+1)
	if end <= colon+1 {
		return nil, false
	}
	return b[end:], true
}

// appendMembers appends the members of the object at the beginning of obj, each
// after a comma. It leaves out the two names that the dialect itself uses.
func appendMembers(dst, obj []byte) ([]byte, error) {
	i := 1
	for i < len(obj) && obj[i] != '}' {
		if obj[i] == ',' {
			i++
		}
		start := i
		colon := skipString(obj, i)
		if colon < 0 || colon >= len(obj) || obj[colon] != ':' {
			return nil, fmt.Errorf("%w: a member without a name", ErrMalformed)
		}
		end := skipValue(obj, colon+1)
		if end < 0 {
			return nil, fmt.Errorf("%w: a member whose value does not end", ErrMalformed)
		}
		if name := string(obj[start:colon]); name != `"updated_at"` && name != `"deleted_at"` {
			dst = append(dst, ',')
			dst = append(dst, obj[start:end]...)
		}
		i = end
	}
	if i >= len(obj) {
		return nil, fmt.Errorf("%w: an object that does not end", ErrMalformed)
	}
	return dst, nil
}

// skipString returns the index after the JSON string that begins at i, or -1.
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

// skipValue returns the index of the comma or brace after the JSON value that begins
// at i, or -1.
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
