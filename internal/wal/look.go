package wal

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bridge/internal/capture"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// lookRows and lookBytes bound what one look holds; it may be one row more.
	lookRows  = 4000
	lookBytes = 2 << 20
	// lookKeys is how many suspect keys one look asks for.
	lookKeys = 1000
	// maxNoted bounds the keys that are noted while a look's rows are read.
	maxNoted = 100_000
	// lookPause is the first pause before a look that failed is tried again.
	lookPause    = 50 * time.Millisecond
	maxLookPause = 5 * time.Second
	// progressEvery is how often a load is reported.
	progressEvery = 5 * time.Second
)

// look reads rows by SQL, beside the WAL. Its rows are published when the
// marker that was written behind its snapshot comes out of the WAL: then the
// stream has all that the snapshot shows. What the snapshot does not show, and
// came before the marker, was noted; those keys are left out, because the
// stream has a newer version. A transaction that was read before the look, and
// is not shown by its snapshot (Postgres lets a commit be read before it is
// seen), makes the look void.
type look struct {
	f  *feed
	id string
	// begun is which transactions had been read before.
	begun seen
	// wanted are the keys asked for; nil for a part of a load.
	wanted map[string]*suspected
	// held is where the stream stood before the first of them.
	held *hold
	// after is the key behind which a part of a load begins.
	after [][]byte

	// snapshot and rows are set when taken is: by then they are all there.
	taken    bool
	snapshot relation.Snapshot
	rows     []lookedRow
	// byKey are the places in rows, and -1 for a wanted key that is not there.
	byKey map[string]int
	// more says that a load goes on behind the last row.
	more bool

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
// one is under way.
func (s *session) startLook(ctx context.Context, f *feed) {
	if f.look != nil || f.unsettled {
		return
	}
	l := &look{f: f}
	switch {
	case len(f.suspects) > 0:
		l.wanted, l.held = make(map[string]*suspected), f.suspected
		for name, key := range f.suspects {
			if len(l.wanted) == lookKeys {
				break
			}
			l.wanted[name] = key
			delete(f.suspects, name)
		}
		if len(f.suspects) == 0 {
			f.suspected = nil
		}
	case f.task == taskLoad:
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
	if !source.IsLocked(err) && !errors.Is(err, errAgain) {
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
var errAgain = errors.New("what was read is not yet all in the WAL")

// result is what a look has read.
type result struct {
	snapshot relation.Snapshot
	rows     []lookedRow
	more     bool
}

// take hands the rows to the session's goroutine.
func (l *look) take(r result) {
	l.taken, l.snapshot, l.rows, l.more = true, r.snapshot, r.rows, r.more
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
		if l.lost || s.recent.unseen(l.begun, l.snapshot) {
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
	if l.wanted == nil {
		if len(l.rows) > 0 {
			f.after = l.rows[len(l.rows)-1].key
		}
		if !l.more {
			f.task, f.after = taskNone, nil
		}
	}
	s.startLook(ctx, f)
	// Whoever looks at the place of the held keys must still find it held.
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

// looked publishes a row that was read by SQL. One that names the transaction
// that wrote it may be older than what was shown already; so it shows no since
// above what heartbeats promise now.
func (f *feed) looked(ctx context.Context, r *lookedRow, txid uint64, l *look) error {
	xmin := f.wm
	if r.txid != 0 && r.txid < l.snapshot.Xmax {
		txid = r.txid
		xmin = min(xmin, f.promised())
		if l.held != nil {
			xmin = min(xmin, l.held.since)
		}
	}
	return f.publish(ctx, txid, xmin, r.key, r.deleted, lockstep.ActionRead, r.data, nil)
}

// promised is the since that the last heartbeat showed; 0 before the first.
func (f *feed) promised() uint64 { return f.beatSince }

// loaded says how far a load has come.
func (s *session) loaded(ctx context.Context, f *feed, l *look) error {
	f.rows += int64(len(l.rows))
	done := f.task == taskNone
	estimate := max(f.rel.EstimatedRows, 0)
	f.r.metrics.Load(f.rows, estimate)
	f.r.update(func(st *capture.Status) {
		*st = capture.Status{State: capture.StateFirstLoad, LoadDone: f.rows, LoadRows: estimate, Heartbeat: st.Heartbeat}
	})
	if done {
		f.r.log.Info().Int64("rows", f.rows).Dur("dur", time.Since(f.loading)).Msg("the whole relation was read")
		f.dirty, s.owed = true, true
		signal(s.wanted)
		return nil
	}
	if now := time.Now(); now.After(f.progress) {
		f.progress = now.Add(progressEvery)
		dur := now.Sub(f.loading)
		e := f.r.log.Info().Int64("rows", f.rows).Int64("estimate", estimate).Dur("dur", dur)
		if left := estimate - f.rows; left > 0 {
			e = e.Dur("left", time.Duration(float64(dur)*float64(left)/float64(f.rows)).Round(time.Second))
		}
		e.Msg("reading the whole relation")
	}
	return f.announce(ctx)
}

// read runs the look's query, in one snapshot.
func (s *session) read(ctx context.Context, f *feed, l *look) (result, error) {
	sql, params := f.lookSQL(l)
	var res result
	err := s.inSnapshot(ctx, f, func(conn *pgconn.PgConn, sn relation.Snapshot) error {
		res.snapshot = sn
		form, err := relation.NewForm(f.rel, f.types) // the feed's is not this goroutine's
		if err != nil {
			return err
		}
		rr := conn.ExecParams(ctx, sql, params, nil, nil, nil)
		bytes := 0
		for rr.NextRow() {
			if l.wanted == nil && (len(res.rows) == lookRows || bytes >= lookBytes) {
				res.more = true
				continue // what is left of the query's limit
			}
			r, err := f.lookedRow(form, rr.Values())
			if err != nil {
				_, _ = rr.Close()
				return err
			}
			bytes += len(r.data)
			res.rows = append(res.rows, r)
		}
		_, err = rr.Close()
		return err
	})
	return res, err
}

func (f *feed) lookedRow(form *relation.Form, values [][]byte) (lookedRow, error) {
	var r lookedRow
	var err error
	n := len(f.rel.Columns)
	if len(values) > n { // what only the server can turn into JSON stands behind
		columns := append([][]byte(nil), values[:n]...)
		for i, yes := range form.ServerSide() {
			if yes {
				columns[i] = values[n]
				n++
			}
		}
		values = columns
	}
	if f.rel.Txid >= 0 {
		if r.txid, err = form.Txid(values); err != nil {
			return r, err
		}
	}
	r.deleted = form.Deleted(values)
	if r.data, err = form.AppendData(nil, values); err != nil {
		return r, err
	}
	for _, i := range f.rel.Key {
		if values[i] == nil {
			return r, fmt.Errorf("key column %s is NULL in a row; a key must not be NULL: mend the row, or name another key in BRIDGE_TABLES", f.rel.Columns[i].Name)
		}
		r.key = append(r.key, append([]byte{}, values[i]...))
	}
	return r, nil
}

// inSnapshot runs read in a transaction whose snapshot is taken behind a lock
// against changes of the relation's shape: a snapshot from before ALTER TABLE
// wrote the table anew sees it empty (see poller's lockSQL). It does not wait
// for the lock.
func (s *session) inSnapshot(ctx context.Context, f *feed, read func(*pgconn.PgConn, relation.Snapshot) error) error {
	conn, err := s.c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("look at the relation: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, "LOCK TABLE "+f.rel.Name.SQL()+" IN ACCESS SHARE MODE NOWAIT"); err != nil {
		return changed(err)
	}
	sn, err := s.snapshot(ctx, tx, f)
	if err != nil {
		return err
	}
	return changed(read(conn.Conn().PgConn(), sn))
}

// snapshot takes the transaction's snapshot, and makes sure that the relation
// is the one that was loaded.
func (s *session) snapshot(ctx context.Context, tx pgx.Tx, f *feed) (relation.Snapshot, error) {
	var text string
	var oid int64
	var policies bool
	var timeline int64
	err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text, COALESCE(to_regclass($1)::oid, 0)::int8, COALESCE(row_security_active(to_regclass($1)::oid), false),
		('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int8`, f.rel.Name.SQL()).Scan(&text, &oid, &policies, &timeline)
	if err != nil {
		return relation.Snapshot{}, changed(err)
	}
	if uint32(oid) != f.rel.OID || policies != f.rel.Policies {
		return relation.Snapshot{}, fmt.Errorf("%w: it was dropped, or row level security was switched", errChanged)
	}
	if uint32(timeline) != s.src.Timeline {
		return relation.Snapshot{}, fmt.Errorf("%w: the connection leads to another server or timeline", errChanged)
	}
	return relation.ParseSnapshot(text)
}

// changed turns what Postgres says of a relation that changed into errChanged.
func changed(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "42") || pg.Code == "0A000" || pg.Code == "XX000") {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	if err != nil && !errors.Is(err, errChanged) {
		return fmt.Errorf("look at the relation: %w", err)
	}
	return err
}

// writeMarker writes the look's marker into the WAL. It is a transaction of its
// own, so that it is flushed, and read, at once; and it is a watermark, too.
func (s *session) writeMarker(ctx context.Context, id string) error {
	conn, err := s.c.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return writeMarker(ctx, conn, s.prefix(), id)
}

func writeMarker(ctx context.Context, conn *pgxpool.Conn, prefix, id string) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = local"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, pg_snapshot_xmin(pg_current_snapshot())::text || ' ' || $2)", prefix, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("write a marker into the WAL: %w", err)
	}
	return nil
}

// lookSQL returns the look's query with its parameters.
func (f *feed) lookSQL(l *look) (sql string, params [][]byte) {
	ident := func(i int) string { return "r." + pgx.Identifier{f.rel.Columns[i].Name}.Sanitize() }
	keys := make([]string, len(f.rel.Key))
	for n, i := range f.rel.Key {
		keys[n] = ident(i)
	}
	key := strings.Join(keys, ", ")
	where := []string{f.condition()}
	switch {
	case l.wanted != nil:
		where = append(where, relation.KeysCondition(f.rel, key))
		params = relation.KeyArrays(func(yield func([][]byte) bool) {
			for _, sp := range l.wanted {
				if !yield(sp.key) {
					return
				}
			}
		}, len(f.rel.Key))
	case l.after != nil:
		places := make([]string, len(l.after))
		for i := range places {
			places[i] = "$" + strconv.Itoa(i+1)
		}
		where = append(where, "("+key+") > ("+strings.Join(places, ", ")+")")
		params = l.after
	}
	sql = f.selectSQL() + " WHERE " + strings.Join(where, " AND ")
	if l.wanted == nil {
		sql += " ORDER BY " + key + " LIMIT " + strconv.Itoa(lookRows+1)
	}
	return sql, params
}

// condition is what a row must meet to be published.
func (f *feed) condition() string {
	if f.filter == "" {
		return "true"
	}
	return "(" + f.filter + ")"
}

// selectSQL selects the relation's columns, and behind them those that only the
// server can turn into JSON.
func (f *feed) selectSQL() string {
	var list []string
	for _, c := range f.rel.Columns {
		list = append(list, "r."+pgx.Identifier{c.Name}.Sanitize())
	}
	for i, yes := range f.server {
		if yes {
			list = append(list, "to_json("+list[i]+")")
		}
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM " + f.rel.Name.SQL() + " r"
}
