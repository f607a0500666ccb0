package simtest

// Hash is how versions remember their bytes.
var Hash = hash

// Op returns the number of a statement that a test runs by itself, in the era of now.
func (w *Writers) Op() int64 {
	op := w.ops.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.txs = append(w.txs, &Tx{ID: -op, Kind: "test", Era: int(w.era.Load()), Outcome: TxCommitted, Ops: []int64{op}})
	return op
}
