package wal

import (
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/relation"

	"github.com/prometheus/client_golang/prometheus"
)

// What the tests of this package's pure parts need.

// Recent is recent.
type Recent struct{ r recent }

func NewRecent() *Recent             { return &Recent{} }
func (r *Recent) Add(xid uint64)     { r.r.add(xid) }
func (r *Recent) Len() int           { return len(r.r.ring) }
func (r *Recent) Now() (then Moment) { return Moment{r.r.seen} }

// Moment is how far transactions had been read.
type Moment struct{ s seen }

func (r *Recent) Unseen(then Moment, sn capture.Snapshot) bool { return r.r.unseen(then.s, sn) }

// Pace is pace.
type Pace struct{ p pace }

func NewPace(nap func(), least, most int) *Pace {
	return &Pace{pace{nap: nap, least: least, most: most}}
}
func (p *Pace) Rest(n int) { p.p.rest(n) }

// ErrStream is errStream.
var ErrStream = errStream

// Decoding is decoding.
type Decoding struct{ d decoding }

// Failed says whether the slot is given up.
func (d *Decoding) Failed(err error, pos uint64) bool { return d.d.failed(err, pos) != "" }

// MaxRecent is maxRecent.
const MaxRecent = maxRecent

// FullXid is what a session near a transaction ID makes of 32 bits.
func FullXid(near uint64, xid uint32) uint64 { return (&session{xidNear: near}).fullXid(xid) }

// Began is where the slot is.
type Began struct {
	Confirmed, End  uint64
	Known, Released bool
	Published       string
	// Compare says that too many keys had to be looked at.
	Compare bool
}

// Judge says what a stream's position comes to: load, compare, restart or go on,
// and whether what the slot has is passed over.
func Judge(spec relation.Spec, pos capture.Position, b Began) (what string, anew bool) {
	at := began{confirmed: b.Confirmed, end: b.End, known: b.Known, published: b.Published, released: b.Released}
	if b.Compare {
		at.compare = "too many rows had to be looked at"
	}
	v := (&Relation{spec: spec}).judge(pos, at)
	switch {
	case v.restart != "":
		return "restart", v.anew
	case v.task == taskLoad && v.after != nil:
		return "load on", v.anew
	case v.task == taskLoad:
		return "load", v.anew
	case v.task == taskCompare:
		return "compare", v.anew
	}
	return "go on", v.anew
}

// Withheld says whether a heartbeat waits, the last being so long ago, for keys
// to be looked at; endless where every change of the relation is.
func Withheld(suspects, endless bool, ago time.Duration) bool {
	now := time.Now()
	f := &feed{server: []bool{false, endless}, beatAt: now.Add(-ago)}
	if suspects {
		f.suspected = &hold{}
	}
	return f.withheld(now, time.Second)
}

// ErrNobody is errNobody.
var ErrNobody = errNobody

// Shown returns the failure that the status of a relation shows, which failed by
// own (nil for not), after a session ended by err.
func Shown(own, err error) error {
	r := &Relation{err: own, status: health.Status{Err: own}, metrics: health.NewMetrics(prometheus.NewRegistry()).Relation("t")}
	(&Capture{relations: []*Relation{r}}).failed(err)
	return r.Status().Err
}

// LastRows is lastRows.
type LastRows struct{ l lastRows }

// LastRowsBytes is lastRowsBytes.
const LastRowsBytes = lastRowsBytes

func (l *LastRows) Put(name string, data []byte) { l.l.put(name, data) }
func (l *LastRows) Get(name string) []byte       { return l.l.get(name) }
func (l *LastRows) Forget(name string)           { l.l.forget(name) }

// Len is how many rows it holds.
func (l *LastRows) Len() int { return len(l.l.young) + len(l.l.old) }

// Held is how many bytes of rows it holds.
func (l *LastRows) Held() (n int) {
	for _, rows := range []map[string][]byte{l.l.young, l.l.old} {
		for _, data := range rows {
			n += len(data)
		}
	}
	return n
}
