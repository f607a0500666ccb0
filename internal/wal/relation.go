package wal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bridge/internal/capture"
	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/lockstep"

	"github.com/rs/zerolog"
)

// Relation is one relation of a capture, over all sessions.
type Relation struct {
	// Static after construction.
	spec    relation.Spec
	sink    capture.Sink
	metrics health.RelationMetrics
	log     zerolog.Logger

	// Owned by Capture.Run and the sessions it runs.

	// err is what keeps the relation out of the session; it is tried again at
	// retry.
	err   error
	retry time.Time
	tries int
	// logged is when it was last logged.
	logged time.Time
	// failing is when it first failed since its stream last got any further, zero
	// if it has not. One that joins and fails at the same row each time has been
	// failing all along.
	failing time.Time
	// probing says that a try is under way.
	probing bool
	// stored is where its stream was last known to end, 0 for unknown.
	stored uint64
	// released says that the slot was made anew, or moved on without it, by this
	// bridge: its stream lacks what came since, but nothing that it once held.
	released bool
	// first says that this bridge found no slot and made one, and that the relation
	// has not begun since: if there is no stream, none was lost.
	first bool
	// compare, if not empty, is why the stream must be compared with the relation,
	// whatever its position, and what the WAL has until now passed over.
	compare string

	keeper reconcile.Keeper

	mu sync.Mutex
	// Guarded by mu.
	status health.Status
	live   *live // nil while heartbeats are not true
}

// Status returns the current status. It does not block.
func (r *Relation) Status() health.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

