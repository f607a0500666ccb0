package edge

import (
	"strconv"

	"bridge/lockstep"
)

// Form makes what a client gets of a document: see replay.Form.
type Form = interface {
	Append(dst, doc []byte) ([]byte, error)
}

// form is the dialect of a response, and how its documents are delimited.
type form struct {
	// flat says that documents are in the flat dialect, not as they are.
	flat bool
	// chunked says that each document is one HTTP chunk, as existing clients want it. HTTP/2
	// needs no such frames.
	chunked bool
}

// Append implements Form.
func (f form) Append(dst, doc []byte) ([]byte, error) {
	if f.flat {
		flat, err := lockstep.AppendFlat(nil, doc)
		if err != nil {
			return dst, err
		}
		doc = flat
	}
	return f.frame(dst, doc), nil
}

// frame appends what is whole for the client: a document, a position, or a keep-alive.
func (f form) frame(dst, doc []byte) []byte {
	if !f.chunked {
		return append(dst, doc...)
	}
	return appendChunk(dst, doc)
}

// appendChunk frames a document as one HTTP chunk (RFC 9112, section 7.1).
func appendChunk(dst, doc []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(len(doc)), 16)
	dst = append(dst, '\r', '\n')
	dst = append(dst, doc...)
	return append(dst, '\r', '\n')
}

// end appends what ends a response that is whole.
func (f form) end(dst []byte) []byte {
	if !f.chunked {
		return dst
	}
	return append(dst, finalChunk...)
}

// finalChunk is the last chunk, of no bytes.
const finalChunk = "0\r\n\r\n"

// keepAlive is what existing clients skip.
var keepAlive = []byte("\r\n")
