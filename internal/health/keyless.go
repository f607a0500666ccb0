package health

import (
	"time"

	"github.com/rs/zerolog"
)

// Keyless keeps count of the rows that a capture leaves out because clients can't
// tell them by their key. It belongs to one goroutine.
type Keyless struct {
	counted time.Time
	rows    int64
}

// keylessEvery is how often keyless rows are counted at most.
const keylessEvery = 10 * time.Second

// Due reports whether the rows are to be counted: at first, when the capture has
// met one, and as long as there are some, every so often.
func (k *Keyless) Due(met bool, every time.Duration) bool {
	age := time.Since(k.counted)
	return k.counted.IsZero() || met && age > keylessEvery || k.rows > 0 && age > every
}

// Count reports how many there are.
func (k *Keyless) Count(rows int64, m RelationMetrics, log zerolog.Logger) {
	k.counted, k.rows = time.Now(), rows
	m.keyless.Set(float64(rows))
	if rows > 0 {
		log.Warn().Int64("rows", rows).Msg("rows are not published, because a column of their key is NULL, or is an array that does not begin with element 1; correct them, or name another key in BRIDGE_TABLES")
	}
}
