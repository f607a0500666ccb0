package simtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"bridge/lockstep"

	"github.com/jackc/pgx/v5"
)

// Notes is a table whose stream keeps every change (history=log). Only runs with capture=wal have it.
const Notes = "notes"

// notesSchema creates the table, with rows that a first load finds. Triggers keep what happened to it in notes_history, in the order of the statements of a
// transaction.
const notesSchema = `
CREATE TABLE notes (id bigint PRIMARY KEY, v text NOT NULL, blob text);
ALTER TABLE notes ALTER COLUMN blob SET STORAGE EXTERNAL;
INSERT INTO notes SELECT g, 'first' FROM generate_series(1, 20) g;
CREATE TABLE notes_history (n bigserial PRIMARY KEY, txid bigint NOT NULL DEFAULT txid_current(), what text NOT NULL, blob text);
CREATE FUNCTION notes_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'TRUNCATE' THEN
		INSERT INTO notes_history (what) VALUES ('truncate');
	ELSIF TG_OP = 'DELETE' THEN
		INSERT INTO notes_history (what) VALUES ('delete ' || OLD.id);
	ELSIF TG_OP = 'INSERT' THEN
		INSERT INTO notes_history (what, blob) VALUES ('insert ' || NEW.id || ' ' || NEW.v, md5(NEW.blob));
	ELSIF OLD.id <> NEW.id THEN
		INSERT INTO notes_history (what, blob) VALUES ('update ' || NEW.id || ' ' || NEW.v || ' was ' || OLD.id, md5(NEW.blob));
	ELSE
		INSERT INTO notes_history (what, blob) VALUES ('update ' || NEW.id || ' ' || NEW.v, md5(NEW.blob));
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION notes_note();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON notes FOR EACH STATEMENT EXECUTE FUNCTION notes_note();
`

// notes changes that table by some statements, and rolls a part of them back.
func (s *session) notes(rnd *rand.Rand) error {
	for range 1 + rnd.IntN(6) {
		id, v := 1+rnd.Int64N(60), fmt.Sprint(s.op())
		var sql string
		args := []any{id, v}
		switch rnd.IntN(8) {
		case 0, 1, 2:
			sql = "INSERT INTO notes VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
			args = append(args, blob(rnd))
		case 3, 4:
			sql = "UPDATE notes SET v = $2 WHERE id = $1"
		case 5:
			sql = "UPDATE notes SET v = $2, blob = $3 WHERE id = $1"
			args = append(args, blob(rnd))
		case 6:
			sql = "UPDATE notes SET id = $1, v = $2 WHERE id = (SELECT min(id) FROM notes WHERE id > $3) AND NOT EXISTS (SELECT FROM notes WHERE id = $1)"
			args = append(args, rnd.Int64N(60))
		default:
			sql, args = "DELETE FROM notes WHERE id = $1", args[:1]
		}
		undo := rnd.IntN(5) == 0
		if undo {
			if err := s.exec(-1, "SAVEPOINT undo"); err != nil {
				return err
			}
		}
		if err := s.exec(-1, sql, args...); err != nil {
			return err
		}
		if undo {
			if err := s.exec(-1, "ROLLBACK TO SAVEPOINT undo"); err != nil {
				return err
			}
		}
	}
	if rnd.IntN(100) == 0 {
		return s.exec(-1, "TRUNCATE notes")
	}
	return nil
}

// Happened is what a client of a log was shown.
type Happened struct {
	// Conn counts the client's connections, At is when it was shown.
	Conn int
	At   time.Time
	// ID is the event's, empty for a gap. Txid is its transaction, Committed when that was committed.
	ID        string
	Txid      uint64
	Committed time.Time
	// What is in words what changed, without the large value, and the reason of a gap. Blob is the MD5 of the large
	// value, if it is shown.
	What, Blob string
}

// Journal reads a log as a client does, through faults, and keeps everything that it is shown.
type Journal struct {
	edges func() []string
	rnd   *rand.Rand // of Run's goroutine
	conns int        // of Run's goroutine
	since uint64     // of Run's goroutine

	mu sync.Mutex
	// Guarded by mu.
	seen []Happened
	odd  []string // what broke the protocol
}

// NewJournal returns a journal that has read nothing.
func NewJournal(edges func() []string, seed uint64) *Journal {
	return &Journal{edges: edges, rnd: rand.New(rand.NewPCG(seed, 2))}
}

