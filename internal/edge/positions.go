package edge

// positionBytes is after how many bytes of rows a client is told its position. The row
// that reaches them still comes before. If rows are no larger than that, the client is
// told its position at least once in each MiB.
const positionBytes = 512 << 10

// positions decides when a client that asked for that is told its position. A heartbeat
// tells it, too.
type positions struct {
	// every is after how many rows, 0 for a client that did not ask.
	every int
	// rows and bytes count what was sent since it was told.
	rows, bytes int
}

// wanted says whether the client wants to be told, and was sent rows since it was.
func (q *positions) wanted() bool { return q.every > 0 && q.rows > 0 }

// scan goes over the documents of a part that have the ends. It returns after how many the
// client is to be told its position, and due; or all, and not due. Documents with the same
// end are one piece: no position comes between them.
func (q *positions) scan(p Part, ends []uint32) (n int, due bool) {
	if q.every == 0 {
		return len(ends), false
	}
	for i := range ends {
		if !p.Row(i) {
			q.rows, q.bytes = 0, 0
			continue
		}
		q.rows, q.bytes = q.rows+1, q.bytes+p.Size(i)
		between := i == len(ends)-1 || ends[i] != ends[i+1]
		if between && (q.rows >= q.every || q.bytes >= positionBytes) {
			q.rows, q.bytes = 0, 0
			return i + 1, true
		}
	}
	return len(ends), false
}
