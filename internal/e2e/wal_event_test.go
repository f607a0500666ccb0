package e2e_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/internal/testenv"
	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
)

// document is a message of a stream on the subjects of its rows.
type document struct {
	// text is what the tests compare: all but IDs, times and positions.
	text  string
	event string
	at    time.Time
	// header is stream.EventHeader.
	header string
	// reason is that of a gap.
	reason string
}

func newDocument(t *testing.T, msg *jetstream.RawStreamMsg) document {
	t.Helper()
	d := document{header: msg.Header.Get(stream.EventHeader)}
	m, err := lockstep.Decode(msg.Data)
	if err != nil {
		t.Fatalf("%s: %v", msg.Data, err)
	}
	if c := m.Control; c != nil {
		d.text, d.event, d.at = strings.TrimSpace(fmt.Sprintf("%s %s", c.Type, c.Action)), c.Event, c.CommittedAt
		d.reason = c.Reason
		return d
	}
	r := m.Row
	d.text, d.event, d.at = strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Action, r.Data, r.Old)), r.Event, r.CommittedAt
	if r.Unchanged != nil {
		d.text += fmt.Sprint(" ", r.Unchanged)
	}
	return d
}

// stored returns what a relation's stream has on the subjects of its rows, as soon as there are n documents.
func stored(t *testing.T, nats string, l stream.Layout, n int) []document {
	t.Helper()
	js := testenv.JetStream(t, nats)
	var out []document
	testenv.Eventually(t, long, func() error {
		out = nil
		s, err := js.Stream(t.Context(), l.Stream)
		if err != nil {
			return err
		}
		for seq := s.CachedInfo().State.FirstSeq; seq <= s.CachedInfo().State.LastSeq; seq++ {
			if msg, err := s.GetMsg(t.Context(), seq); err == nil && l.KindOf(msg.Subject) == stream.KindRow {
				out = append(out, newDocument(t, msg))
			}
		}
		if len(out) < n {
			return fmt.Errorf("stream %s has %d documents, want %d: %v", l.Stream, len(out), n, texts(out))
		}
		return nil
	})
	return out
}

func texts(docs []document) (out []string) {
	for _, d := range docs {
		out = append(out, d.text)
	}
	return out
}

func logOf(name string) table {
	rel := bare(name)
	rel.log = true
	return rel
}

var eventID = regexp.MustCompile(`^0000000[1-9]-[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{4}$`)

// wantEvents fails the test unless the documents are those, and unless their IDs and times are right: each change has an
// ID, in the order of commits, and a time since begun. Rows that were read have neither.
func wantEvents(t *testing.T, got []document, begun time.Time, want ...string) {
	t.Helper()
	if fmt.Sprint(texts(got)) != fmt.Sprint(want) {
		t.Errorf("got %d documents, want %d:\n%s\n\n%s", len(got), len(want), strings.Join(texts(got), "\n"), strings.Join(want, "\n"))
	}
	last, at := "", begun
	for i, d := range got {
		if strings.HasPrefix(d.text, "read ") || strings.HasPrefix(d.text, lockstep.Gap) {
			if d.event != "" || !d.at.IsZero() {
				t.Errorf("document %d, %s, is event %q of %v", i, d.text, d.event, d.at)
			}
			continue
		}
		if !eventID.MatchString(d.event) || d.event <= last {
			t.Errorf("document %d, %s, is event %q, after %q", i, d.text, d.event, last)
		}
		if d.at.Before(at) || d.at.After(time.Now()) {
			t.Errorf("document %d, %s, was committed at %v, want between %v and now", i, d.text, d.at, at)
		}
		last, at = d.event, d.at
	}
}