// Seen returns what was shown until now. It must not be changed.
func (j *Journal) Seen() ([]Happened, []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seen[:len(j.seen):len(j.seen)], slices.Clone(j.odd)
}

// Run reads until ctx ends.
func (j *Journal) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := j.connection(ctx); err != nil {
			var o *OddError
			if errors.As(err, &o) {
				j.mu.Lock()
				j.odd = append(j.odd, err.Error())
				j.mu.Unlock()
			}
			var refused *RefusedError
			if errors.As(err, &refused) && (refused.Status == 409 || refused.Status == 410) {
				j.since = 0
			}
		}
		sleep(ctx, time.Duration(5+j.rnd.IntN(100))*time.Millisecond)
	}
}

func (j *Journal) connection(ctx context.Context) error {
	j.conns++
	var opt Options
	if j.rnd.IntN(2) == 0 {
		opt.Bytes = 1000 + j.rnd.Int64N(200_000)
	}
	edges := j.edges()
	s, err := Dial(edges[j.rnd.IntN(len(edges))], Notes, j.since, opt)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	for until := time.Now().Add(time.Duration(3+j.rnd.IntN(12)) * time.Second); time.Now().Before(until); {
		m, err := s.Next()
		if err != nil {
			return err
		}
		if err := j.take(m); err != nil {
			return err
		}
	}
	return nil
}