func (r *Relation) update(change func(*health.Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// Pauses between two tries to take a relation that fails into a session that
// others are in, up to Options.RetryMax: each makes these begin anew. Looking
// whether it could be taken in disturbs nobody.
const (
	retryMin = 500 * time.Millisecond
	lookMax  = 5 * time.Second
)

// fail takes the relation out until retry, for as long as most at the most.
func (r *Relation) fail(err error, most time.Duration) {
	now := time.Now()
	if r.err == nil || r.err.Error() != err.Error() || now.Sub(r.logged) > logEvery {
		r.logged = now
		level := zerolog.WarnLevel
		if errors.Is(err, relation.ErrBreaksWrites) { // nothing but somebody's change helps
			level = zerolog.ErrorLevel
		}
		if r.tries == 0 && errors.Is(err, errChanged) { // if the change did harm, the next try says so
			r.log.Info().Str("reason", err.Error()).Msg("the relation is no longer what was loaded, loading it again")
		} else {
			r.log.WithLevel(level).Err(err).Msg("the relation is not being captured, trying again")
		}
	}
	if r.failing.IsZero() {
		r.failing = now
	}
	pause := min(retryMin<<min(r.tries, 10), most)
	switch {
	case !errors.Is(err, errChanged):
	case r.tries == 0:
		pause = 0
	default: // it keeps changing, and each try interrupts the others
		pause = min(pause, lookMax)
	}
	r.err, r.retry, r.tries = err, now.Add(pause), r.tries+1
	r.metrics.Errors.Inc()
	r.setLive(nil)
	r.update(func(st *health.Status) { st.State, st.Err = health.StateFailing, err })
}

// keepsAll says whether the stream keeps every change.
func (r *Relation) keepsAll() bool { return r.spec.History == relation.HistoryLog }

// does says whether an action is published.
func (r *Relation) does(action lockstep.Action) bool { return r.spec.Publishes(string(action)) }

// joined says that the relation is in the session.
func (r *Relation) joined() {
	r.err = nil
	r.update(func(st *health.Status) { st.State, st.Err, st.Note = health.StateStarting, nil, "" })
}

// errChanged ends a relation's part in a session because the relation is no
// longer the one that was loaded.
var errChanged = errors.New("the relation changed")

// mustCompare is an errChanged after which the stream must be compared with the
// relation, because the WAL alone can't continue it.
type mustCompare struct{ reason string }

func (m mustCompare) Error() string { return errChanged.Error() + ": " + m.reason }
func (m mustCompare) Unwrap() error { return errChanged }

// task says what must be read by SQL before heartbeats are true.
type task byte

const (
	taskNone task = iota
	// taskLoad reads the whole relation in the order of its key.
	taskLoad
	// taskCompare compares the relation with the stream and looks at what
	// differs.
	taskCompare
)

// verdict is what the comparison of a stream with the slot comes to.
type verdict struct {
	task task
	// anew says that the task reads all that the WAL has said so far.
	anew bool
	// after is the key behind which the load goes on.
	after [][]byte
	// restart, if not empty, is why the stream's incarnation must end.
	restart string
	// reason, if not empty, is logged.
	reason string
	// lost, if not empty, is why a log lacks changes before what follows.
	lost string
}

// began is where the slot is when relations join.
type began struct {
	// confirmed is where the slot begins, end where the WAL ends, xmax the
	// first transaction ID not given out.
	confirmed, end, xmax uint64
	// known is set where the relation was in the publication before.
	known bool
	// published is as in capture.Heartbeat, now.
	published string
	// released, first and compare are the relation's, as the session found them: one
	// that takes long to begin is judged while the session goes on without it.
	released, first bool
	compare         string
}

// polledBefore is why a stream is compared that was moved to the WAL.
const polledBefore = "it was polled before"

// tidied is why a stream is compared from which deleted rows are removed.
const tidied = "deleted rows were removed from it, and a broker that was killed may have brought some back"

// republished is why a stream is compared whose capture.Heartbeat was of another
// publication, or of other partitions.
const republished = "its publication changed, or its partitions were added, removed or truncated"

// judge says how a stream is continued: not at all by the WAL alone, unless the
// slot begins where the stream ends or before.
func (r *Relation) judge(pos capture.Position, b began) verdict {
	at := position(pos)
	log := !r.mirrors()
	gap := func(reason string) verdict {
		if log { // no mirror of the relation that could be compared, or purged
			reason += "; its stream lacks the changes in between"
			// If the changes are not missing before the WAL that is still there, they are
			// missing in it. Then the stream goes on where it ends: no change is missing
			// after the gap, and nothing that can't be read is met again.
			return verdict{task: taskLoad, anew: at >= b.confirmed, reason: reason, lost: reason}
		}
		return verdict{task: taskCompare, anew: true, reason: reason}
	}
	switch {
	case pos.Heartbeat == nil && pos.Batch == nil:
		return verdict{task: taskLoad, anew: true}
	case at == 0 && pos.Heartbeat == nil:
		return gap("its first load was interrupted, under another capture")
	case at == 0:
		return gap(polledBefore)
	case at > b.end:
		return verdict{restart: fmt.Sprintf("the stream holds commits up to %s, but the WAL of Postgres ends at %s: Postgres was restored from an older copy", lsn(at), lsn(b.end))}
	case b.compare != "":
		return gap(b.compare)
	case !b.known:
		return gap("it was not in the publication")
	case at < b.confirmed && b.released:
		return gap(fmt.Sprintf("the slot was made again, or moved on without the relation: it begins at %s, after the stream's end at %s", lsn(b.confirmed), lsn(at)))
	case at < b.confirmed && log:
		return gap(fmt.Sprintf("the slot begins at %s, after the stream's end at %s", lsn(b.confirmed), lsn(at)))
	case at < b.confirmed:
		return verdict{restart: fmt.Sprintf("the slot begins at %s, after the stream's end at %s: the broker lost the end of the stream, or somebody moved the slot", lsn(b.confirmed), lsn(at))}
	case publishedIn(pos) != b.published:
		return gap(republished)
	case pos.Batch != nil && pos.Batch.Compare:
		return verdict{task: taskCompare, anew: true, reason: "the comparison was interrupted"}
	case pos.Batch != nil && pos.Batch.LSN != 0:
		return verdict{task: taskLoad, after: pos.Batch.After, reason: "the load was interrupted"}
	case pos.Tidied:
		return verdict{task: taskCompare, reason: tidied}
	}
	return verdict{}
}

// noStream is why a stream that was not there gets a floor. Without one, clients of
// a stream that was lost, or removed with the slot, would not learn of deletes.
const noStream = "there was no stream, but the publication had the relation already"

// logBegins is what a log says at what looks like a first start. Nobody can tell that from
// the loss of stream and slot.
const logBegins = "the stream begins here; if there was an earlier one, it was lost"

// publishedIn returns what was published of the relation when the stream was last
// known to be its mirror, or a part of it.
func publishedIn(pos capture.Position) string {
	if pos.Batch != nil && pos.Batch.LSN != 0 {
		return pos.Batch.Published
	}
	return pos.Heartbeat.Published
}

// position returns the place in the WAL up to which a stream holds every
// commit, 0 where it does not say.
func position(pos capture.Position) uint64 {
	var at uint64
	if pos.Heartbeat != nil {
		at = pos.Heartbeat.LSN
	}
	if pos.Batch != nil && pos.Batch.LSN != 0 {
		at = max(at, pos.Batch.LSN)
	}
	return at
}

// begin begins the relation's epoch, and a new incarnation where its key
// changed, or the broker lost the stream: what is loaded then does not show
// which rows were deleted, so nobody may go on from a position shown before. lost, if
// not empty, is why the stream lacks what it held before.
func (r *Relation) begin(ctx context.Context, src capture.Source, schema []byte, b began) (pos capture.Position, lost string, err error) {
	for restarted := false; ; restarted = true {
		pos, err = r.sink.Begin(ctx, src, func() {
			r.update(func(st *health.Status) { *st = health.Status{State: health.StateStandby} })
		})
		if err != nil {
			return capture.Position{}, "", err
		}
		reason := r.judge(pos, b).restart
		if pos.Heartbeat == nil && pos.Batch == nil && b.known && !restarted {
			if reason = noStream; !b.first {
				r.log.Warn().Msg("there is a slot from an earlier run, but no stream: unless the relation is new, its stream was lost; clients of that stream must read everything again")
			}
		}
		if pos.Schema != nil && !relation.SameKeys(pos.Schema, schema) {
			reason = "the relation's key changed"
		}
		lost = cmp.Or(lost, pos.Restarted)
		if reason == "" {
			return pos, lost, nil
		}
		if reason == noStream && b.first {
			lost = cmp.Or(lost, logBegins)
		} else {
			lost = cmp.Or(lost, reason)
		}
		// Who was shown xmax itself, by a heartbeat, misses nothing of what had
		// begun by then; and the first heartbeat may show it again.
		if err := r.sink.Restart(ctx, reason, b.xmax-1); err != nil {
			return capture.Position{}, "", err
		}
	}
}
