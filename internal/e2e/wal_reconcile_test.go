package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bridge/internal/stream"
	"bridge/internal/testenv"
)

// While rows are written, bridge reconcile finds no difference where there is none. It finds and repairs rows that somebody
// removed from the stream.
func TestWAL_Reconcile_I1(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	newBare(t, db, "t", 1000)
	conn := connect(t, db)
	startWAL(t, db, broker.URL(), "t(capture=wal)")
	f := follow(t, testenv.NATSConn(t, broker.URL()), bare("t"))
	f.converge(conn)
	env := []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL()}
	stop := writeOn(t, db, 500)
	for range 3 {
		if code, out, stderr := command(t, env, "reconcile", "t"); code != 0 || !strings.Contains(out, "0 missing, 0 stale, 0 zombies") {
			t.Errorf("exit status %d, %s%s", code, out, stderr)
		}
	}
	s, err := f.js.Stream(t.Context(), f.layout.Stream)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []int{700, 800} {
		msg, err := s.GetLastMsgForSubject(t.Context(), fmt.Sprintf("lockstep.public.t.row.%d", id))
		if err == nil {
			err = s.DeleteMsg(t.Context(), msg.Sequence)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f.set(func() {
		for key := range f.rows {
			if strings.HasSuffix(key, ".700 ") || strings.HasSuffix(key, ".800 ") {
				delete(f.rows, key)
			}
		}
	})
	if code, out, stderr := command(t, env, "reconcile", "t"); code != 0 || !strings.Contains(out, "2 missing, 0 stale, 0 zombies, repaired") {
		t.Errorf("exit status %d, %s%s", code, out, stderr)
	}
	stop()
	f.converge(conn)
}

// Keys are inserted, changed, moved and deleted between the first read of bridge reconcile and its repair: while it reads
// the relation, and after the snapshot of its look at the keys that differ. The changes of one half of the keys reach the
// stream before the look's rows are read, those of the other half between that and the look's marker. No version comes
// after a newer one (I4), and none after the heartbeat that covers it (I2).
func TestWAL_ReconcileIsSafeWhileWritesGoOn_I4(t *testing.T) {
	s := newSceneOf(t, "t(capture=wal)", bare("t"), append(turnstileSQL(),
		"CREATE TABLE t (id int PRIMARY KEY, n int, o odder)",
		fmt.Sprintf("INSERT INTO t SELECT g + half, 0, NULL FROM generate_series(1, 30) g, unnest(ARRAY[0, %d]) half WHERE g NOT BETWEEN 11 AND 13", half),
		"INSERT INTO t VALUES (500, 0, 'a')")...) // a query that reads this row is held
	s.f.set(func() { s.f.repairs = true })
	s.f.converge(s.conn)
	for _, id := range []int{1, 2, 3, 4, 5, 21, 22, 23, 24} {
		s.f.forget(strconv.Itoa(id))
		s.f.forget(strconv.Itoa(id + half))
	}
	s.f.forget("500")

	s.letThrough()
	p := testenv.Start(t, testenv.Build(t, "./cmd/bridge"), []string{"NATS_URL=" + s.nats}, "reconcile", "t")
	s.awaitHeld() // it reads the relation's fingerprint
	s.letThrough()
	s.awaitHeld() // it reads the keys
	s.run(whileKeysAreRead(0)...)
	s.run(whileKeysAreRead(half)...)
	s.f.awaitWritten(lastRead + half)
	s.letThrough()
	s.awaitHeld() // the look has its snapshot
	s.run(whileLookedAt(0)...)
	s.f.awaitWritten(lastWritten)
	// These rows keep the bridge busy when the look's rows come, so it reads the other half after those.
	s.run("INSERT INTO t SELECT g, 0, NULL FROM generate_series(1001, 11000) g")
	s.run(whileLookedAt(half)...)
	s.run(openSQL)
	if code, err := p.Wait(long); err != nil || code != 0 {
		t.Fatalf("bridge reconcile: exit status %d, %v, %s", code, err, p.Stderr())
	}
	// Row 1 of each half, and the row that held the query: nobody wrote them meanwhile.
	if want := "t: 55 rows compared: 3 missing, 0 stale, 0 zombies, repaired\n"; p.Stdout() != want {
		t.Errorf("bridge reconcile: %q, want %q", p.Stdout(), want)
	}
	hb := s.f.converge(s.conn)
	s.f.heartbeatFrom(hb.seq + 1)
	if rows := s.f.messages(stream.KindRow, hb.seq+1); len(rows) > 0 {
		t.Errorf("%d rows come after the heartbeat that covers them", len(rows))
	}
	got := s.f.byID()
	for id, want := range versionsWritten() {
		for _, id := range []int{id, id + half} {
			if !isSome(got[id], want) {
				t.Errorf("row %d had the versions %s, want some of %s in this order, with the last one", id, got[id], want)
			}
		}
	}
}

// turnstileSQL creates odderSQL's type so that a query of it takes its snapshot and then waits, if its transaction began
// after the moment that openSQL or letThrough has set. The moment is in a sequence, because a sequence is in no snapshot.
func turnstileSQL() []string {
	return append(odderSQL(), "CREATE SEQUENCE opened", openSQL, `CREATE OR REPLACE FUNCTION odd_json(odder) RETURNS json STABLE LANGUAGE plpgsql AS
		$$BEGIN WHILE extract(epoch FROM now()) * 1000000 > (SELECT last_value FROM opened) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN to_json('odd ' || $1::text); END$$`)
}

// openSQL lets all queries go on, later ones too.
const openSQL = "SELECT setval('opened', 9223372036854775807)"

// letThrough lets the queries go on that wait now, and no later ones.
func (s *scene) letThrough() {
	s.t.Helper()
	s.run("SELECT setval('opened', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)")
}

// awaitHeld waits until a query waits that began after the last letThrough.
func (s *scene) awaitHeld() {
	s.t.Helper()
	testenv.Eventually(s.t, long, func() error {
		if query[int](s.t, s.conn, `SELECT count(*)::int FROM pg_stat_activity, opened WHERE datname = current_database()
			AND wait_event = 'PgSleep' AND extract(epoch FROM xact_start) * 1000000 > last_value`) == 0 {
			return errors.New("no query waits")
		}
		return nil
	})
}

const (
	// half is added to a key of the first half to get its key in the second half.
	half = 100
	// lastRead and lastWritten are the keys that whileKeysAreRead and whileLookedAt write last.
	lastRead, lastWritten = 40, 41
)

// whileKeysAreRead returns statements that make keys suspect. When the look reads these keys, the stream has them already,
// or the relation has them no more.
func whileKeysAreRead(half int) []string {
	return ofHalf(half,
		"UPDATE t SET n = 1 WHERE id BETWEEN %d + 6 AND %[1]d + 8",
		"INSERT INTO t SELECT %d + id, 1, NULL FROM unnest(ARRAY[11, 12, 13]) id",
		"DELETE FROM t WHERE id BETWEEN %d + 21 AND %[1]d + 24",
		fmt.Sprintf("INSERT INTO t VALUES (%%d + %d, 1, NULL)", lastRead))
}

// whileLookedAt returns statements for each thing that can happen to a key after the look's snapshot.
func whileLookedAt(half int) []string {
	return ofHalf(half,
		"UPDATE t SET n = 2 WHERE id - %d IN (2, 6, 12)",                              // seen, and changed
		"DELETE FROM t WHERE id - %d IN (3, 4, 8, 13)",                                // seen, and deleted
		"INSERT INTO t VALUES (%d + 4, 2, NULL)",                                      // and back
		"INSERT INTO t SELECT %d + id, 2, NULL FROM unnest(ARRAY[22, 23, 31, 32]) id", // not seen, and inserted
		"UPDATE t SET n = 3 WHERE id - %d IN (22, 31)",                                // and changed
		"DELETE FROM t WHERE id - %d IN (23, 32)",                                     // and deleted
		"UPDATE t SET id = %d + 24, n = 2 WHERE id = %[1]d + 5",                       // seen, and moved to a key that was not
		fmt.Sprintf("INSERT INTO t VALUES (%%d + %d, 2, NULL)", lastWritten))
}

// ofHalf puts the half's offset into statements.
func ofHalf(half int, statements ...string) []string {
	for i, s := range statements {
		statements[i] = fmt.Sprintf(s, half)
	}
	return statements
}

// isSome reports whether versions are some of those written, in their order, with the last one. A version that is replaced
// before it is read is never seen.
func isSome(versions, written []string) bool {
	if len(versions) == 0 || versions[len(versions)-1] != written[len(written)-1] {
		return false
	}
	for _, v := range versions {
		at := slices.Index(written, v)
		if at < 0 {
			return false
		}
		written = written[at+1:]
	}
	return true
}

// versionsWritten returns, for each key of a half, the values of n that are written to the stream.
func versionsWritten() map[int][]string {
	return map[int][]string{
		// Rows 1 to 5 and 21 to 24 are missing in the stream at first. reconcile repairs row 1.
		1: {"0", "0"}, 2: {"0", "2"}, 3: {"0", "deleted"}, 4: {"0", "deleted", "2"}, 5: {"0", "deleted"},
		6: {"0", "1", "2"}, 7: {"0", "1"}, 8: {"0", "1", "deleted"},
		11: {"1"}, 12: {"1", "2"}, 13: {"1", "deleted"},
		21: {"0", "deleted"}, 22: {"0", "deleted", "2", "3"}, 23: {"0", "deleted", "2", "deleted"}, 24: {"0", "deleted", "2"},
		30: {"0"}, 31: {"2", "3"}, 32: {"2", "deleted"}, // never suspect
	}
}

// awaitWritten waits until the stream has a row with the key.
func (f *follower) awaitWritten(id int) {
	f.t.Helper()
	testenv.Eventually(f.t, long, func() error {
		if len(f.byID()[id]) == 0 {
			return fmt.Errorf("no row %d", id)
		}
		return nil
	})
}

// byID returns the versions of rows (id, n), in the stream's order.
func (f *follower) byID() map[int][]string {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[int][]string{}
	for _, r := range f.kept {
		var doc struct{ ID, N int }
		if err := json.Unmarshal(r.Data, &doc); err != nil {
			f.t.Fatal(err)
		}
		version := strconv.Itoa(doc.N)
		if r.Deleted {
			version = "deleted"
		}
		all[doc.ID] = append(all[doc.ID], version)
	}
	return all
}
