package replay

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bridge/internal/stream"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// disk keeps the blocks that memory has no room for in files of a folder. It loses
// nothing that matters: what it can't write or read is read from the broker again. One
// goroutine writes. Each reader of a block reads its file.
type disk struct {
	// Static after construction. keep says that the files outlive the hub.
	dir   string
	limit int64
	keep  bool
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

// newDisk returns the disk cache in a folder of the edge's own, nil if it may have no
// bytes. If the files are to be kept, it finds those of an earlier hub.
func newDisk(opt Options, bytes prometheus.Gauge, log zerolog.Logger) *disk {
	if opt.CacheDir == "" || opt.CacheDiskBytes <= 0 {
		return nil
	}
	d := &disk{
		dir: opt.CacheDir, limit: opt.CacheDiskBytes, keep: opt.CacheKept, bytes: bytes, log: log,
		queue: make(chan *Block, diskQueue), blocks: make(map[*Block]*blockFile),
	}
	if d.keep {
		d.find()
	}
	return d
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

// run writes blocks until ctx ends, and then removes its files, if they are not kept.
func (d *disk) run(ctx context.Context) {
	if !d.keep {
		defer d.removeAll()
	}
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
	path := filepath.Join(d.dir, strconv.FormatUint(d.names, 10)+blockSuffix)
	d.mu.Unlock()
	v, _ := b.view()
	f, data := newBlockFile(path, &v)
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
		if d.idle(b) {
			d.drop(b)
		} else {
			b.relation.remove(b)
		}
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

// find takes note of the files that an earlier hub left, and removes those that nobody can
// use.
func (d *disk) find() {
	names, _ := filepath.Glob(filepath.Join(d.dir, "*"+blockSuffix))
	for _, name := range names {
		number, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), blockSuffix), 10, 64)
		if err != nil {
			continue // it is not one of ours
		}
		d.names = max(d.names, number)
		f, err := findBlockFile(name)
		if err != nil { // of an edge that was killed, or of another version
			_ = os.Remove(name)
			continue
		}
		d.blocks[f.block(nil)] = f
		d.sum += f.size
	}
	d.bytes.Set(float64(d.sum))
	d.trim(nil)
	if len(d.blocks) > 0 {
		d.log.Info().Str("dir", d.dir).Int("blocks", len(d.blocks)).Int64("bytes", d.sum).Msg("the cache on disk has blocks of an earlier run")
	}
}

// leave takes note that a block's relation is no longer served. The block's file stays
// for when it is again.
func (d *disk) leave(b *Block) {
	if d == nil {
		return
	}
	d.mu.Lock()
	f := d.blocks[b]
	if f != nil {
		f.idle = true
	}
	d.mu.Unlock()
	if f != nil {
		b.release()
	}
}

// idle says whether the block's relation is no longer served.
func (d *disk) idle(b *Block) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.blocks[b]
	return f == nil || f.idle
}

// takeUp returns the blocks of a relation that begins to be served, in the order of the
// stream: those that are on disk, end before the sequence, and are held by the stream, of
// which now and epochs are known. The others' files are removed.
func (d *disk) takeUp(r *relation, now *answer, epochs stream.Epochs, before uint64) (blocks []*Block) {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	var found []*Block
	for b, f := range d.blocks {
		if f.idle && f.head.Stream == r.info.Layout.Stream {
			found = append(found, b)
		}
	}
	slices.SortFunc(found, func(a, b *Block) int { return cmp.Compare(a.first, b.first) })
	next := uint64(0)
	var void []*Block
	for _, old := range found {
		f := d.blocks[old]
		if f.head.First < next || f.head.Last >= before || !f.head.held(now, epochs) {
			void = append(void, old)
			continue
		}
		b := f.block(r)
		b.used.Store(old.used.Load())
		delete(d.blocks, old)
		d.blocks[b], f.idle = f, false
		blocks, next = append(blocks, b), f.head.Last+1
	}
	d.mu.Unlock()
	for _, b := range void {
		d.drop(b)
	}
	return blocks
}

// held says whether the block is one of the stream as it is now: the rules of
// relation.forgetVoid and relation.keepsPromise. The stream must hold what the block has,
// and the ends that its clients are told to wait for.
func (h *blockHead) held(now *answer, epochs stream.Epochs) bool {
	return h.Incarnation == now.Meta.Incarnation && h.HighBefore >= now.Meta.Floor &&
		epochs.Holds(h.Epoch, max(h.Last, h.Until, h.End), now.Last)
}