// A log has what Postgres sent of each change, and names what it did not send (issue 15). With REPLICA IDENTITY FULL that
// is the whole old row, and the values that an UPDATE left alone. Rows of one COPY have the same place in the WAL.
func TestWAL_EventsOfALog_I12(t *testing.T) {
	needServers(t)
	for identity, want := range map[string][]string{
		"DEFAULT": {
			`read {"id":1,"v":"a","w":"BIG","o":"odd a"}`,
			`insert {"id":2,"v":"b","w":"x"} [o]`,
			`update {"id":1,"v":"c"} [w o]`,
			`update {"id":3,"v":"b","w":"x","o":null} {"id":2}`,
			`delete {"id":3}`,
			`insert {"id":4,"v":"d","w":null,"o":null}`,
			`insert {"id":5,"v":"e","w":null,"o":null}`,
			`insert {"id":6,"v":"f","w":null,"o":null}`,
			`truncate truncate`,
		},
		"FULL": {
			`read {"id":1,"v":"a","w":"BIG","o":"odd a"}`,
			`insert {"id":2,"v":"b","w":"x"} [o]`,
			`update {"id":1,"v":"c","w":"BIG"} {"id":1,"v":"a","w":"BIG"} [o]`,
			`update {"id":3,"v":"b","w":"x","o":null} {"id":2,"v":"b","w":"x"}`,
			`delete {"id":3} {"id":3,"v":"b","w":"x","o":null}`,
			`insert {"id":4,"v":"d","w":null,"o":null}`,
			`insert {"id":5,"v":"e","w":null,"o":null}`,
			`insert {"id":6,"v":"f","w":null,"o":null}`,
			`truncate truncate`,
		},
	} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, odderSQL()...)
			run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text, w text, o odder)", "ALTER TABLE t ALTER w SET STORAGE EXTERNAL",
				"ALTER TABLE t REPLICA IDENTITY "+identity, fmt.Sprintf("INSERT INTO t VALUES (1, 'a', "+wide+", 'a')", 1),
				"CREATE TABLE u (id int PRIMARY KEY)")
			big := query[string](t, conn, "SELECT w FROM t")
			startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h),u(capture=wal;history=log;max_age=1h)")
			stored(t, broker.URL(), logOf("t").layout(), 1)
			begun := query[time.Time](t, conn, "SELECT clock_timestamp()")
			run(t, conn, "INSERT INTO t VALUES (2, 'b', 'x', 'b')", "UPDATE t SET v = 'c' WHERE id = 1",
				"BEGIN", "INSERT INTO u VALUES (1)", "UPDATE t SET id = 3, o = NULL WHERE id = 2", "INSERT INTO u VALUES (2)", "DELETE FROM t WHERE id = 3", "COMMIT")
			if _, err := conn.PgConn().CopyFrom(t.Context(), strings.NewReader("4,d\n5,e\n6,f\n"), "COPY t (id, v) FROM STDIN (FORMAT csv)"); err != nil {
				t.Fatal(err)
			}
			run(t, conn, "TRUNCATE t, u")
			got := stored(t, broker.URL(), logOf("t").layout(), len(want))
			for i := range got {
				got[i].text = strings.ReplaceAll(got[i].text, big, "BIG")
			}
			wantEvents(t, got, begun, want...)
			var lsns, numbers []string
			for _, d := range got {
				if strings.HasPrefix(d.text, `insert {"id":4`) || strings.HasPrefix(d.text, `insert {"id":5`) || strings.HasPrefix(d.text, `insert {"id":6`) {
					lsns, numbers = append(lsns, d.event[:len(d.event)-4]), append(numbers, d.event[len(d.event)-4:])
				}
			}
			if len(slices.Compact(lsns)) != 1 || !slices.Equal(numbers, []string{"0000", "0001", "0002"}) {
				t.Errorf("the rows of one COPY have the places %v, and the numbers %v", lsns, numbers)
			}
			// The two streams together are in the order of the changes.
			other := stored(t, broker.URL(), logOf("u").layout(), 3)
			wantEvents(t, other, begun, `insert {"id":1}`, `insert {"id":2}`, `truncate truncate`)
			if !(other[0].event < got[3].event && got[3].event < other[1].event && other[1].event < got[4].event && other[2].event == got[len(got)-1].event) {
				t.Errorf("the events of one transaction in two tables: %q %q %q %q, and of one TRUNCATE: %q %q",
					other[0].event, got[3].event, other[1].event, got[4].event, other[2].event, got[len(got)-1].event)
			}
		})
	}
}

