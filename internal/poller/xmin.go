package poller

import (
	"context"
	"fmt"
	"time"

	"bridge/internal/source"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

const (
	xminEvery = 15 * time.Second
	xminStuck = time.Minute
)

// xminSQL names what holds xmin back: the oldest transactions that have an ID,
// and the oldest prepared transactions, which no session shows.
const xminSQL = `
SELECT pg_snapshot_xmin(pg_current_snapshot())::text,
       CASE WHEN pg_snapshot_xmin(pg_current_snapshot()) = pg_snapshot_xmax(pg_current_snapshot()) THEN ''
       ELSE COALESCE((SELECT string_agg(who, '; ') FROM (
         (SELECT format('pid %s, application %L', pid, application_name) || COALESCE(', running for ' || date_trunc('second', now() - xact_start), '') AS who
            FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) DESC LIMIT 3)
         UNION ALL
         (SELECT format('prepared transaction %L, prepared %s ago', gid, date_trunc('second', now() - prepared))
            FROM pg_prepared_xacts ORDER BY age(transaction) DESC LIMIT 3)) holders), 'a transaction that this role may not see') END`

// XminWatcher logs which transactions hold back Postgres' xmin, and with it every
// client's position.
type XminWatcher struct {
	pool *source.Pool
	log  zerolog.Logger
}

// NewXminWatcher returns a watcher, which does nothing until Run.
func NewXminWatcher(pool *source.Pool, log zerolog.Logger) *XminWatcher {
	return &XminWatcher{pool: pool, log: log.With().Str("component", "xmin").Logger()}
}

// Run checks xmin every xminEvery until ctx ends.
func (x *XminWatcher) Run(ctx context.Context) error {
	t := time.NewTicker(xminEvery)
	defer t.Stop()
	var last string
	moved := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		xmin, holders, err := x.look(ctx)
		if err != nil {
			continue // the pollers report that Postgres is away
		}
		if xmin != last {
			last, moved = xmin, time.Now()
			continue
		}
		if stuck := time.Since(moved); stuck > xminStuck && holders != "" {
			x.log.Warn().Str("since", xmin).Dur("dur", stuck.Round(time.Millisecond)).Str("reason", holders).
				Msg("long transaction holds back xmin: rows flow, but clients' positions stand still until it ends")
			moved = moved.Add(xminStuck)
		}
	}
}

// look returns xmin and what holds it back, or "" if no transaction runs.
func (x *XminWatcher) look(ctx context.Context) (xmin, holders string, err error) {
	rows, err := x.pool.Query(ctx, xminSQL)
	if err != nil {
		return "", "", fmt.Errorf("ask for xmin: %w", err)
	}
	type answer struct{ Xmin, Holders string }
	a, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[answer])
	if err != nil {
		return "", "", fmt.Errorf("ask for xmin: %w", err)
	}
	return a.Xmin, a.Holders, nil
}
