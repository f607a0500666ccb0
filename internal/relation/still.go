package relation

import (
	"context"
	"fmt"
)

// changesSQL says whether the relation, and all that is below it, are tables and
// views without anything that changes by itself: foreign tables, row level
// security (whose policies may call functions), and in views samples, the time,
// and functions that are volatile, or stable and not Postgres' own. The functions
// that a view calls stand in its query tree. $1 is the relation.
const changesSQL = `
WITH RECURSIVE below(oid) AS (
  SELECT $1::oid
  UNION
  SELECT x.oid FROM below b CROSS JOIN LATERAL (
    SELECT d.refobjid AS oid
      FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass
       AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE r.ev_class = b.oid AND r.ev_type = '1'
    UNION ALL
    SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = b.oid) x
), trees AS (
  SELECT r.ev_action::text AS tree FROM below b JOIN pg_catalog.pg_rewrite r ON r.ev_class = b.oid AND r.ev_type = '1'
)
SELECT NOT EXISTS (SELECT FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid WHERE c.relkind = 'f' OR c.relrowsecurity)
   AND NOT EXISTS (SELECT FROM trees WHERE tree LIKE '%{SQLVALUEFUNCTION %' OR tree LIKE '%{TABLESAMPLECLAUSE %')
   AND NOT EXISTS (
     SELECT FROM trees, regexp_matches(tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') f
       JOIN pg_catalog.pg_proc p ON p.oid = f[1]::oid
      WHERE p.provolatile = 'v' OR p.provolatile = 's' AND (p.pronamespace <> 'pg_catalog'::regnamespace
         OR p.proname IN ('now', 'transaction_timestamp', 'statement_timestamp', 'age', 'current_setting')))`

// ChangesByTransactions says whether a relation changes only when a transaction of
// its database ends. If it does not know, it says no.
func ChangesByTransactions(ctx context.Context, q Querier, rel *Relation) (bool, error) {
	if rel.Policies {
		return false, nil
	}
	yes, err := QueryOne[bool](ctx, q, changesSQL, rel.OID)
	if err != nil {
		return false, fmt.Errorf("look at what %s reads: %w", rel.Name.Quoted(), err)
	}
	return yes, nil
}
