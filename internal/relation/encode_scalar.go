package relation

import (
	"bytes"
	"errors"
)

const hexDigits = "0123456789abcdef"

// plain is false for the bytes that a JSON string escapes. Like escape_json
// (json.c) it lets everything from 0x20 on pass but quote and backslash.
//
//nolint:gochecknoglobals // a constant table
var plain = func() (t [256]bool) {
	for i := range t {
		t[i] = i >= 0x20 && i != '"' && i != '\\'
	}
	return t
}()

// appendString appends escape_json's string of s.
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	done := 0
	for i, b := range s {
		if plain[b] {
			continue
		}
		dst = append(dst, s[done:i]...)
		done = i + 1
		switch b {
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
	}
	dst = append(dst, s[done:]...)
	return append(dst, '"')
}

// appendNumber appends s as it is if it is a JSON number; NaN and the
// infinities become strings (JSONTYPE_NUMERIC in datum_to_json).
func appendNumber(dst, s []byte) []byte {
	if isNumber(s) {
		return append(dst, s...)
	}
	return appendString(dst, s)
}

// isNumber is IsValidJsonNumber: RFC 8259's rule.
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

// digits counts the digits s begins with.
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

// appendTimestamp turns DateStyle ISO into what JsonEncodeDateTime prints
// (json.c; EncodeDateTime with USE_XSD_DATES in datetime.c): a T between date
// and time, and minutes in the zone even where they are 0. " BC" stays.
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
	year := digits(s)
	if year < 4 || len(s) < year+date+time || s[year] != '-' || s[year+date] != ' ' {
		return dst, errors.New("timestamp is not in DateStyle ISO")
	}
	s, era := bytes.CutSuffix(s, []byte(" BC"))
	for _, b := range s {
		if !plain[b] {
			return dst, errors.New("malformed timestamp")
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s[:year+date]...)
	dst = append(dst, 'T')
	dst = append(dst, s[year+date+1:]...)
	if zone {
		hours := len(s) - len("+00")
		switch {
		case s[hours] == '+' || s[hours] == '-':
			dst = append(dst, ":00"...)
		case s[hours] != ':':
			return dst, errors.New("timestamp has no zone")
		}
	}
	if era {
		dst = append(dst, " BC"...)
	}
	return append(dst, '"'), nil
}
