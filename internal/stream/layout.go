// Package stream is the JetStream layout that bridge and edge share: the names of
// streams, subjects and headers, the stream's configuration, and the encoding of
// control messages. No other package spells any of these.
//
// There is one stream per relation. In its name and subjects every byte that is not
// plain is escaped. So two different relations always have different names,
// whatever characters their identifiers have (the encoding is injective).
package stream

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// DefaultPrefix is the prefix of all names unless another one is configured.
const DefaultPrefix = "lockstep"

// A name or key that is longer than its limit is replaced by its SHA-256.
const (
	// maxToken limits a schema's or table's name in bytes. The server allows 255
	// bytes for a stream's whole name.
	maxToken = 100
	// maxKey limits all tokens of a key together. A subject over 4 KB makes the
	// server close the connection for good.
	maxKey = 200
)

// Layout names one relation's stream and subjects.
type Layout struct {
	// Schema and Table are the relation's own names.
	Schema, Table string
	// Stream is the stream's name.
	Stream string
	// log is true for a stream that keeps every version, on one subject.
	log bool
	// base is the beginning of every subject, without the dot that follows.
	base   string
	prefix string
}

// NewLayout returns the layout of a relation's stream. prefix must have passed
// CheckPrefix; log says that the stream keeps every version.
func NewLayout(prefix, schema, table string, log bool) Layout {
	return Layout{
		Schema: schema, Table: table, log: log,
		Stream: StreamPrefix(prefix) + streamToken(schema) + "-" + streamToken(table),
		base:   prefix + "." + subjectToken(schema) + "." + subjectToken(table),
		prefix: prefix,
	}
}

// CheckPrefix returns an error if the configured prefix is not a valid one.
func CheckPrefix(prefix string) error {
	if prefix == "" || len(prefix) > 30 {
		return errors.New("a stream prefix must have 1 to 30 characters")
	}
	if prefix[0] == IngestMark {
		return errors.New("a stream prefix must not begin with _: what the bridge publishes on has one more at its beginning")
	}
	for _, c := range []byte(prefix) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_') {
			return errors.New("a stream prefix must have only the characters a-z, 0-9 and _")
		}
	}
	return nil
}

// StreamPrefix returns the beginning of every stream's name.
func StreamPrefix(prefix string) string { return strings.ToUpper(prefix) + "-" }

// LeaseBucket returns the name of the key-value bucket of the writers' leases.
func LeaseBucket(prefix string) string { return strings.ToUpper(prefix) + "_LEASES" }

// Log says whether the stream keeps every version of a row.
func (l Layout) Log() bool { return l.log }

// IngestMark is the first byte of every subject that a writer publishes on. The
// stream stores the message under the rest of the subject. So subscribers of the
// stream's subjects never see what the stream has not stored, nor the subject that
// the broker acknowledges to.
const IngestMark = '_'

// Ingest returns the subject on which to publish what is stored under the subject.
func Ingest(subject string) string { return string(IngestMark) + subject }

// Ingest returns the filter for all subjects on which the stream's writer publishes.
func (l Layout) Ingest() string { return Ingest(l.All()) }

// All returns the subject filter for all messages of the stream.
func (l Layout) All() string { return l.base + ".>" }

// Rows returns the subject filter for the rows.
func (l Layout) Rows() string {
	if l.log {
		return l.base + ".row"
	}
	return l.base + ".row.>"
}

// Subjects of the control messages.
func (l Layout) Heartbeat() string { return l.base + ".heartbeat" }
func (l Layout) Fence() string     { return l.base + ".fence" }
func (l Layout) Batch() string     { return l.base + ".batch" }
func (l Layout) SchemaSubject() string {
	return l.base + ".schema"
}
func (l Layout) Alive() string { return l.base + ".alive" }

// Reconcile returns the subject for requests to the bridge that writes the stream.
// It has three tokens. All subjects that streams listen on have at least four, so no
// stream stores a request. No subscriber of the stored subjects gets it either: else
// the broker would not say that no bridge listens.
func (l Layout) Reconcile() string { return Ingest(l.prefix + ".reconcile." + l.Stream) }

// Kind is the kind of a stream's message.
type Kind byte

