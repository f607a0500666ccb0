package replay

import (
	"iter"
	"maps"
	"math"
	"sync"
	"sync/atomic"
)

// cache bounds the memory of all blocks of a hub. Whoever makes it grow gets it back
// below the limit: it drops the blocks that nobody has looked at for the longest time.
// A client that still reads one keeps it until it is done.
type cache struct {
	limit int
	// clock counts looks at blocks.
	clock atomic.Uint64

	mu sync.Mutex
	// Guarded by mu: what each block was last counted with, and the sum.
	blocks map[*Block]int
	bytes  int
}

func newCache(limit int) *cache { return &cache{limit: limit, blocks: make(map[*Block]int)} }

// use takes note that somebody looks at the block.
func (c *cache) use(b *Block) { b.used.Store(c.clock.Add(1)) }

// add begins to count a block. The caller calls trim when it holds no lock.
func (c *cache) add(b *Block) {
	c.use(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocks[b] = 0
	c.count(b)
}

// grew counts what a block has become. It does nothing with a block that was dropped.
// The caller calls trim when it holds no lock.
func (c *cache) grew(b *Block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.blocks[b]; ok {
		c.count(b)
	}
}

func (c *cache) count(b *Block) {
	size := b.size()
	c.bytes += size - c.blocks[b]
	b.relation.bytes.Add(float64(size - c.blocks[b]))
	c.blocks[b] = size
}

// drop forgets a block.
func (c *cache) drop(b *Block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(b)
}

func (c *cache) forget(b *Block) {
	c.bytes -= c.blocks[b]
	b.relation.bytes.Sub(float64(c.blocks[b]))
	delete(c.blocks, b)
}

// trim drops blocks until the rest is within the limit, or leaves them to the disk. Only
// those into which the tails write stay in any case.
func (c *cache) trim() {
	for {
		b := c.oldest()
		if b == nil {
			return
		}
		if !b.relation.hub.disk.take(b) {
			b.relation.remove(b)
		}
	}
}

// oldest takes the block out that nobody has looked at for the longest time, if there
// are too many.
func (c *cache) oldest() *Block {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bytes <= c.limit {
		return nil
	}
	oldest := leastUsed(maps.Keys(c.blocks), (*Block).sealed)
	if oldest != nil {
		c.forget(oldest)
	}
	return oldest
}

// leastUsed returns the block that nobody has looked at for the longest time, of those
// that may go; nil if none may.
func leastUsed(blocks iter.Seq[*Block], mayGo func(*Block) bool) *Block {
	var oldest *Block
	least := uint64(math.MaxUint64)
	for b := range blocks {
		if used := b.used.Load(); used < least && mayGo(b) {
			oldest, least = b, used
		}
	}
	return oldest
}
