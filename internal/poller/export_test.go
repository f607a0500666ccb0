package poller

import (
	"context"
	"time"

	"bridge/internal/capture"
	"bridge/internal/relation"

	"github.com/jackc/pgx/v5"
)

// Hooks for the unit tests of this package.

// Pace is pace.
type Pace struct{ p *pace }

func NewPace(interval time.Duration) Pace { return Pace{newPace(interval)} }

func (p Pace) Wait(ctx context.Context, w *Wake, flowing bool) error {
	p.p.idle(flowing)
	return p.p.wait(ctx, w, nil)
}

func NewWake() *Wake { return newWake() }

func (w *Wake) Notify() { w.notify() }

// MaxRepeats is maxRepeats.
const MaxRepeats = maxRepeats

// Repeats is repeats.
type Repeats struct{ r *repeats }

func NewRepeats() Repeats { return Repeats{newRepeats()} }

func (r Repeats) Seen(values [][]byte, key []int, txid uint64, content string) bool {
	return r.r.seen(values, key, txid, []byte(content))
}
func (r Repeats) ForgetBelow(xmin uint64) { r.r.forgetBelow(xmin) }
func (r Repeats) Len() int                { return len(r.r.rows) }

// Durability is durability.
type Durability struct{ d durability }

func NewDurability(pages relation.WALPages) *Durability { return &Durability{durability{pages: pages}} }

// Look is what a poll learns: a snapshot xmin:xmin:, and the WAL's positions after
// it was taken.
func (d *Durability) Look(xmin, inserted, flushed uint64) {
	d.d.add(look{snapshot: capture.Snapshot{Xmin: xmin, Xmax: xmin}, inserted: inserted, flushed: flushed})
}
func (d *Durability) Flushed(position uint64)  { d.d.flushed(position) }
func (d *Durability) Reconnected()             { d.d.reconnected() }
func (d *Durability) Limit(xmin uint64) uint64 { return d.d.limit(xmin) }

// Queries returns a relation's statements by name.
func Queries(rel *relation.Relation, serverSide []bool) map[string]string {
	q := newQueries(rel, serverSide)
	return map[string]string{
		"whole": q.whole, "delta": q.delta, "keys": q.keys, "nulls": q.nulls,
		"continueWhole": q.continueWhole, "continueWholeAfter": q.continueWholeAfter,
		"continueDelta": q.continueDelta, "continueDeltaAfter": q.continueDeltaAfter,
	}
}

// XIDArray writes a parameter in text form.
func XIDArray(ids []uint64) string { return string(xidArray(ids)) }

// Rest makes a relation that has just been polled, on the server that a connection
// of the pool leads to, rest until stop. still says whether the watcher knows that
// nothing has changed since.
func (w *Watcher) Rest(wake *Wake, server string) (still func() bool, stop func()) {
	p := polled{at: time.Now(), server: server}
	stop = w.rest(wake, &resting{last: p, fresh: func(time.Time) {}})
	return func() bool { _, ok := w.still(p.server, p.at); return ok }, stop
}

// Probe makes a probe of a relation on a connection, as the Watcher does.
func Probe(ctx context.Context, conn *pgx.Conn, rel *relation.Relation) (*Prober, error) {
	p, err := newProber(ctx, conn)
	return &Prober{prober: p, probe: &probe{sql: newQueries(rel, nil).probe}}, err
}

// Prober is a prober with one probe.
type Prober struct {
	prober *prober
	probe  *probe
}

// Unchanged says whether the relation has no rows that the snapshot does not show.
func (p *Prober) Unchanged(ctx context.Context, previous capture.Snapshot) (bool, error) {
	r := &resting{probe: p.probe, last: polled{look: look{snapshot: previous}}}
	unchanged, err := p.prober.ask(ctx, []*resting{r})
	return len(unchanged) == 1, err
}

// Refused says whether the probe is not used.
func (p *Prober) Refused() bool { return !p.probe.refused.IsZero() }

// Looked returns when the watcher's last look began, or a zero time if it failed.
func (w *Watcher) Looked() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.calm.ok {
		return time.Time{}
	}
	return w.calm.last
}

// Woken says whether a wake-up is pending.
func (w *Wake) Woken() bool { return len(w.ch) > 0 }