// Kinds of messages.
const (
	KindUnknown Kind = iota
	KindRow
	KindHeartbeat
	KindFence
	KindBatch
	KindSchema
	KindAlive
)

// KindOf returns the kind of the messages with this subject. It does not allocate.
func (l Layout) KindOf(subject string) Kind {
	rest, ok := strings.CutPrefix(subject, l.base)
	if !ok {
		return KindUnknown
	}
	switch rest {
	case ".heartbeat":
		return KindHeartbeat
	case ".fence":
		return KindFence
	case ".batch":
		return KindBatch
	case ".schema":
		return KindSchema
	case ".alive":
		return KindAlive
	case ".row":
		return KindRow
	}
	if strings.HasPrefix(rest, ".row.") {
		return KindRow
	}
	return KindUnknown
}

// AppendRowSubject appends the subject of the row with the key. needsKey says that
// the message must have the header KeyHeader, because the subject does not contain
// the key.
func (l Layout) AppendRowSubject(dst []byte, key [][]byte) (subject []byte, needsKey bool) {
	dst = append(dst, l.base...)
	dst = append(dst, ".row"...)
	if l.log {
		return dst, true
	}
	dst = append(dst, '.')
	start := len(dst)
	dst = AppendKey(dst, key)
	if len(dst)-start <= maxKey {
		return dst, false
	}
	sum := sha256.Sum256(dst[start:])
	dst = append(dst[:start], "=h"...)
	return hex.AppendEncode(dst, sum[:]), true
}

// AppendKey appends a key's tokens with dots between them. This is the key's form
// in subjects and in the header KeyHeader.
func AppendKey(dst []byte, key [][]byte) []byte {
	for i, k := range key {
		if i > 0 {
			dst = append(dst, '.')
		}
		if len(k) == 0 {
			dst = append(dst, '=')
			continue
		}
		for _, c := range k {
			if plain(c) || c == '-' {
				dst = append(dst, c)
			} else {
				dst = append(dst, '=', upperHex[c>>4], upperHex[c&15])
			}
		}
	}
	return dst
}

// Key returns the key of a row's message. It takes the key from header, the value
// of KeyHeader, or, if that is empty, from the subject.
func (l Layout) Key(subject, header string) ([][]byte, error) {
	text := header
	if text == "" {
		var ok bool
		if text, ok = strings.CutPrefix(subject, l.base+".row."); !ok || strings.HasPrefix(text, "=h") {
			return nil, fmt.Errorf("subject %q contains no key", subject)
		}
	}
	var key [][]byte
	for token := range strings.SplitSeq(text, ".") {
		k, err := unescape(token)
		if err != nil {
			return nil, fmt.Errorf("parse key of subject %q: %w", subject, err)
		}
		key = append(key, k)
	}
	return key, nil
}

func unescape(token string) ([]byte, error) {
	if token == "=" {
		return []byte{}, nil
	}
	if token == "" {
		return nil, errors.New("an empty token")
	}
	out := make([]byte, 0, len(token))
	for i := 0; i < len(token); i++ {
		if token[i] != '=' {
			out = append(out, token[i])
			continue
		}
		if i+2 >= len(token) {
			return nil, errors.New("an escape is cut short")
		}
		hi, lo := strings.IndexByte(upperHex, token[i+1]), strings.IndexByte(upperHex, token[i+2])
		if hi < 0 || lo < 0 {
			return nil, errors.New("an escape is not two hexadecimal digits")
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	return out, nil
}

const upperHex = "0123456789ABCDEF"

// plain says whether a byte needs no escape, neither in a stream's name nor in a
// subject.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

func streamToken(name string) string {
	return bounded(escapeName(name, func(c byte) bool { return plain(c) }))
}

func subjectToken(name string) string {
	return bounded(escapeName(name, func(c byte) bool { return plain(c) || c == '-' }))
}

func escapeName(name string, keep func(byte) bool) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if keep(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'=', upperHex[c>>4], upperHex[c&15]})
		}
	}
	return b.String()
}

// bounded replaces a long token by its hash. Names in Postgres have at most 63
// bytes, so only names with more than 18 escaped bytes are that long.
func bounded(token string) string {
	if len(token) <= maxToken {
		return token
	}
	sum := sha256.Sum256([]byte(token))
	return "=h" + hex.EncodeToString(sum[:])
}