// A change has the same ID in every stream that it gets into, whatever else its bridge captures, and whatever Postgres leaves
// out of the publication. So it also has the same ID when it is sent again.
func TestWAL_EventHasOneID_I7(t *testing.T) {
	needServers(t)
	db, broker := ownDatabase(t), testenv.NATS(t)
	conn := connect(t, db)
	const other = "other"
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v int)", "CREATE TABLE u (id int PRIMARY KEY)",
		"CREATE PUBLICATION "+other+" FOR TABLE t WHERE (id % 2 = 0), u WITH (publish_via_partition_root = true)")
	a := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	b := startWAL(t, db, broker.URL(), "u(capture=wal),t(capture=wal;events=true)", "BRIDGE_NAME="+other, "BRIDGE_STREAM_PREFIX="+other)
	a.awaitReady()
	b.awaitReady()
	run(t, conn, "BEGIN", "INSERT INTO u SELECT g FROM generate_series(1, 3) g", "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g", "DELETE FROM u", "UPDATE t SET v = -v WHERE id > 10", "COMMIT",
		"UPDATE t SET v = 0 WHERE id = 12")
	ids := map[string]string{}
	for _, d := range stored(t, broker.URL(), logOf("t").layout(), 100+90+1) {
		ids[d.text] = d.event + " " + d.text[:6] + " " + string(lockstep.AppendTime(nil, d.at))
	}
	for _, d := range stored(t, broker.URL(), stream.NewLayout(other, "public", "t", false), 50) {
		action := strings.Fields(d.header)[1]
		if want := ids[action+" "+d.text]; d.header != want {
			t.Errorf("%s is event %q in one stream, and %q in another", d.text, d.header, want)
		}
	}
}

// With events=true, the header of a row in a stream of latest versions says which change it comes from: also of the delete
// of a key that an UPDATE left, and of each row that a TRUNCATE removed. Rows that were found by reading say nothing.
func TestWAL_EventsInHeaders(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')", "CREATE TABLE u (LIKE t INCLUDING ALL)", "CREATE TABLE w (LIKE t INCLUDING ALL)")
	b := startWAL(t, db, broker.URL(), "t(capture=wal;events=true),u(capture=wal;events=true),w(capture=wal)")
	b.awaitReady()
	run(t, conn, "UPDATE t SET v = 'new' WHERE id = 2", "UPDATE t SET id = 5 WHERE id = 3", "DELETE FROM t WHERE id = 4", "INSERT INTO t VALUES (6, 'f')",
		"INSERT INTO u VALUES (1, 'a'), (2, 'b')", "INSERT INTO w VALUES (1, 'a')")
	stored(t, broker.URL(), bare("u").layout(), 2)
	run(t, conn, "TRUNCATE u", "INSERT INTO w VALUES (2, 'a')")
	stored(t, broker.URL(), bare("w").layout(), 2)
	headers := func(name string, n int) (out []string) {
		for _, d := range stored(t, broker.URL(), bare(name).layout(), n) {
			if d.header != "" {
				c, err := lockstep.ParseChange([]byte(d.header))
				if err != nil || !eventID.Match(c.Event) {
					t.Errorf("%s: header %q: %v", d.text, d.header, err)
				}
				d.text = string(c.Action) + " " + d.text
			}
			out = append(out, d.text)
		}
		return out
	}
	for name, want := range map[string][]string{
		"t": {`{"id":1,"v":"a"}`, `update {"id":2,"v":"new"}`, `update {"id":3}`, `update {"id":5,"v":"c"}`, `delete {"id":4}`, `insert {"id":6,"v":"f"}`},
		"u": {`truncate {"id":1}`, `truncate {"id":2}`},
		"w": {`{"id":1,"v":"a"}`, `{"id":2,"v":"a"}`},
	} {
		testenv.Eventually(t, long, func() error {
			if got := headers(name, len(want)); fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("%s: got %q, want %q", name, got, want)
			}
			return nil
		})
	}
}

