package poller_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/poller"
	"bridge/internal/relation"
	"bridge/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// While rows flow, polls come fast. When rows stop, the pause grows up to the
// interval. A notification ends the wait, even if it came before the wait.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, w := poller.NewPace(100*time.Millisecond), poller.NewWake()
		took := func(flowing bool) time.Duration {
			begun := time.Now()
			if err := p.Wait(t.Context(), w, flowing); err != nil {
				t.Fatal(err)
			}
			return time.Since(begun)
		}
		var got []time.Duration
		for _, flowing := range []bool{false, true, true, false, false, false, false, false, false} {
			got = append(got, took(flowing)/time.Millisecond)
		}
		if want := []time.Duration{100, 5, 5, 10, 20, 40, 80, 100, 100}; !slices.Equal(got, want) {
			t.Errorf("got waits of %d ms, want %d", got, want)
		}
		w.Notify()
		w.Notify()
		if d := took(false); d != 0 {
			t.Errorf("waited %s after a notification", d)
		}
		if d := took(false); d != 100*time.Millisecond {
			t.Errorf("waited %s, want the interval: two notifications are one reason to poll", d)
		}
		time.AfterFunc(30*time.Millisecond, w.Notify)
		if d := took(false); d != 30*time.Millisecond {
			t.Errorf("waited %s for a notification after 30 ms", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Wait(ctx, w, false); err == nil {
			t.Error("the wait does not end with its context")
		}
		if p := poller.NewPace(2 * time.Millisecond); p.Wait(t.Context(), w, true) != nil {
			t.Error("an interval below the fastest")
		}
	})
}

func TestRepeats(t *testing.T) {
	r := poller.NewRepeats()
	key := []int{2, 0}
	row := func(a, b string) [][]byte { return [][]byte{[]byte(a), []byte("value"), []byte(b)} }
	for i, c := range []struct {
		row  [][]byte
		txid uint64
		want bool
	}{
		{row("a", "b"), 10, false},
		{row("a", "b"), 10, true},
		{row("a", "b"), 9, false}, // T9 may write a key after T10 (I4)
		{row("a", "b"), 9, true},
		{row("", "ab"), 9, false}, // another key with the same bytes
		{row("ab", ""), 9, false},
	} {
		if got := r.Seen(c.row, key, c.txid, "content"); got != c.want {
			t.Errorf("%d: got %v, want %v", i, got, c.want)
		}
	}
	r.ForgetBelow(9)
	if r.Len() != 3 {
		t.Errorf("%d keys are left, want 3", r.Len())
	}
	r.ForgetBelow(10)
	if r.Len() != 0 {
		t.Errorf("%d keys are left, want none", r.Len())
	}
	for i := range poller.MaxRepeats + 10 { // I9
		r.Seen(row(fmt.Sprint(i), ""), key, 20, "content")
	}
	if r.Len() > poller.MaxRepeats {
		t.Errorf("it remembers %d rows, want at most %d", r.Len(), poller.MaxRepeats)
	}
}

// Postgres accepts every statement. Statements for rows have the batch's order,
// and the delta finds its rows by the index on txid.
func TestQueries(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `CREATE EXTENSION citext`, `CREATE DOMAIN short AS varchar(5)`,
		`CREATE TABLE "T ""q""" ("Key" short, n numeric(10,2), v text, "Tx" bigint, PRIMARY KEY (n, "Key"))`, `CREATE INDEX ON "T ""q""" ("Tx")`,
		`CREATE DOMAIN stamp AS xid8`, `CREATE TABLE x (k uuid PRIMARY KEY, txid stamp NOT NULL)`, `CREATE INDEX ON x (txid)`,
		`CREATE TABLE gone (deleted boolean, k citext, txid bigint NOT NULL)`, `CREATE INDEX ON gone (txid)`)
	conn := testenv.Conn(t, db)
	for _, name := range []string{`"T ""q"""(txid="Tx")`, "x", "gone(key=k)"} {
		specs, err := relation.ParseSpecs(name)
		if err != nil {
			t.Fatal(err)
		}
		rel, _, err := relation.Load(t.Context(), conn, specs.List[0])
		if err != nil {
			t.Fatal(err)
		}
		for what, sql := range poller.Queries(rel, make([]bool, len(rel.Columns))) {
			if _, err := conn.Prepare(t.Context(), name+what, sql); err != nil {
				t.Errorf("%s of %s: %v\n%s", what, name, err, sql)
			}
			order := fmt.Sprintf(" ORDER BY %d", rel.Txid+1)
			for _, i := range rel.Key {
				order += fmt.Sprintf(", %d", i+1)
			}
			if name == "gone(key=k)" { // of rows with equal keys, deletes come first, and none is left out
				order += fmt.Sprintf(", %d DESC NULLS LAST", rel.Deleted+1)
			}
			if strings.HasSuffix(what, "After") && strings.Contains(sql, ") >= ($") != (name != "x") {
				t.Errorf("%s of %s goes on after the wrong row: %s", what, name, sql)
			}
			if what != "nulls" && !strings.HasSuffix(sql, order) {
				t.Errorf("%s of %s does not end in%s\n%s", what, name, order, sql)
			}
		}
		if _, err := conn.Exec(t.Context(), "SET enable_seqscan = off"); err != nil {
			t.Fatal(err)
		}
		delta := strings.NewReplacer("$1", "'{100,200}'", "$2", "'300'").Replace(poller.Queries(rel, make([]bool, len(rel.Columns)))["delta"])
		rows, err := conn.Query(t.Context(), "EXPLAIN "+delta)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, line)
		}
		if n := strings.Count(strings.Join(plan, "\n"), "Index Cond"); n != 2 {
			t.Errorf("the delta of %s uses the index %d times, want 2:\n%s", name, n, strings.Join(plan, "\n"))
		}
	}
}

// After a crash a long batch goes on after the last row that was stored. It leaves out no row whose key Postgres calls
// equal to that row's. Of these rows, deletes come first.
func TestQueries_BatchGoesOnAmongEqualKeys_I7(t *testing.T) {
	if testing.Short() {
		t.Skip("needs servers")
	}
	t.Parallel()
	db := testenv.Postgres(t)
	testenv.Exec(t, db, `CREATE EXTENSION citext`, `CREATE TABLE t (deleted boolean, k citext, txid bigint NOT NULL)`,
		`INSERT INTO t VALUES (false, 'AB', 5), (true, 'Ab', 5), (true, 'aB', 5), (false, 'a', 5), (false, 'b', 4)`)
	conn := testenv.Conn(t, db)
	specs, err := relation.ParseSpecs("t(key=k)")
	if err != nil {
		t.Fatal(err)
	}
	rel, _, err := relation.Load(t.Context(), conn, specs.List[0])
	if err != nil {
		t.Fatal(err)
	}
	sql := poller.Queries(rel, make([]bool, len(rel.Columns)))["continueWholeAfter"]
	result := conn.PgConn().ExecParams(t.Context(), sql, [][]byte{[]byte("10"), []byte("{}"), []byte("5"), []byte("aB")}, nil, nil, nil).Read()
	if result.Err != nil {
		t.Fatal(result.Err)
	}
	var got []string
	for _, row := range result.Rows {
		got = append(got, string(row[0])+" "+string(row[1]))
	}
	slices.Sort(got[:min(2, len(got))])
	if want := []string{"t Ab", "t aB", "f AB"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestXIDArray(t *testing.T) {
	if got := poller.XIDArray([]uint64{7, 8}); got != "{7,8}" || poller.XIDArray(nil) != "{}" {
		t.Errorf("got %s", got)
	}
}
