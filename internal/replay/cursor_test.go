package replay_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"bridge/internal/replay"
	"bridge/internal/testenv"
	"bridge/lockstep"
)

// TestReplay_CursorThatIsVoid_I8: if the stream no longer has a cursor's place, or deletes since then may be gone, the since in
// the cursor takes its place; that of the request, if the cursor is old. If there is none, the request is refused.
func TestReplay_CursorThatIsVoid_I8(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	for i := range 20 {
		w.row(t, i, uint64(100+i), "a")
	}
	w.heartbeat(t, 120)
	w.stored(t, 120)
	h := newHub(t, url, replay.Options{})
	c := open(t, h, request(0))
	c.until(t, 120)
	last := c.cursor // of the heartbeat, whose High is 120
	setFloor(t, w, 110)
	// first returns the txid of the first row of the answer; that of the heartbeat is its since.
	first := func(req replay.Request) (uint64, error) {
		r, err := h.Open(t.Context(), req)
		if err != nil {
			return 0, err
		}
		defer r.Close()
		c := &client{Reader: r, state: map[string]string{}}
		c.until(t, 120)
		if row := c.docs[0].Row; row != nil {
			return row.Txid, nil
		}
		return c.heartbeats[0], nil
	}
	change := func(change func(c *lockstep.Cursor)) replay.Request {
		c := last
		c.Seq, c.Holds, c.Since = 11, 112, 115
		change(&c)
		return after(c)
	}
	var tooOld *replay.TooOldError
	for _, tt := range []struct {
		name  string
		req   replay.Request
		first uint64
		err   error
	}{
		{"held", change(func(*lockstep.Cursor) {}), 109, nil},
		{"another incarnation", change(func(c *lockstep.Cursor) { c.Incarnation = "x" }), 115, nil},
		{"another epoch", change(func(c *lockstep.Cursor) { c.Epoch = "x" }), 115, nil},
		{"after the stream's end", change(func(c *lockstep.Cursor) { c.Seq = 1000 }), 115, nil},
		{"deletes are gone", change(func(c *lockstep.Cursor) { c.Holds = 109 }), 115, nil},
		{"deletes since its since are gone, too", change(func(c *lockstep.Cursor) { c.Holds, c.Since = 109, 109 }), 0, tooOld},
		{"no since", change(func(c *lockstep.Cursor) { c.Epoch, c.Since = "x", 0 }), 0, replay.ErrCursorGone},
		{"held, and no since", change(func(c *lockstep.Cursor) { c.Since = 0 }), 109, nil},
		{"old", change(func(c *lockstep.Cursor) {
			*c = lockstep.Cursor{Incarnation: c.Incarnation, Epoch: c.Epoch, Seq: 10, Old: true}
		}), 100, nil},
	} {
		got, err := first(tt.req)
		if target := new(replay.TooOldError); tt.err == tooOld && tt.err != nil {
			if !errors.As(err, &target) {
				t.Errorf("%s: %v, want a TooOldError", tt.name, err)
			}
			continue
		}
		if got != tt.first || !errors.Is(err, tt.err) {
			t.Errorf("%s: the answer begins with txid %d, %v; want %d, %v", tt.name, got, err, tt.first, tt.err)
		}
	}
	req := change(func(c *lockstep.Cursor) { c.Old = true })
	req.Since = 117
	if got, err := first(req); got != 117 || err != nil {
		t.Errorf("old, and a since: the answer begins with txid %d, %v", got, err)
	}
}

// TestReplay_ResumedClientSkipsThePast_I2: what a client lacks at its cursor because it was replaced comes later. No heartbeat
// before that is a state of what it holds, although an edge that was there at the time has such heartbeats.
func TestReplay_ResumedClientSkipsThePast_I2(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	for id := range 3 {
		w.row(t, id, uint64(10+id), "first")
	}
	w.heartbeat(t, 20)
	w.stored(t, 20)
	here, elsewhere := newHub(t, url, replay.Options{}), newHub(t, url, replay.Options{})
	live := open(t, here, request(0))
	live.until(t, 20)
	w.row(t, 3, 21, "first")
	w.heartbeat(t, 30)
	live.until(t, 30)
	w.row(t, 1, 31, "second")
	w.heartbeat(t, 40)
	w.stored(t, 40)
	live.until(t, 40)
	req := request(0)
	req.Follow = false
	c := open(t, elsewhere, req)
	p, err := c.Page(t.Context(), 2)
	if err != nil || p.Next == nil {
		t.Fatalf("a page of two rows: %+v, %v", p, err)
	}
	c.all(t)
	if k, _ := rowState(1, ""); c.state[k] != "" || len(c.state) != 2 {
		t.Fatalf("the page has %v, want rows 0 and 2", c.state)
	}
	c = open(t, here, after(*p.Next))
	c.until(t, 40)
	if len(c.heartbeats) != 1 {
		t.Errorf("got the heartbeats %v, want that of 40", c.heartbeats)
	}
}

