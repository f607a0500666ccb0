package relation

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
)

var errTimestamp = errors.New("timestamp is not in DateStyle ISO")

const hexDigits = "0123456789abcdef"

// plainPrefix counts the bytes at the start of s that need no escape in a JSON
// string. As in escape_json (json.c), only bytes below 0x20, quotes and backslashes
// need one. It looks at eight bytes at a time: (x-ones)&^x has the high bit set in
// each byte that is 0, reliably up to the first such byte.
func plainPrefix(s []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := binary.LittleEndian.Uint64(s[i:])
		quote, backslash := w^ones*'"', w^ones*'\\'
		found := ((w-ones*' ')&^w | (quote-ones)&^quote | (backslash-ones)&^backslash) & highs
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(s) && s[i] >= ' ' && s[i] != '"' && s[i] != '\\' {
		i++
	}
	return i
}

// appendString appends s as a JSON string, like escape_json.
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	for {
		n := plainPrefix(s)
		dst = append(dst, s[:n]...)
		if n == len(s) {
			return append(dst, '"')
		}
		switch b := s[n]; b {
		case '"', '\\':
			dst = append(dst, '\\', b)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&15])
		}
		s = s[n+1:]
	}
}

// appendNumber appends s as it is, if it is a JSON number. NaN and infinities
// become strings (JSONTYPE_NUMERIC in datum_to_json).
func appendNumber(dst, s []byte) []byte {
	if isNumber(s) {
		return append(dst, s...)
	}
	return appendString(dst, s)
}

// isNumber is IsValidJsonNumber, the rule of RFC 8259.
func isNumber(s []byte) bool {
	if len(s) > 0 && s[0] == '-' {
		s = s[1:]
	}
	n := digits(s)
	if n == 0 || n > 1 && s[0] == '0' {
		return false
	}
	s = s[n:]
	if len(s) > 0 && s[0] == '.' {
		if n = digits(s[1:]); n == 0 {
			return false
		}
		s = s[n+1:]
	}
	if len(s) > 0 && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if len(s) > 0 && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		if n = digits(s); n == 0 {
			return false
		}
		s = s[n:]
	}
	return len(s) == 0
}

// digits counts the digits at the start of s.
func digits(s []byte) int {
	for i, b := range s {
		if b < '0' || b > '9' {
			return i
		}
	}
	return len(s)
}

func appendBool(dst, s []byte) ([]byte, error) {
	switch string(s) {
	case "t":
		return append(dst, "true"...), nil
	case "f":
		return append(dst, "false"...), nil
	}
	return dst, errors.New("malformed boolean")
}

// appendTimestamp turns DateStyle ISO into the output of JsonEncodeDateTime (in
// json.c; EncodeDateTime with USE_XSD_DATES in datetime.c): a T between date and
// time, and always minutes in the zone. " BC" stays.
//
//	2006-01-02 15:04:05.999-07     "2006-01-02T15:04:05.999-07:00"
//	0044-03-15 00:00:00+00 BC      "0044-03-15T00:00:00+00:00 BC"
//	-infinity                      "-infinity"
func appendTimestamp(dst, s []byte, zone bool) ([]byte, error) {
	switch string(s) {
	case "infinity", "-infinity":
		return appendString(dst, s), nil
	}
	const date, time = len("-01-02"), len(" 15:04:05")
	s, era := bytes.CutSuffix(s, []byte(" BC"))
	year := digits(s)
	end := year + date + time
	if year < 4 || len(s) < end || s[year] != '-' || s[year+date] != ' ' {
		return dst, errTimestamp
	}
	if len(s) > end && s[end] == '.' {
		end += 1 + digits(s[end+1:])
	}
	offset := s[end:]
	if zone && (len(offset) < len("+00") || offset[0] != '+' && offset[0] != '-') || !zone && len(offset) > 0 {
		return dst, errTimestamp
	}
	if plainPrefix(s) != len(s) {
		return dst, errTimestamp
	}
	dst = append(dst, '"')
	dst = append(dst, s[:year+date]...)
	dst = append(dst, 'T')
	dst = append(dst, s[year+date+1:]...)
	if len(offset) == len("+00") {
		dst = append(dst, ":00"...)
	}
	if era {
		dst = append(dst, " BC"...)
	}
	return append(dst, '"'), nil
}
