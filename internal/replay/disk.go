package replay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// disk keeps the blocks that memory has no room for in files of a folder. It loses
// nothing that matters: what it can't write or read is read from the broker again. One
// goroutine writes. Each reader of a block reads its file.
type disk struct {
	// Static after construction.
	dir   string
	limit int64
	log   zerolog.Logger
	bytes prometheus.Gauge
	// queue are the blocks to be written. They are in memory, and the cache no longer
	// counts them; so there are few.
	queue chan *Block

	mu sync.Mutex
	// Guarded by mu: the blocks that have a file, and how large the files are together.
	blocks map[*Block]*blockFile
	sum    int64
	names  uint64
	// failed is when a write failed last, and said when a failure was last said.
	failed, said time.Time
}

const (
	// diskQueue bounds the blocks that wait to be written.
	diskQueue = 8
	// diskRest is how long nothing is written after a write that failed. Failures are said
	// once in that time.
	diskRest = time.Minute
)

// blockFile is where a block is on disk.
type blockFile struct {
	path string
	// size is the file's, documents how many it has, and sum its checksum (CRC-32C).
	size      int64
	documents int
	sum       uint32
}

// newDisk returns the disk cache in a folder of the edge's own, nil if it may have no
// bytes.
func newDisk(dir string, limit int64, bytes prometheus.Gauge, log zerolog.Logger) *disk {
	if dir == "" || limit <= 0 {
		return nil
	}
	return &disk{dir: dir, limit: limit, bytes: bytes, log: log, queue: make(chan *Block, diskQueue), blocks: make(map[*Block]*blockFile)}
}

// take takes a block that the cache has no room for, and says whether it does. If so, the
// block stays one of its relation's.
func (d *disk) take(b *Block) bool {
	if d == nil {
		return false
	}
	d.mu.Lock()
	_, written := d.blocks[b]
	resting := time.Since(d.failed) < diskRest
	d.mu.Unlock()
	if written {
		b.release()
		return true
	}
	if resting || b.empty() {
		return false
	}
	select {
	case d.queue <- b:
		return true
	default: // the disk is slower than the broker
		return false
	}
}

// run writes blocks until ctx ends, and then removes its files.
func (d *disk) run(ctx context.Context) {
	defer d.removeAll()
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-d.queue:
			if !d.write(b) {
				b.relation.remove(b)
			}
		}
	}
}

// write writes a block, and says whether it has.
func (d *disk) write(b *Block) bool {
	d.mu.Lock()
	d.names++
	f := &blockFile{path: filepath.Join(d.dir, strconv.FormatUint(d.names, 10)+blockSuffix)}
	d.mu.Unlock()
	v, _ := b.view()
	data := v.encode()
	f.size, f.documents, f.sum = int64(len(data)), len(v.documents), crc32.Checksum(data, castagnoli)
	err := os.WriteFile(f.path, data, 0o600)
	if errors.Is(err, os.ErrNotExist) { // somebody removed the folder
		if err = os.MkdirAll(d.dir, 0o700); err == nil {
			err = os.WriteFile(f.path, data, 0o600)
		}
	}
	if err != nil {
		_ = os.Remove(f.path)
		d.fail(err, "the cache on disk can't be written; what is not in memory is read from the broker, and the disk is tried again in a minute")
		d.mu.Lock()
		defer d.mu.Unlock()
		d.failed = time.Now()
		return false
	}
	d.mu.Lock()
	d.blocks[b] = f
	d.sum += f.size
	d.bytes.Set(float64(d.sum))
	d.mu.Unlock()
	b.release()
	if !b.relation.has(b) { // it became void meanwhile
		d.drop(b)
	}
	d.trim(b)
	return true
}

// fail says that something failed, once in a while.
func (d *disk) fail(err error, what string) {
	d.mu.Lock()
	again := time.Since(d.said) < diskRest
	if !again {
		d.said = time.Now()
	}
	d.mu.Unlock()
	if !again {
		d.log.Warn().Err(err).Msg(what)
	}
}

// trim removes the files that nobody has looked at for the longest time, but not that of
// the block keep, until the rest is within the limit.
func (d *disk) trim(keep *Block) {
	for {
		b := d.oldest(keep)
		if b == nil {
			return
		}
		b.relation.remove(b)
	}
}

func (d *disk) oldest(keep *Block) *Block {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sum <= d.limit {
		return nil
	}
	return leastUsed(maps.Keys(d.blocks), func(b *Block) bool { return b != keep })
}

// drop removes a block's file, if it has one.
func (d *disk) drop(b *Block) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.blocks[b]; f != nil {
		d.sum -= f.size
		d.bytes.Set(float64(d.sum))
		delete(d.blocks, b)
		_ = os.Remove(f.path)
	}
}

// read returns what a block has in its file.
func (d *disk) read(b *Block) (view, error) {
	d.mu.Lock()
	f := d.blocks[b]
	d.mu.Unlock()
	if f == nil {
		return view{}, errNoFile
	}
	index, data, err := f.read()
	if err == nil {
		return decodeView(index, data), nil
	}
	d.mu.Lock()
	removed := d.blocks[b] != f
	d.mu.Unlock()
	if removed {
		return view{}, errNoFile
	}
	d.fail(err, "a file of the cache on disk was removed or damaged; what it had is read from the broker again")
	return view{}, err
}

// read returns what is in the file: what says where the documents are, and their text.
func (f *blockFile) read() (index, data []byte, err error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = file.Close() }()
	index = make([]byte, f.documents*documentBytes)
	data = make([]byte, f.size-int64(len(index)))
	for _, part := range [][]byte{index, data} {
		if _, err := io.ReadFull(file, part); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", filepath.Base(f.path), err)
		}
	}
	if sum := crc32.Update(crc32.Checksum(index, castagnoli), castagnoli, data); sum != f.sum {
		return nil, nil, fmt.Errorf("%s is not what was written", filepath.Base(f.path))
	}
	return index, data, nil
}

// errNoFile says that a block's file was removed since the block was looked up.
var errNoFile = errors.New("the block is no longer on disk")

func (d *disk) removeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b, f := range d.blocks {
		_ = os.Remove(f.path)
		delete(d.blocks, b)
	}
}

// blockSuffix ends the names of the files.
const blockSuffix = ".block"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// documentBytes is what a document takes in a file besides its text: sequence, High, end,
// and whether it is a heartbeat.
const documentBytes = 8 + 8 + 4 + 1

// encode returns the documents as a file has them.
func (v *view) encode() []byte {
	b := make([]byte, 0, len(v.documents)*documentBytes+len(v.data))
	for _, d := range v.documents {
		b = binary.LittleEndian.AppendUint64(b, d.seq)
		b = binary.LittleEndian.AppendUint64(b, d.high)
		b = binary.LittleEndian.AppendUint32(b, d.end)
		beat := byte(0)
		if d.heartbeat {
			beat = 1
		}
		b = append(b, beat)
	}
	return append(b, v.data...)
}

// decodeView returns what encode encoded. It keeps data.
func decodeView(index, data []byte) (v view) {
	v.documents = make([]document, len(index)/documentBytes)
	for i := range v.documents {
		b := index[i*documentBytes:]
		v.documents[i] = document{
			seq: binary.LittleEndian.Uint64(b), high: binary.LittleEndian.Uint64(b[8:]),
			end: binary.LittleEndian.Uint32(b[16:]), heartbeat: b[20] == 1,
		}
		if v.documents[i].heartbeat {
			v.beats = append(v.beats, i)
		}
	}
	v.data = data
	return v
}
