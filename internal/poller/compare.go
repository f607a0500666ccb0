package poller

import (
	"context"
	"errors"
	"time"

	"bridge/internal/capture"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
)

// storedRows reads the stream's side of a comparison.
func (s *session) storedRows(ctx context.Context, row func(reconcile.Row) error) error {
	return s.sink.Scan(ctx, func(r capture.StoredRow) error {
		if r.Deleted {
			return nil
		}
		return row(reconcile.Row{Key: r.Key, Data: r.Comparable()})
	})
}

// relationRows returns the relation's side of a comparison.
func (s *session) relationRows(form *relation.Form) reconcile.Side {
	return func(ctx context.Context, row func(reconcile.Row) error) error {
		begun := time.Now()
		for wait := s.p.opt.Interval; ; wait = min(2*wait, maxWait) {
			err := s.readAll(ctx, &relationSide{s: s, form: form, row: row})
			if !errors.Is(err, errLocked) || time.Since(begun) > lookWithin { // errLocked: no row was read, so try again
				return err
			}
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
	}
}

// readAll reads the whole relation, on its own connection and at the same time as
// the session polls. It counts as a batch that reads a whole relation does.
func (s *session) readAll(ctx context.Context, t taker) error {
	release, err := s.reserve(ctx)
	if err != nil {
		return err
	}
	defer release()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return s.readRows(ctx, conn, s.queries.all, nil, t)
}

// relationSide takes the relation's rows and encodes them as their documents
// would. Unlike a batch, it publishes nothing.
type relationSide struct {
	s    *session
	form *relation.Form
	row  func(reconcile.Row) error

	key, columns [][]byte
	data         []byte
}

// start accepts any look. If a standby lags behind what was published, some keys
// are suspect for no reason, which does no harm.
func (r *relationSide) start(context.Context, look) error { return nil }

func (r *relationSide) add(_ context.Context, values [][]byte) error {
	if r.form.Deleted(values) || r.form.Keyless(values) {
		return nil
	}
	r.key = keyOf(r.key[:0], r.s.rel, values)
	var err error
	if r.data, err = r.form.AppendData(r.data[:0], r.form.Encodable(&r.columns, values)); err != nil {
		return stale(err)
	}
	return r.row(reconcile.Row{Key: r.key, Data: capture.Comparable(r.data)})
}
