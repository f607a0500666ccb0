package edge

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"strconv"
	"strings"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// coding is a content coding (RFC 9110, section 8.4.1). It codes piece by piece. A client
// can decode a piece once it has that, and without the pieces before. So clients that
// begin at different places share them, and no row waits for the next one.
type coding interface {
	// name is what Content-Encoding says.
	name() string
	// begin returns what comes before all pieces, and end what comes after them. Decoded,
	// these have the sum. An empty result stands for nothing.
	begin() []byte
	end(s sum) []byte
	// piece codes b.
	piece(b []byte) []byte
	// summed says whether end looks at the sum.
	summed() bool
}

// pieceBytes is about how much of documents a piece has. It is the window of gzip: more
// makes the result hardly smaller.
const pieceBytes = 32 << 10

// gzip is one member (RFC 1952), because browsers read no further one.
type gzip struct{}

func (gzip) name() string  { return "gzip" }
func (gzip) begin() []byte { return []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff} }
func (gzip) summed() bool  { return true }

func (gzip) piece(b []byte) []byte {
	var out bytes.Buffer
	w := <-deflaters
	defer func() { deflaters <- w }()
	if w == nil {
		w, _ = flate.NewWriter(nil, flate.BestSpeed) // the level is valid
	}
	w.Reset(&out)
	_, _ = w.Write(b) // a buffer takes everything
	_ = w.Flush()
	return out.Bytes()
}

func (gzip) end(s sum) []byte {
	b := []byte{1, 0, 0, 0xff, 0xff} // the last block, without bytes (RFC 1951, section 3.2.4)
	b = binary.LittleEndian.AppendUint32(b, s.crc)
	return binary.LittleEndian.AppendUint32(b, s.size)
}

// deflaters has as many writers as can work at the same time, nil for those that were not
// yet needed. One takes about 1 MiB.
var deflaters = func() chan *flate.Writer {
	c := make(chan *flate.Writer, runtime.GOMAXPROCS(0))
	for range cap(c) {
		c <- nil
	}
	return c
}()

// zstandard makes each piece a frame (RFC 8878, section 3.1).
type zstandard struct{}

func (zstandard) name() string          { return "zstd" }
func (zstandard) begin() []byte         { return nil }
func (zstandard) end(sum) []byte        { return nil }
func (zstandard) summed() bool          { return false }
func (zstandard) piece(b []byte) []byte { return zstdEncoder.EncodeAll(b, nil) }

// zstdEncoder works for as many at a time as there are processors; others wait.
var zstdEncoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(64<<10),
	zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true)) // the options are valid

// sum is the CRC-32 of what a response is without its coding, and its size modulo 2³².
type sum struct{ crc, size uint32 }

func (s *sum) add(b []byte) {
	s.crc = crc32.Update(s.crc, crc32.IEEETable, b)
	s.size += uint32(len(b))
}

// codings are those that the edge knows, the first one first where a client takes several
// alike: some programs read only the first frame of zstd.
var codings = []coding{gzip{}, zstandard{}}

// accepted returns the coding that the values of Accept-Encoding ask for by name, and nil
// if that is none.
func accepted(values []string) (c coding) {
	best := 0.0
	for _, known := range codings {
		if q := quality(values, known.name()); q > best {
			c, best = known, q
		}
	}
	return c
}

// quality returns the weight that a client gives to a coding: 0 if it does not take it.
func quality(values []string, name string) (q float64) {
	for field := range strings.SplitSeq(strings.Join(values, ","), ",") {
		token, parameter, _ := strings.Cut(field, ";")
		if !strings.EqualFold(strings.TrimSpace(token), name) {
			continue
		}
		q = 1
		if key, weight, ok := strings.Cut(parameter, "="); ok && strings.EqualFold(strings.TrimSpace(key), "q") {
			q, _ = strconv.ParseFloat(strings.TrimSpace(weight), 64) // what is no number is 0
		}
	}
	return q
}
