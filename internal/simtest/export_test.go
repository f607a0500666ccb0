package simtest

// Hash is the hash of Version.Hash.
var Hash = hash

// Op returns a number for a statement that a test runs itself, in the current era.
func (w *Writers) Op() int64 {
	op := w.ops.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.txs = append(w.txs, &Tx{ID: -op, Kind: "test", Era: int(w.era.Load()), Outcome: TxCommitted, Ops: []int64{op}})
	return op
}