// Where a log can't have every change, it says so before what follows: the slot was dropped, the slot was made again, the
// broker lost the end of the stream or all of it. It says nothing of a first load, of a restart, or of a kill (issue 15).
func TestWAL_GapIsSaid_I8(t *testing.T) {
	needServers(t)
	for name, c := range map[string]struct {
		lose func(t *testing.T, conn *pgx.Conn, db string, js jetstream.JetStream)
		gaps int
	}{
		"killed":       {func(*testing.T, *pgx.Conn, string, jetstream.JetStream) {}, 0},
		"slot dropped": {func(t *testing.T, conn *pgx.Conn, db string, _ jetstream.JetStream) { dropSlot(t, conn, db) }, 1},
		"slot moved on": {func(t *testing.T, conn *pgx.Conn, db string, _ jetstream.JetStream) {
			testenv.Eventually(t, long, func() error {
				_, err := conn.Exec(t.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", slotOf(db))
				return err
			})
		}, 1},
		"out of the publication": {func(t *testing.T, conn *pgx.Conn, db string, _ jetstream.JetStream) {
			run(t, conn, "ALTER PUBLICATION "+slotOf(db)+" DROP TABLE t")
		}, 1},
		"out of the publication and in again": {func(t *testing.T, conn *pgx.Conn, db string, _ jetstream.JetStream) {
			run(t, conn, "ALTER PUBLICATION "+slotOf(db)+" DROP TABLE t", "INSERT INTO t VALUES (13)", "DELETE FROM t WHERE id = 13", "ALTER PUBLICATION "+slotOf(db)+" ADD TABLE t")
		}, 1},
		"not all actions for a while": {func(t *testing.T, conn *pgx.Conn, db string, _ jetstream.JetStream) {
			run(t, conn, "ALTER PUBLICATION "+slotOf(db)+" SET (publish = 'update')", "INSERT INTO t VALUES (13)", "DELETE FROM t WHERE id = 13",
				"ALTER PUBLICATION "+slotOf(db)+" SET (publish = 'insert, update, delete, truncate')")
		}, 1},
		"stream lost": {func(t *testing.T, _ *pgx.Conn, _ string, js jetstream.JetStream) {
			if err := js.DeleteStream(t.Context(), logOf("t").layout().Stream); err != nil {
				t.Fatal(err)
			}
		}, 1},
		"stream and slot lost": {func(t *testing.T, conn *pgx.Conn, db string, js jetstream.JetStream) {
			dropSlot(t, conn, db)
			if err := js.DeleteStream(t.Context(), logOf("t").layout().Stream); err != nil {
				t.Fatal(err)
			}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
			b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
			b.awaitReady()
			run(t, conn, "INSERT INTO t VALUES (2)")
			stored(t, broker.URL(), logOf("t").layout(), 2)
			b.Kill()
			js := testenv.JetStream(t, broker.URL())
			run(t, conn, "INSERT INTO t VALUES (3)")
			c.lose(t, conn, db, js)
			run(t, conn, "INSERT INTO t VALUES (4)")
			b.start()
			b.awaitReady()
			run(t, conn, "INSERT INTO t VALUES (5)")
			var got []string
			testenv.Eventually(t, long, func() error {
				got = texts(stored(t, broker.URL(), logOf("t").layout(), 3))
				if last := slices.Index(got, lockstep.Gap); !slices.Contains(got, `insert {"id":5}`) || last >= 0 && !slices.Contains(got[last:], `read {"id":4}`) {
					return fmt.Errorf("the stream has %q", got)
				}
				return nil
			})
			gaps, last := 0, -1
			for i, text := range got {
				if text == lockstep.Gap {
					gaps, last = gaps+1, i
				}
			}
			if gaps != c.gaps {
				t.Errorf("got %d gaps, want %d: %q", gaps, c.gaps, got)
			}
			// What no event says comes after the gap, as read.
			for id := 1; id <= 4; id++ {
				insert, read := slices.Index(got, fmt.Sprintf(`insert {"id":%d}`, id)), slices.Index(got[last+1:], fmt.Sprintf(`read {"id":%d}`, id))
				if insert < 0 && read < 0 {
					t.Errorf("neither an event nor, after the gap, a read row is there of row %d: %q", id, got)
				}
			}
		})
	}
}

// What was changed while a log was not, or not wholly, in the publication is said to be missing in a running bridge, too, with
// the first change that follows.
func TestWAL_GapIsSaidWhileItRuns_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
	b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	b.awaitReady()
	run(t, conn, "ALTER PUBLICATION "+slotOf(db)+" DROP TABLE t", "INSERT INTO t VALUES (2)", "DELETE FROM t WHERE id = 1",
		"ALTER PUBLICATION "+slotOf(db)+" ADD TABLE t", "INSERT INTO t VALUES (3)")
	got := texts(stored(t, broker.URL(), logOf("t").layout(), 4))
	if want := []string{`read {"id":1}`, lockstep.Gap, `read {"id":2}`, `read {"id":3}`}; !slices.Equal(got[:4], want) {
		t.Errorf("got %q, want %q", got, want)
	}
	run(t, conn, "INSERT INTO t VALUES (4)")
	testenv.Eventually(t, long, func() error {
		if got := texts(stored(t, broker.URL(), logOf("t").layout(), 5)); got[len(got)-1] != `insert {"id":4}` {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}

// A log goes on after changes that can't be read any more. It says once that they are missing. The other relations do not wait
// for it.
func TestWAL_LogGoesOnAfterWhatCannotBeRead_I10(t *testing.T) {
	needServers(t)
	for name, sql := range map[string][]string{
		"its identity lacked the key for a while": {
			"ALTER TABLE t REPLICA IDENTITY USING INDEX t_x_key", "UPDATE t SET id = 3 WHERE id = 1", "ALTER TABLE t REPLICA IDENTITY DEFAULT",
		},
		"a column for a while": {"ALTER TABLE t ADD y int", "INSERT INTO t (id, x, y) VALUES (3, 3, 3)", "ALTER TABLE t DROP y"},
		"a type that changed":  {"INSERT INTO t (id, x, p) VALUES (3, 3, '(1)')", "ALTER TYPE pair ADD ATTRIBUTE b int"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, "CREATE TYPE pair AS (a int)", "CREATE TABLE t (id int PRIMARY KEY, x int NOT NULL UNIQUE, p pair)", "CREATE TABLE u (id int PRIMARY KEY)", "INSERT INTO t VALUES (1, 1)")
			b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h),u(capture=wal;history=log;max_age=1h)")
			b.awaitReady()
			run(t, conn, "INSERT INTO t VALUES (2, 2)")
			stored(t, broker.URL(), logOf("t").layout(), 2)
			b.Kill()
			run(t, conn, sql...)
			b.start()
			b.awaitReady()
			var got []string
			id := 5
			testenv.Eventually(t, long, func() error { // what comes before it goes on is read
				id++
				run(t, conn, fmt.Sprintf("INSERT INTO t VALUES (%d, %[1]d)", id))
				got = texts(stored(t, broker.URL(), logOf("t").layout(), len(got)+1))
				if !strings.HasPrefix(got[len(got)-1], fmt.Sprintf(`insert {"id":%d,`, id)) {
					return fmt.Errorf("row %d is not the last of %q", id, got)
				}
				return nil
			})
			run(t, conn, "INSERT INTO u VALUES (5)")
			testenv.Eventually(t, long, func() error { // what is there follows the gap
				got = texts(stored(t, broker.URL(), logOf("t").layout(), len(got)))
				if gap := slices.Index(got, lockstep.Gap); !slices.ContainsFunc(got[gap+1:], func(text string) bool { return strings.Contains(text, `{"id":3,`) }) {
					return fmt.Errorf("row 3 is not in %q", got)
				}
				return nil
			})
			gaps := 0
			for _, text := range got {
				if text == lockstep.Gap {
					gaps++
				}
			}
			if gaps != 1 {
				t.Errorf("got %d gaps, want one: %q", gaps, got)
			}
			if others := texts(stored(t, broker.URL(), logOf("u").layout(), 1)); !slices.Equal(others, []string{`insert {"id":5}`}) {
				t.Errorf("the other log has %q", others)
			}
		})
	}
}