// TestReplay_CursorOlderThanTheEpochs: rows that were stored many epochs ago have cursors like all others.
func TestReplay_CursorOlderThanTheEpochs(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	for i := range 10 {
		w.row(t, i, uint64(100+i), strings.Repeat("a", 50<<10)) // a block has a few
	}
	for range 70 { // the list has 64
		w.begin(t)
	}
	w.heartbeat(t, 120)
	w.stored(t, 120)
	for _, h := range []*replay.Hub{newHub(t, url, replay.Options{}), newHub(t, url, replay.Options{CacheBytes: 1})} {
		open(t, h, request(120)) // the tail begins at the stream's end
		c := open(t, h, request(0))
		var fifth lockstep.Cursor
		c.onDoc = func(lockstep.Message) {
			if len(c.docs) == 5 {
				fifth = c.cursor
			}
		}
		c.until(t, 120)
		c = open(t, h, after(fifth))
		c.until(t, 120)
		if row := c.docs[0].Row; row == nil || row.Txid != 105 {
			t.Errorf("what comes after the cursor %s begins with %+v", fifth, c.docs[0])
		}
	}
}

// TestReplay_CursorOfALog: a log goes on after a cursor as long as it has all that follows.
func TestReplay_CursorOfALog(t *testing.T) {
	t.Parallel()
	w, url := beginShortLog(t)
	w.row(t, 0, 1, "first")
	w.heartbeat(t, 2)
	w.stored(t, 2)
	h := newHub(t, url, replay.Options{})
	c := open(t, h, request(0))
	c.until(t, 2)
	early := c.cursor
	for i := range 300 {
		w.row(t, i, uint64(i+2), strings.Repeat("z", 1000))
	}
	w.heartbeat(t, 302)
	w.stored(t, 302)
	if _, err := h.Open(t.Context(), after(early)); !errors.Is(err, replay.ErrCursorGone) {
		t.Errorf("a cursor before the log's first message: %v, want ErrCursorGone", err)
	}
	c = open(t, h, request(290))
	var late lockstep.Cursor
	c.onDoc = func(m lockstep.Message) {
		if m.Row != nil && m.Row.Txid == 295 {
			late = c.cursor
		}
	}
	c.until(t, 302)
	c = open(t, h, after(late))
	c.until(t, 302)
	if row := c.docs[0].Row; row == nil || row.Txid != 296 {
		t.Errorf("what comes after the row of txid 295 begins with %+v", c.docs[0])
	}
}

// TestReplay_FiniteRequestAtTheEnd: who has everything gets an end without waiting for a heartbeat.
func TestReplay_FiniteRequestAtTheEnd(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	w.heartbeat(t, 6)
	w.stored(t, 6)
	w.stop()
	h := newHub(t, url, replay.Options{})
	c := open(t, h, request(0))
	c.until(t, 6)
	req := after(c.cursor)
	req.Follow = false
	c = open(t, h, req)
	c.cursor = lockstep.Cursor{} // the heartbeat comes again
	c.all(t)
	if len(c.docs) != 1 || len(c.heartbeats) != 1 || c.completed != 1 {
		t.Errorf("got %+v, want the heartbeat", c.docs)
	}
}

