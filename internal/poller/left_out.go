package poller

import (
	"context"
	"fmt"
	"time"

	"bridge/internal/relation"
)

// nullsEvery is how often rows without a txid are counted. In a view this may
// read every row, so there it is done less often.
const (
	nullsEvery       = time.Minute
	nullsEveryInView = 15 * time.Minute
)

// countNulls reports rows whose txid is NULL, because no poll ever sees them.
func (s *session) countNulls(ctx context.Context) error {
	if !s.rel.Columns[s.rel.Txid].Nullable && len(s.rel.Stamped) > 0 || time.Now().Before(s.nextNulls) {
		return nil
	}
	every := nullsEvery
	if s.rel.Kind == 'v' {
		every = nullsEveryInView
	}
	s.nextNulls = time.Now().Add(every)
	n, err := relation.QueryOne[int64](ctx, s.pool, s.queries.nulls)
	if relation.IsLocked(err) {
		return nil
	}
	if err != nil {
		return classify(fmt.Errorf("count rows without a txid: %w", err))
	}
	s.p.metrics.Nulls.Set(float64(n))
	if n > 0 {
		msg := "rows have no txid (NULL, or below 0) and are not published; is the column the application's own? See bridge check"
		if len(s.rel.Stamped) > 0 {
			msg = "rows have no txid (NULL, or below 0) and are not published; to correct them: UPDATE … SET txid = txid_current() WHERE txid IS NULL"
		}
		s.log.Warn().Int64("rows", n).Msg(msg)
	}
	return nil
}

// countKeyless reports the rows that batches leave out because of their key. In a
// view this may read every row.
func (s *session) countKeyless(ctx context.Context) error {
	every := nullsEvery
	if s.rel.Kind == 'v' {
		every = nullsEveryInView
	}
	if !s.keyless.Due(s.metKeyless, every) {
		return nil
	}
	n, err := s.form.CountKeyless(ctx, s.pool, "true")
	if relation.IsLocked(err) {
		return nil
	}
	if err != nil {
		return classify(fmt.Errorf("count rows without a key: %w", err))
	}
	s.metKeyless = false
	s.keyless.Count(n, s.p.metrics, s.log)
	return nil
}

// checkKey warns once if rows of a view share a key. It waits until no two other
// relations are being compared or checked.
func (s *session) checkKey(ctx context.Context) error {
	if s.rel.Unique || s.p.keyChecked == s.rel.Definition {
		return nil
	}
	select {
	case s.pool.Comparisons <- struct{}{}:
		defer func() { <-s.pool.Comparisons }()
	default:
		return nil
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	shared, err := relation.SharedKey(ctx, conn, s.rel)
	if err != nil {
		return fmt.Errorf("look for rows with the same key: %w", err)
	}
	s.p.keyChecked = s.rel.Definition
	if shared != nil {
		s.log.Warn().Str("reason", shared.Error()).Msg("relation captured with a problem")
	}
	return nil
}
