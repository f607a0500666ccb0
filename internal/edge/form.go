package edge

import (
	"iter"
	"strconv"

	"bridge/lockstep"
)

// Form makes what a client gets of documents: see replay.Form.
type Form = interface {
	Append(dst []byte, docs iter.Seq[[]byte]) ([]byte, error)
	Together() int
}

// form is the dialect of a response, how it is coded, and how its documents are delimited.
type form struct {
	// flat says that documents are in the flat dialect, not as they are.
	flat bool
	// chunked says that each document, or each piece of a coding, is one HTTP chunk, as
	// existing clients want it. HTTP/2 needs no such frames.
	chunked bool
	// coding is nil for none.
	coding coding
}

// Together implements replay.Form.
func (f form) Together() int {
	if f.coding == nil {
		return 0
	}
	return pieceBytes
}

// Append implements replay.Form.
func (f form) Append(dst []byte, docs iter.Seq[[]byte]) ([]byte, error) {
	var piece []byte
	for doc := range docs {
		if f.flat {
			flat, err := lockstep.AppendFlat(nil, doc)
			if err != nil {
				return dst, err
			}
			doc = flat
		}
		if f.coding == nil {
			dst = f.chunk(dst, doc)
		} else {
			piece = append(piece, doc...)
		}
	}
	if f.coding != nil {
		dst = f.frame(dst, piece)
	}
	return dst, nil
}

// Native is the form that most clients get, those of HTTP/1.1: see replay.Native.
var Native = form{chunked: true}

// Frame implements replay.Native, for the form Native.
func (f form) Frame(dst, doc []byte) (_ []byte, head int) {
	before := len(dst)
	dst = f.chunk(dst, doc)
	return dst, len(dst) - before - len(doc) - len("\r\n")
}

// frame appends what is whole for the client: documents, a position, or a keep-alive.
func (f form) frame(dst, docs []byte) []byte {
	if f.coding != nil {
		docs = f.coding.piece(docs)
	}
	return f.chunk(dst, docs)
}

// chunk appends b, as one HTTP chunk where those are wanted (RFC 9112, section 7.1). A
// chunk of nothing would end the response.
func (f form) chunk(dst, b []byte) []byte {
	if !f.chunked || len(b) == 0 {
		return append(dst, b...)
	}
	dst = strconv.AppendUint(dst, uint64(len(b)), 16)
	dst = append(dst, '\r', '\n')
	dst = append(dst, b...)
	return append(dst, '\r', '\n')
}

// begin appends what comes before all documents.
func (f form) begin(dst []byte) []byte {
	if f.coding == nil {
		return dst
	}
	return f.chunk(dst, f.coding.begin())
}

// end appends what ends a response that is whole. Without the coding, the response has
// the sum.
func (f form) end(dst []byte, s sum) []byte {
	if f.coding != nil {
		dst = f.chunk(dst, f.coding.end(s))
	}
	if !f.chunked {
		return dst
	}
	return append(dst, finalChunk...)
}

// finalChunk is the last chunk, of no bytes.
const finalChunk = "0\r\n\r\n"

// keepAlive is what existing clients skip.
var keepAlive = []byte("\r\n")