// TestReplay_Pages: pages have every row once, in order, whatever the cache holds, and also while rows change. Pages with the
// same documents have the same tag, on every edge.
func TestReplay_Pages(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	want := map[string]string{}
	put := func(id int, txid uint64, data string) {
		w.row(t, id, txid, data)
		k, v := rowState(id, data)
		want[k] = v
	}
	for i := range 1000 {
		put(i, uint64(100+i), "a")
	}
	w.heartbeat(t, 1100)
	w.stored(t, 1100)
	hubs := []*replay.Hub{newHub(t, url, replay.Options{}), newHub(t, url, replay.Options{CacheBytes: 1})}
	page := func(h *replay.Hub, from lockstep.Cursor, rows int) (replay.Page, *client) {
		req := after(from)
		req.Follow = false
		c := open(t, h, req)
		p, err := c.Page(t.Context(), rows)
		if err != nil {
			t.Fatal(err)
		}
		c.all(t)
		return p, c
	}
	for _, rows := range []int{1, 7, 10_000} {
		state, cursor, n := map[string]string{}, lockstep.Cursor{}, 0
		for {
			p, c := page(hubs[n%2], cursor, rows)
			if again, _ := page(hubs[(n+1)%2], cursor, rows); again.Tag != p.Tag {
				t.Fatalf("the same page has the tags %s and %s", p.Tag, again.Tag)
			}
			maps.Copy(state, c.state)
			if p.Next == nil {
				if c.completed != 1 || len(c.heartbeats) != 1 {
					t.Errorf("the last page was completed %d times, with %d heartbeats", c.completed, len(c.heartbeats))
				}
				break
			}
			if len(c.docs) != rows || c.completed != 0 || c.cursor != *p.Next {
				t.Fatalf("a page of %d rows has %d documents, ends at %s, and says %s", rows, len(c.docs), c.cursor, p.Next)
			}
			if cursor = *p.Next; rows == 7 && n < 5 { // rows go from where they were to the stream's end
				put(500+n, uint64(1200+n), fmt.Sprint("moved ", n))
				w.heartbeat(t, uint64(1300+n))
				w.stored(t, uint64(1300+n))
			}
			if n++; n > 20 && rows == 1 {
				break
			}
		}
		if rows > 1 && !maps.Equal(state, want) {
			t.Errorf("pages of %d rows gave %d rows, want %d, or other ones", rows, len(state), len(want))
		}
	}
}

// TestReplay_WaitsUntilShown: an answer that must show a transaction comes when a heartbeat shows it, not before, and not for
// ever.
func TestReplay_WaitsUntilShown(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	w.row(t, 1, 5, "a")
	hb := heartbeat(6)
	hb.Snapshot = "6:9:7"
	if err := w.Heartbeat(t.Context(), hb); err != nil {
		t.Fatal(err)
	}
	w.stored(t, 6)
	h := newHub(t, url, replay.Options{})
	shown := func(txid uint64, within time.Duration) error {
		req := request(0)
		req.Follow, req.Shown, req.ShownWithin = false, txid, within
		r, err := h.Open(t.Context(), req)
		if err == nil {
			r.Close()
		}
		return err
	}
	for txid, want := range map[uint64]error{5: nil, 8: nil, 7: replay.ErrNotShown, 9: replay.ErrNotShown} {
		within := 200 * time.Millisecond
		if want == nil {
			within = testenv.Patience()
		}
		if err := shown(txid, within); !errors.Is(err, want) {
			t.Errorf("transaction %d: %v, want %v", txid, err, want)
		}
	}
	waiting := make(chan error)
	go func() { waiting <- shown(7, testenv.Patience()) }()
	w.row(t, 2, 7, "b")
	w.heartbeat(t, 9)
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	hb = heartbeat(20) // from the WAL: the snapshot says nothing
	hb.LSN, hb.Snapshot = 1, "30:30:"
	if err := w.Heartbeat(t.Context(), hb); err != nil {
		t.Fatal(err)
	}
	w.stored(t, 20)
	if err := shown(19, testenv.Patience()); err != nil {
		t.Error(err)
	}
	if err := shown(20, 200*time.Millisecond); !errors.Is(err, replay.ErrNotShown) {
		t.Errorf("from the WAL: %v", err)
	}
	req := request(0)
	req.Table, req.Shown, req.ShownWithin = "none", 1, testenv.Patience()
	if _, err := h.Open(t.Context(), req); !errors.Is(err, replay.ErrUnknownRelation) {
		t.Errorf("of no relation: %v", err)
	}
}
