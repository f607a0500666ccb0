package edge

import (
	"strconv"

	"bridge/lockstep"
)

// Form makes what a client gets of a document: see replay.Form.
type Form = interface {
	Append(dst, doc []byte) ([]byte, error)
}

// Chunked sends documents as they are, each as one HTTP chunk.
type Chunked struct{}

// Append implements Form.
func (Chunked) Append(dst, doc []byte) ([]byte, error) { return appendChunk(dst, doc), nil }

// FlatChunked sends documents in the flat dialect, each as one HTTP chunk.
type FlatChunked struct{}

// Append implements Form.
func (FlatChunked) Append(dst, doc []byte) ([]byte, error) {
	flat, err := lockstep.AppendFlat(nil, doc)
	if err != nil {
		return dst, err
	}
	return appendChunk(dst, flat), nil
}

// appendChunk frames a document as one HTTP chunk (RFC 9112, section 7.1).
func appendChunk(dst, doc []byte) []byte {
	dst = strconv.AppendUint(dst, uint64(len(doc)), 16)
	dst = append(dst, '\r', '\n')
	dst = append(dst, doc...)
	return append(dst, '\r', '\n')
}

// formOf returns the form that a request asks for.
func formOf(req Request) Form {
	if req.Flat {
		return FlatChunked{}
	}
	return Chunked{}
}
