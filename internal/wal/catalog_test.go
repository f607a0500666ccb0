package wal_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/testenv"
	"bridge/internal/wal"

	"github.com/jackc/pgx/v5"
)

// What changes in the catalog alone is not in the WAL: no row follows, or rows do
// that nobody is sent. The catalog is looked at from time to time, and what such
// a change has made of the relation reaches the stream, deletes among it.
func TestCapture_CatalogChangesUnderIt_I1(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	plain := []string{"CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t SELECT g, 'old' FROM generate_series(1, 9) g"}
	filtered := append(slices.Clone(plain), "CREATE PUBLICATION $SLOT FOR TABLE t WHERE (id < 3)")
	all := append(slices.Clone(plain), "CREATE PUBLICATION $SLOT FOR ALL TABLES")
	parts := []string{
		"CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)", "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
		"INSERT INTO t SELECT g, 'old' FROM generate_series(1, 19) g",
	}
	for _, c := range []struct {
		name          string
		setup, change []string
		// before and after are where the rows are that the stream must have.
		before, after string
	}{
		{"table made again", plain, []string{"DROP TABLE t", "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (2, 'new')"}, "t", "t"},
		{"another table of its name", plain, []string{"CREATE TABLE n (id int PRIMARY KEY, v text)", "INSERT INTO n VALUES (2, 'new')", "BEGIN", "ALTER TABLE t RENAME TO o", "ALTER TABLE n RENAME TO t", "COMMIT"}, "t", "t"},
		{"another table of its name, which is published", all, []string{"CREATE TABLE n (id int PRIMARY KEY, v text)", "INSERT INTO n VALUES (2, 'new')", "BEGIN", "ALTER TABLE t RENAME TO o", "ALTER TABLE n RENAME TO t", "COMMIT"}, "t", "t"},
		{"taken out of the publication", plain, []string{"ALTER PUBLICATION $SLOT DROP TABLE t", "INSERT INTO t VALUES (20, 'new')", "DELETE FROM t WHERE id = 2"}, "t", "t"},
		{
			"taken out of the publication and put back", plain,
			[]string{"BEGIN", "ALTER PUBLICATION $SLOT DROP TABLE t", "INSERT INTO t VALUES (20, 'new')", "DELETE FROM t WHERE id = 2", "ALTER PUBLICATION $SLOT ADD TABLE t", "COMMIT"},
			"t", "t",
		},
		{"another filter", filtered, []string{"ALTER PUBLICATION $SLOT SET TABLE t WHERE (id > 5)"}, "t WHERE id < 3", "t WHERE id > 5"},
		{"partition dropped", parts, []string{"DROP TABLE t2"}, "t", "t"},
		{"partition truncated", parts, []string{"TRUNCATE t2"}, "t", "t"},
		{"partition attached", parts, []string{"CREATE TABLE t3 (id int PRIMARY KEY, v text)", "INSERT INTO t3 VALUES (25, 'new')", "ALTER TABLE t ATTACH PARTITION t3 FOR VALUES FROM (20) TO (30)"}, "t", "t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := testenv.Postgres(t)
			exec := func(statements []string) {
				t.Helper()
				list := slices.Clone(statements)
				for i := range list {
					list[i] = strings.ReplaceAll(list[i], "$SLOT", slotOf(t, db))
				}
				testenv.Exec(t, db, list...)
			}
			exec(c.setup)
			conn, m := testenv.Conn(t, db), newMemory()
			capturing(t, db, wal.Options{ShapeInterval: 100 * time.Millisecond}, map[string]*memory{"t": m})
			awaitState(t, conn, m, c.before)
			exec(c.change)
			awaitState(t, conn, m, c.after)
			// And it is captured on.
			exec([]string{"UPDATE t SET v = 'last' WHERE id IN (2, 7)"})
			awaitState(t, conn, m, c.after)
		})
	}
}

// awaitState waits until the sink has the rows that the SQL behind FROM gives, and
// a heartbeat.
func awaitState(t *testing.T, conn *pgx.Conn, m *memory, from string) {
	t.Helper()
	testenv.Eventually(t, long, func() error {
		rows, err := conn.Query(t.Context(), "SELECT row_to_json(r)::text FROM (SELECT * FROM "+from+") r")
		if err != nil {
			return err
		}
		want, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		slices.Sort(want)
		if got := m.state(); !slices.Equal(got, want) {
			return fmt.Errorf("the stream has %s, and Postgres %s", got, want)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.pos.Heartbeat == nil {
			return fmt.Errorf("no heartbeat")
		}
		return nil
	})
}
