package health

import (
	"time"

	"github.com/rs/zerolog"
)

// progressEvery is how often progress is logged.
const progressEvery = 5 * time.Second

// Progress logs how far the reading of a whole relation has come.
type Progress struct{ begun, next time.Time }

// NewProgress returns the progress of a read that began at begun.
func NewProgress(begun time.Time) Progress {
	return Progress{begun: begun, next: begun.Add(progressEvery)}
}

// Log logs how many rows of about estimate were read, every progressEvery.
func (p *Progress) Log(log zerolog.Logger, rows, estimate int64) {
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(progressEvery)
	dur := now.Sub(p.begun)
	e := log.Info().Int64("rows", rows).Int64("estimate", estimate).Dur("dur", dur.Round(time.Millisecond))
	if left := estimate - rows; left > 0 {
		e = e.Dur("left", time.Duration(float64(dur)*float64(left)/float64(rows)).Round(time.Second))
	}
	e.Msg("reading the whole relation")
}
