package wal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/lockstep"
)

const (
	// lookRows and lookBytes bound what one look holds; it may be one row more.
	lookRows  = 4000
	lookBytes = 2 << 20
	// lookKeys is how many suspect keys one look asks for, at most.
	lookKeys = 1000
	// firstRows is how many rows the first look of a session asks for; see adapt.
	firstRows = 100
	// maxNoted bounds the keys that are noted while a look's rows are read.
	maxNoted = 100_000
	// lookPause is the first pause before a look that failed is tried again.
	lookPause    = 50 * time.Millisecond
	maxLookPause = 5 * time.Second
)

// look reads rows by SQL, beside the WAL. Its rows are published when the
// marker that was written behind its snapshot comes out of the WAL: then the
// stream has all that the snapshot shows. What the snapshot does not show, and
// came before the marker, was noted; those keys are left out, because the
// stream has a newer version. A transaction that was read before the look, and
// is not shown by its snapshot (Postgres lets a commit be read before it is
// seen), makes the look void.
type look struct {
	id string
	// begun is which transactions had been read before, and during the one that
	// was being read and had changed the relation, 0 for none: what it did before
	// the look began was not noted.
	begun  seen
	during uint64
	// wanted are the keys asked for; nil for a part of a load.
	wanted map[string]*suspected
	// held is where the stream stood before the first of them.
	held *hold
	// after is the key behind which a part of a load begins.
	after [][]byte
	// limit is how many rows are asked for.
	limit int

	// snapshot and rows are set when taken is: by then they are all there.
	taken    bool
	snapshot capture.Snapshot
	rows     []lookedRow
	// byKey are the places in rows, and -1 for a wanted key that is not there.
	byKey map[string]int
	// bytes is how long the rows are; more says that a load goes on behind the
	// last, and left are the wanted keys whose rows would have been too much.
	bytes int
	more  bool
	left  []string

	// noted are changes that came before the rows were read, lost says that
	// there were too many.
	noted []change
	all   []uint64 // transactions that removed all rows
	lost  bool
}

type lookedRow struct {
	key     [][]byte
	txid    uint64 // of its own column; 0 for none
	deleted bool
	data    []byte
}

type change struct {
	key string
	xid uint64
}

// note tells the look that is under way that a key has changed.
func (s *session) note(f *feed, key [][]byte) {
	if f.look == nil || key == nil {
		return
	}
	f.look.note(relation.KeyName(key), s.tx.xid)
}

func (l *look) note(key string, xid uint64) {
	switch {
	case l.taken:
		l.drop(key, xid)
	case len(l.noted) < maxNoted:
		l.noted = append(l.noted, change{key, xid})
	default:
		l.lost = true
	}
}

// drop leaves a key out that has a newer version in the stream.
func (l *look) drop(key string, xid uint64) {
	if !l.snapshot.Visible(xid) {
		delete(l.byKey, key)
	}
}

// noteAll tells the look that all rows were removed.
func (l *look) noteAll(xid uint64) { l.all = append(l.all, xid) }

// startLook begins a look at suspect keys, or at the next part of a load, unless
// one is under way. They take turns: keys to look at may come all the time.
func (s *session) startLook(ctx context.Context, f *feed) {
	if f.look != nil || f.unsettled {
		return
	}
	l := &look{limit: f.lookRows}
	switch {
	case len(f.suspects) > 0 && !(f.task == taskLoad && f.loadsNext):
		f.loadsNext = true
		l.wanted, l.held = make(map[string]*suspected), f.suspected
		for name, key := range f.suspects {
			if len(l.wanted) == min(lookKeys, l.limit) {
				break
			}
			l.wanted[name] = key
			delete(f.suspects, name)
		}
		if len(f.suspects) == 0 {
			f.suspected = nil
		}
	case f.task == taskLoad:
		f.loadsNext = false
		l.after = f.after
	default:
		return
	}
	s.launch(ctx, f, l, 0)
}

// launch runs the look's query after the pause.
func (s *session) launch(ctx context.Context, f *feed, l *look, pause time.Duration) {
	s.looks++
	l.id = fmt.Sprintf("%s.%d", s.name, s.looks)
	l.during = 0
	if s.tx != nil && f.touchedBy == s.tx.xid {
		l.during = s.tx.xid
	}
	l.begun, l.taken, l.noted, l.all, l.lost = s.recent.seen, false, nil, nil, false
	f.look = l
	s.work.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		// From here on changes are noted: f.look is l.
		res, err := s.read(ctx, f, l)
		if err == nil {
			s.call(ctx, func(context.Context) error { l.take(res); return nil })
			err = s.writeMarker(ctx, l.id)
		}
		if err != nil {
			s.call(ctx, func(ctx context.Context) error { s.lookFailed(ctx, f, l, pause, err); return nil })
		}
	})
}

// lookFailed tries a look again, or takes the relation out.
func (s *session) lookFailed(ctx context.Context, f *feed, l *look, pause time.Duration, err error) {
	if s.feeds[f.rel.OID] != f || f.look != l {
		return
	}
	if ctx.Err() != nil {
		return
	}
	if !relation.IsLocked(err) && !errors.Is(err, errAgain) {
		s.leave(f, err)
		return
	}
	s.c.metrics.looks.WithLabelValues("again").Inc()
	if pause == maxLookPause {
		f.r.log.Warn().Err(err).Msg("the relation can't be read now, trying again")
	}
	s.launch(ctx, f, l, min(max(2*pause, lookPause), maxLookPause))
}

