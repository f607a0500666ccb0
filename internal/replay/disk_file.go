package replay

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// blockFile is where a block is on disk. The file begins with a line that says what it
// has, with a checksum of its own. Then come the places of the documents, and their text.
type blockFile struct {
	path string
	head blockHead
	// begin is where the documents' places begin, and size is that of the whole file.
	begin, size int64
	// idle says that no relation that is served has the block.
	idle bool
}

// blockHead is what the first line of a file says of the block: see Block and marks.
type blockHead struct {
	// Format changes with that of the files.
	Format      int    `json:"format"`
	Stream      string `json:"stream"`
	Incarnation string `json:"incarnation"`
	Epoch       string `json:"epoch"`
	First       uint64 `json:"first"`
	Last        uint64 `json:"last"`
	HighBefore  uint64 `json:"high_before"`
	FloorAfter  uint64 `json:"floor_after"`
	Until       uint64 `json:"until"`
	End         uint64 `json:"end"`
	Cold        bool   `json:"cold"`
	// Documents is how many there are, Bytes what they take after the line, and Sum the
	// checksum of that (CRC-32C).
	Documents int    `json:"documents"`
	Bytes     int64  `json:"bytes"`
	Sum       uint32 `json:"sum"`
}

// blockFormat is the format of the files that this program writes and reads. The native
// form is a part of it.
const blockFormat = 1

// blockSuffix ends the names of the files.
const blockSuffix = ".block"

// maxHead is more than a first line has.
const maxHead = 4 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// newBlockFile returns the file for a block that no longer grows, and what is to be
// written there.
func newBlockFile(path string, v *view) (*blockFile, []byte) {
	body := v.encode()
	f := &blockFile{path: path, head: blockHead{
		Format: blockFormat, Stream: v.relation.info.Layout.Stream, Incarnation: v.relation.info.Meta.Incarnation, Epoch: v.epoch,
		First: v.first, Last: v.last, HighBefore: v.highBefore, FloorAfter: v.floorAfter, Until: v.until, End: v.end, Cold: v.cold,
		Documents: len(v.documents), Bytes: int64(len(body)), Sum: crc32.Checksum(body, castagnoli),
	}}
	line, _ := json.Marshal(f.head) // such a struct always has JSON
	data := fmt.Appendf(make([]byte, 0, maxHead+len(body)), headFormat, crc32.Checksum(line, castagnoli), line)
	f.begin, f.size = int64(len(data)), int64(len(data)+len(body))
	return f, append(data, body...)
}

// headFormat is how the checksum and the JSON of a head stand in the first line.
const headFormat = "%08x %s\n"

// findBlockFile returns the file at the path, if it is one that an edge has written to
// its end.
func findBlockFile(path string) (*blockFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReaderSize(io.LimitReader(file, maxHead), maxHead).ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	f := &blockFile{path: path, begin: int64(len(line)), size: info.Size(), idle: true}
	text := line[min(len(line), 9) : len(line)-1]
	if err := json.Unmarshal(text, &f.head); err != nil {
		return nil, err
	}
	if string(line) != fmt.Sprintf(headFormat, crc32.Checksum(text, castagnoli), text) || f.head.Format != blockFormat || f.begin+f.head.Bytes != f.size {
		return nil, fmt.Errorf("%s is not what was written", filepath.Base(path))
	}
	return f, nil
}

// block returns the file's block as one of the relation, nil for none.
func (f *blockFile) block(r *relation) *Block {
	h := &f.head
	b := newBlock(r, h.First, h.HighBefore)
	b.cold, b.away = h.Cold, true
	b.marks = marks{last: h.Last, floorAfter: h.FloorAfter, until: h.Until, end: h.End, epoch: h.Epoch}
	return b
}

// read returns what is in the file: what says where the documents are, and their text.
func (f *blockFile) read() (index, data []byte, err error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = file.Close() }()
	index = make([]byte, f.head.Documents*documentBytes)
	data = make([]byte, f.head.Bytes-int64(len(index)))
	at := f.begin
	for _, part := range [][]byte{index, data} {
		if _, err := file.ReadAt(part, at); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", filepath.Base(f.path), err)
		}
		at += int64(len(part))
	}
	if sum := crc32.Update(crc32.Checksum(index, castagnoli), castagnoli, data); sum != f.head.Sum {
		return nil, nil, fmt.Errorf("%s is not what was written", filepath.Base(f.path))
	}
	return index, data, nil
}

// documentBytes is what a document takes in a file besides its text: sequence, High, end,
// head, tail, and whether it is a heartbeat.
const documentBytes = 8 + 8 + 4 + 3

// encode returns the documents as a file has them.
func (v *view) encode() []byte {
	b := make([]byte, 0, len(v.documents)*documentBytes+len(v.kept.data))
	for i, d := range v.documents {
		b = binary.LittleEndian.AppendUint64(b, d.seq)
		b = binary.LittleEndian.AppendUint64(b, d.high)
		b = binary.LittleEndian.AppendUint32(b, v.kept.ends[i])
		beat := byte(0)
		if d.heartbeat {
			beat = 1
		}
		b = append(b, d.head, d.tail, beat)
	}
	return append(b, v.kept.data...)
}

// decodeView returns what encode encoded. It keeps data.
func decodeView(index, data []byte) (v view) {
	n := len(index) / documentBytes
	v.documents, v.kept = make([]document, n), rendering{data, make([]uint32, n)}
	for i := range v.documents {
		b := index[i*documentBytes:]
		v.documents[i] = document{
			seq: binary.LittleEndian.Uint64(b), high: binary.LittleEndian.Uint64(b[8:]),
			head: b[20], tail: b[21], heartbeat: b[22] == 1,
		}
		v.kept.ends[i] = binary.LittleEndian.Uint32(b[16:])
		if v.documents[i].heartbeat {
			v.beats = append(v.beats, i)
		}
	}
	return v
}