// take keeps what a document says, and its since.
func (j *Journal) take(m lockstep.Message) error {
	h := Happened{Conn: j.conns, At: time.Now()}
	since := uint64(0)
	switch c := m.Control; {
	case m.Row != nil:
		since = m.Row.Since
		if err := h.ofRow(m.Row); err != nil {
			return err
		}
	case c.Type == lockstep.Truncate:
		since, h.What = c.Since, string(c.Action)
		h.ID, h.Txid, h.Committed = c.Event, c.Txid, c.CommittedAt
	case c.Type == lockstep.Gap:
		since, h.What = c.Since, c.Reason
	default:
		since = c.Since
	}
	if since != 0 {
		j.since = since
	}
	if h.What == "" {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen = append(j.seen, h)
	return nil
}

// ofRow reads a row. One that was read is no event.
func (h *Happened) ofRow(r *lockstep.Row) error {
	var data, old struct {
		ID   int64
		V    string
		Blob *string
	}
	if err := json.Unmarshal(r.Data, &data); err != nil {
		return odd("%v", err)
	}
	if r.Old != nil {
		if err := json.Unmarshal(r.Old, &old); err != nil {
			return odd("%v", err)
		}
	}
	h.ID, h.Txid, h.Committed = r.Event, r.Txid, r.CommittedAt
	switch {
	case r.Action == lockstep.ActionRead && r.Event == "":
		return nil
	case r.Event == "" || r.CommittedAt.IsZero():
		return odd("an event without ID or time: %+v", r)
	case r.Action == lockstep.ActionDelete:
		h.What = fmt.Sprintf("delete %d", data.ID)
	case r.Action == lockstep.ActionUpdate && old.ID != 0 && old.ID != data.ID:
		h.What = fmt.Sprintf("update %d %s was %d", data.ID, data.V, old.ID)
	default:
		h.What = fmt.Sprintf("%s %d %s", r.Action, data.ID, data.V)
	}
	h.Blob = blobSum(data.Blob)
	if slices.Contains(r.Unchanged, "blob") {
		h.Blob = unknown
	}
	return nil
}

// unknown is Happened.Blob of a large value that is not shown.
const unknown = "unknown"

// Wrote is a transaction that was committed, with what it did to the table.
type Wrote struct {
	Committed time.Time
	What      []string
	Blob      []string // beside What
}

// wrote returns the transactions on the table, by their IDs.
func (w *Writers) wrote(ctx context.Context) (map[uint64]*Wrote, error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return nil, err
	}
	defer disconnect(conn)
	rows, err := conn.Query(ctx, `SELECT txid, what, COALESCE(blob, ''), COALESCE(pg_xact_commit_timestamp((txid % 4294967296)::text::xid), 'epoch') FROM notes_history ORDER BY n`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[uint64]*Wrote{}
	for rows.Next() {
		var txid int64
		var what, blob string
		var at time.Time
		if err := rows.Scan(&txid, &what, &blob, &at); err != nil {
			return nil, err
		}
		tx := out[uint64(txid)]
		if tx == nil {
			tx = &Wrote{Committed: at}
			out[uint64(txid)] = tx
		}
		tx.What, tx.Blob = append(tx.What, what), append(tx.Blob, blob)
	}
	return out, rows.Err()
}

// CheckJournal compares what a client of a log was shown with what was committed. Each event comes once, or again in a run
// of events that all came before, with the same IDs. None is missing, except where a gap is said.
func CheckJournal(wrote map[uint64]*Wrote, seen []Happened) []Violation {
	c := journalCheck{wrote: wrote, first: map[string]*Happened{}}
	for i := range seen {
		c.take(&seen[i])
	}
	c.ids = make([]string, 0, len(c.first))
	for id := range c.first {
		c.ids = append(c.ids, id)
	}
	slices.Sort(c.ids)
	for i := 1; i < len(seen); i++ {
		c.follows(&seen[i-1], &seen[i])
	}
	c.transactions()
	return c.found
}

type journalCheck struct {
	wrote map[uint64]*Wrote
	first map[string]*Happened // by ID
	ids   []string             // all, in order
	gaps  []window
	last  time.Time // the newest commit that was shown
	found []Violation
}

// window is the time in which transactions may have been committed that are missing because of a gap.
type window struct{ from, to time.Time }

func (c *journalCheck) fail(format string, args ...any) {
	if len(c.found) < 20 {
		c.found = append(c.found, Violation{Invariant: "I7", Text: "log: " + fmt.Sprintf(format, args...)})
	}
}

func (c *journalCheck) take(h *Happened) {
	if h.ID == "" {
		c.gaps = append(c.gaps, window{c.last, h.At})
		return
	}
	if h.Committed.After(c.last) {
		c.last = h.Committed
	}
	if f := c.first[h.ID]; f == nil {
		c.first[h.ID] = h
	} else if f.What != h.What || f.Blob != h.Blob || f.Txid != h.Txid || !f.Committed.Equal(h.Committed) {
		c.fail("event %s is %q, and later %q", h.ID, f.What, h.What)
	}
}

// follows checks that no event was passed over between two that came one after the other.
func (c *journalCheck) follows(a, b *Happened) {
	if a.Conn != b.Conn || a.ID == "" || b.ID == "" || b.ID <= a.ID {
		return
	}
	i, _ := slices.BinarySearch(c.ids, a.ID)
	if next := c.ids[i+1]; next != b.ID {
		c.fail("event %s came right after %s, without %s (%q)", b.ID, a.ID, next, c.first[next].What)
	}
}

// transactions compares the events of each transaction with what it did.
func (c *journalCheck) transactions() {
	shown := map[uint64][]*Happened{}
	for _, id := range c.ids {
		h := c.first[id]
		shown[h.Txid] = append(shown[h.Txid], h)
	}
	for txid, list := range shown {
		tx := c.wrote[txid]
		if tx == nil {
			c.fail("event %s (%q) is of transaction %d, which was not committed", list[0].ID, list[0].What, txid)
			continue
		}
		if head := list[0].ID[:25]; list[len(list)-1].ID[:25] != head {
			c.fail("the events of transaction %d have two commits: %s and %s", txid, list[0].ID, list[len(list)-1].ID)
		}
		if !tx.Committed.Equal(list[0].Committed) && tx.Committed.Unix() != 0 {
			c.fail("transaction %d was committed at %v, its events say %v", txid, tx.Committed, list[0].Committed)
		}
		if len(list) != len(tx.What) {
			if len(list) > len(tx.What) || !c.mayMiss(tx) {
				c.fail("transaction %d has %d events, and did %d things; no gap explains it: %q", txid, len(list), len(tx.What), tx.What)
			}
			continue
		}
		for i, h := range list {
			if h.What != tx.What[i] || h.Blob != tx.Blob[i] && h.Blob != unknown {
				c.fail("event %s is %q, but transaction %d did %q", h.ID, h.What, txid, tx.What[i])
			}
		}
	}
	for txid, tx := range c.wrote {
		if shown[txid] == nil && !c.mayMiss(tx) {
			c.fail("transaction %d, committed at %v, is missing, and no gap explains it: %q", txid, tx.Committed, tx.What)
		}
	}
}

// slack is how far the order of commits may be from that of their times: Postgres takes the time before the place in the WAL.
const slack = time.Second

// mayMiss says whether a gap explains that events of the transaction are missing.
func (c *journalCheck) mayMiss(tx *Wrote) bool {
	return slices.ContainsFunc(c.gaps, func(w window) bool {
		return tx.Committed.After(w.from.Add(-slack)) && tx.Committed.Before(w.to.Add(slack))
	})
}