// Of a partitioned table Postgres says by the identity of the root what an old row has, and sends what the identity of the
// partition gives. A log shows an old row only where both have all of it.
func TestWAL_OldRowsOfPartitions_I12(t *testing.T) {
	needServers(t)
	for _, c := range []struct {
		root, leaf string
		old        bool
	}{{"FULL", "FULL", true}, {"FULL", "DEFAULT", false}, {"DEFAULT", "FULL", false}} {
		t.Run(c.root+" "+c.leaf, func(t *testing.T) {
			t.Parallel()
			db, broker := testenv.Postgres(t), testenv.NATS(t)
			conn := connect(t, db)
			run(t, conn, "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)", "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100)",
				"ALTER TABLE t REPLICA IDENTITY "+c.root, "ALTER TABLE t1 REPLICA IDENTITY "+c.leaf, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
			b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
			b.awaitReady()
			run(t, conn, "UPDATE t SET v = 'c' WHERE id = 1", "UPDATE t SET id = 3 WHERE id = 2", "DELETE FROM t WHERE id = 1")
			want := []string{`read {"id":1,"v":"a"}`, `read {"id":2,"v":"b"}`, `update {"id":1,"v":"c"}`, `update {"id":3,"v":"b"} {"id":2}`, `delete {"id":1}`}
			if c.old {
				want = []string{want[0], want[1], `update {"id":1,"v":"c"} {"id":1,"v":"a"}`, `update {"id":3,"v":"b"} {"id":2,"v":"b"}`, `delete {"id":1} {"id":1,"v":"c"}`}
			}
			if got := texts(stored(t, broker.URL(), logOf("t").layout(), 5)); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			_, out, _ := command(t, []string{"DATABASE_URL=" + db, "NATS_URL=" + broker.URL(), "BRIDGE_NAME=" + slotOf(db), "BRIDGE_TABLES=t(capture=wal;history=log;max_age=1h)"}, "check")
			if full := strings.Contains(out, "old rows: full"); full != c.old {
				t.Errorf("bridge check says that old rows are full: %v, want %v\n%s", full, c.old, out)
			}
		})
	}
}

// After a failover a log begins again, and says that changes may be missing: what the old primary wrote last was not read.
func TestWAL_GapAfterFailover_I8(t *testing.T) {
	needServers(t)
	standby, db, copied := primaryAndStandby(t, 1)
	broker := testenv.NATS(t)
	primary := connect(t, db)
	b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	b.awaitReady()
	run(t, primary, "UPDATE t SET v = 'event' WHERE id = 1")
	stored(t, broker.URL(), logOf("t").layout(), 2)
	b.Kill()
	run(t, primary, "UPDATE t SET v = 'lost' WHERE id = 1")
	st := connect(t, copied)
	replayed(t, primary, st)
	standby.Promote()
	startWAL(t, copied, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	testenv.Eventually(t, long, func() error { // at first it stands by
		got := stored(t, broker.URL(), logOf("t").layout(), 1)
		if !slices.Equal(texts(got), []string{lockstep.Gap, `read {"id":1,"v":"lost"}`}) || !strings.Contains(got[0].reason, "timeline") {
			return fmt.Errorf("the log has %q, %q; want a gap because of the timeline, and the row as it is", texts(got), got[0].reason)
		}
		return nil
	})
}

// A log that was read from the WAL and is polled now says so: a poll does not see every change.
func TestWAL_GapWhenItIsPolled_I8(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATS(t)
	conn := connect(t, db)
	newTable(t, db, "t", 1)
	b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	b.awaitReady()
	run(t, conn, "UPDATE t SET v = 'event' WHERE id = 1")
	stored(t, broker.URL(), logOf("t").layout(), 2)
	b.stop()
	run(t, conn, "UPDATE t SET v = 'unseen' WHERE id = 1", "UPDATE t SET v = 'polled' WHERE id = 1")
	startBridge(t, db, broker.URL(), "t(history=log;max_age=1h)").awaitReady()
	got := texts(stored(t, broker.URL(), logOf("t").layout(), 4))
	if got[2] != lockstep.Gap || !strings.Contains(got[3], `"v":"polled"`) || slices.Contains(got[3:], lockstep.Gap) { // polled rows may come again
		t.Errorf("the log has %q, want a gap before what was polled", got)
	}
}

// The broker loses the end of a log, and the slot has moved on. A client comes back with a position from the end that is
// lost. The edge tells it of the gap, and does not begin after it.
func TestWAL_GapIsToldToWhoComesBack_I3(t *testing.T) {
	needServers(t)
	db, broker := testenv.Postgres(t), testenv.NATSProcess(t)
	conn := connect(t, db)
	run(t, conn, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
	b := startWAL(t, db, broker.URL(), "t(capture=wal;history=log;max_age=1h)")
	_, addr := start(t, broker.URL())
	b.awaitReady()
	run(t, conn, "INSERT INTO t VALUES (2)")
	stored(t, broker.URL(), logOf("t").layout(), 2)
	broker.Stop()
	older := broker.CopyStore()
	broker.Start()
	for id := 3; id < 20; id++ { // positions that the older copy does not have
		run(t, conn, fmt.Sprintf("INSERT INTO t VALUES (%d)", id))
	}
	stored(t, broker.URL(), logOf("t").layout(), 19)
	end := query[int64](t, conn, "SELECT (pg_current_wal_lsn() - '0/0')::int8")
	testenv.Eventually(t, long, func() error {
		if got := confirmed(t, conn, db); got < uint64(end) {
			return fmt.Errorf("the slot is confirmed up to %d, want %d", got, end)
		}
		return nil
	})
	since := heartbeatSince(t, addr)
	b.Kill()
	broker.Kill()
	broker.ReplaceStore(older)
	broker.Start()
	b.start()
	testenv.Eventually(t, long, func() error {
		if got := texts(stored(t, broker.URL(), logOf("t").layout(), 3)); !slices.Contains(got, `read {"id":19}`) {
			return fmt.Errorf("the stream has %q", got)
		}
		return nil
	})
	testenv.Eventually(t, long, func() error {
		status, _, body := get(t, fmt.Sprintf("http://%s/t?follow=0&since=%d", addr, since))
		if status != 200 || !strings.Contains(body, `"type":"heartbeat"`) {
			return fmt.Errorf("status %d: %s", status, body)
		}
		if !strings.Contains(body, `"type":"gap"`) {
			t.Errorf("since=%d is answered without a word of the gap: %s", since, body)
		}
		return nil
	})
}

// heartbeatSince returns the since of the last heartbeat that an edge shows of t.
func heartbeatSince(t *testing.T, addr string) (since uint64) {
	t.Helper()
	_, _, body := get(t, "http://"+addr+"/t?follow=0")
	for line := range strings.Lines(body) {
		if m, err := lockstep.Decode([]byte(line)); err == nil && m.Control != nil && m.Control.Type == lockstep.HeartbeatType {
			since = m.Control.Since
		}
	}
	if since == 0 {
		t.Fatalf("no heartbeat in %s", body)
	}
	return since
}
