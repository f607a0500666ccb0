package relation

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// LockSQL returns the statement that comes before the snapshot under which a
// relation is read. ALTER TABLE may write a table anew, and a snapshot from before
// that sees it empty afterwards; so a poll that took its snapshot, and then waited
// for such a change to end, would pass over what had been committed (MVCC Caveats
// in Postgres' manual). It does not wait: who holds the lock may hold it for long,
// and a poll that waits keeps a connection from other relations (I10).
func LockSQL(n Name) string {
	return "LOCK TABLE " + n.SQL() + " IN ACCESS SHARE MODE NOWAIT"
}

// lockedTable says whether another session has locked a table; where it has
// locked a view, a partitioned table or one with row level security, that is the
// error: to tell what a view, a policy or a partition is, Postgres locks them. It
// does not wait. What else Postgres refuses, Load words.
func lockedTable(ctx context.Context, q Querier, n Name) (bool, error) {
	// LOCK needs a transaction, which DO is.
	body := strings.NewReplacer(`\`, `\\`, "'", "''").Replace("BEGIN " + LockSQL(n) + "; END")
	rows, err := q.Query(ctx, "DO E'"+body+"'") // E: whatever standard_conforming_strings is
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

// IsLocked says whether Postgres refused a lock because another session has it.
func IsLocked(err error) bool {
	const lockNotAvailable = "55P03"
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == lockNotAvailable
}