// errAgain says that a look is void and must be tried again.
var errAgain = errors.New("the WAL does not yet have all that was read")

// result is what a look has read.
type result struct {
	snapshot capture.Snapshot
	rows     []lookedRow
	bytes    int
	more     bool
	left     []string
}

// take hands the rows to the session's goroutine.
func (l *look) take(r result) {
	l.taken, l.snapshot, l.rows = true, r.snapshot, r.rows
	l.bytes, l.more, l.left = r.bytes, r.more, r.left
	l.byKey = make(map[string]int, len(r.rows)+len(l.wanted))
	for name := range l.wanted {
		l.byKey[name] = -1
	}
	for i := range r.rows {
		l.byKey[relation.KeyName(r.rows[i].key)] = i
	}
	for _, c := range l.noted {
		l.drop(c.key, c.xid)
	}
	l.noted = nil
}

// marked publishes the look whose marker has come.
func (s *session) marked(ctx context.Context, id string) {
	for _, f := range s.feeds {
		l := f.look
		if l == nil || l.id != id || !l.taken {
			continue
		}
		if l.lost || l.during != 0 && !l.snapshot.Visible(l.during) || s.recent.unseen(l.begun, l.snapshot) {
			s.lookFailed(ctx, f, l, 0, errAgain)
			return
		}
		for _, xid := range l.all {
			if !l.snapshot.Visible(xid) {
				clear(l.byKey)
			}
		}
		s.c.metrics.looks.WithLabelValues("done").Inc()
		if err := s.published(ctx, f, l); err != nil {
			s.leave(f, err)
		}
		return
	}
}

// published publishes a look's rows, and begins the next look before that.
func (s *session) published(ctx context.Context, f *feed, l *look) error {
	f.look = nil
	f.adapt(l)
	f.putBack(l)
	if l.wanted == nil {
		if len(l.rows) > 0 {
			f.after = l.rows[len(l.rows)-1].key
		}
		if !l.more {
			f.task, f.after = taskNone, nil
		}
	}
	s.startLook(ctx, f)
	txid := max(l.snapshot.Xmin-1, f.wm)
	for i := range l.rows {
		r := &l.rows[i]
		name := relation.KeyName(r.key)
		if at, ok := l.byKey[name]; !ok || at != i {
			continue
		}
		delete(l.byKey, name)
		var err error
		if sp := l.wanted[name]; sp != nil {
			err = f.lookedAt(ctx, sp, r, txid, l)
		} else {
			err = f.looked(ctx, r, txid, l)
		}
		if err != nil {
			return err
		}
	}
	for name := range l.byKey { // those not there
		if err := f.lookedAt(ctx, l.wanted[name], nil, txid, l); err != nil {
			return err
		}
	}
	for _, sp := range l.wanted { // those with a newer version in the stream
		sp.finish(reconcile.Unknown)
	}
	if l.wanted != nil {
		f.dirty, s.owed = true, true
		return nil
	}
	return s.loaded(ctx, f, l)
}

// adapt makes the next look ask for as many rows as fit into lookBytes: Postgres
// sends all that are asked for, also those that are then left.
func (f *feed) adapt(l *look) {
	switch {
	case l.bytes >= lookBytes:
		f.lookRows = min(f.lookRows, max(len(l.rows), 1))
	case (l.more || len(l.wanted) >= l.limit) && l.bytes < lookBytes/2:
		f.lookRows = min(2*l.limit, lookRows)
	}
}

// putBack makes the keys suspect again that a look has left, and holds heartbeats
// where that look did.
func (f *feed) putBack(l *look) {
	for _, name := range l.left {
		sp := l.wanted[name]
		delete(l.wanted, name)
		delete(l.byKey, name)
		if again := f.suspects[name]; again != nil {
			again.pages = append(again.pages, sp.pages...)
		} else {
			f.suspects[name] = sp
		}
		f.suspected = l.held // which is before all that came since
	}
}

// looked publishes a row that was read by SQL. One that names the transaction
// that wrote it may be older than what was shown already; so it shows no since
// above what heartbeats promise now.
func (f *feed) looked(ctx context.Context, r *lookedRow, txid uint64, l *look) error {
	xmin := f.wm
	if r.txid != 0 && r.txid < l.snapshot.Xmax {
		txid = r.txid
		xmin = min(xmin, f.beatSince)
		if l.held != nil {
			xmin = min(xmin, l.held.since)
		}
	}
	f.keep(r.key, r.data)
	return f.publish(ctx, txid, xmin, r.key, r.deleted, r.data, lockstep.Change{Action: lockstep.ActionRead})
}

// loaded says how far a load has come.
func (s *session) loaded(ctx context.Context, f *feed, l *look) error {
	f.rows += int64(len(l.rows))
	done := f.task == taskNone
	estimate := max(f.rel.EstimatedRows, 0)
	f.r.metrics.Load(f.rows, estimate)
	f.r.update(func(st *health.Status) {
		*st = health.Status{State: health.StateFirstLoad, LoadDone: f.rows, LoadRows: estimate, Heartbeat: st.Heartbeat}
	})
	if done {
		f.r.log.Info().Int64("rows", f.rows).Dur("dur", time.Since(f.loading).Round(time.Millisecond)).Msg("whole relation read")
		f.dirty, s.owed = true, true
		signal(s.wanted)
		return nil
	}
	f.progress.Log(f.r.log, f.rows, estimate)
	return f.announce(ctx)
}
