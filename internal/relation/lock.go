package relation

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// LockSQL returns the statement that locks a relation before the snapshot under
// which the relation is read. ALTER TABLE may rewrite a table, and a snapshot from
// before the rewrite sees the new table empty. So a poll that took its snapshot
// first, and then waited for such a change, would miss committed rows (see MVCC
// Caveats in Postgres' manual). The statement does not wait: another session may
// hold the lock for long, and a poll that waits keeps a connection from other
// relations (I10).
func LockSQL(n Name) string {
	return "LOCK TABLE " + n.SQL() + " IN ACCESS SHARE MODE NOWAIT"
}

// lockedTable reports whether another session has locked a table. It does not
// wait. If a view, a partitioned table or a table with row level security is
// locked, it returns the error instead: Postgres locks these to answer what a
// view, a partition or a policy is. Other errors of LOCK are ignored here: Load
// finds their reasons.
func lockedTable(ctx context.Context, q Querier, n Name) (bool, error) {
	// LOCK needs a transaction, which DO is.
	body := strings.NewReplacer(`\`, `\\`, "'", "''").Replace("BEGIN " + LockSQL(n) + "; END")
	rows, err := q.Query(ctx, "DO E'"+body+"'") // E: with any standard_conforming_strings
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	if !IsLocked(err) {
		return false, nil
	}
	waits, kindErr := QueryOne[bool](ctx, q, "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = to_regclass($1) AND (relkind IN ('v', 'p') OR relrowsecurity))", n.SQL())
	if kindErr != nil || waits {
		return false, fmt.Errorf("look at %s: %w", n.Quoted(), errors.Join(err, kindErr))
	}
	return true, nil
}

// IsLocked reports whether Postgres refused a lock because another session has it.
func IsLocked(err error) bool {
	const lockNotAvailable = "55P03"
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == lockNotAvailable
}
