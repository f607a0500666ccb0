package replay_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/follow"
	"bridge/internal/replay"
	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go/jetstream"
)

// token is a position that a client was shown, and what it held then.
type token struct {
	since  uint64
	cursor lockstep.Cursor
	state  map[string]string
}

// TestReplay_EveryPositionResumes (I3): from any since or cursor that was ever shown,
// with the state of that moment, a client that comes back misses nothing: asked while
// writing goes on or afterwards, of this edge or another. What comes after a cursor
// repeats nothing (client.take).
func TestReplay_EveryPositionResumes(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	w, url := beginWriter(t)
	hubs := []*replay.Hub{newHub(t, url, replay.Options{}), newHub(t, url, replay.Options{CacheBytes: 1})}
	w.heartbeat(t, 1)
	live := open(t, hubs[0], request(0))
	var tokens []token
	live.onDoc = func(lockstep.Message) {
		tokens = append(tokens, token{live.since, live.cursor, maps.Clone(live.state)})
	}
	want := map[string]string{}
	xmin, xmax := uint64(1), uint64(2)
	type resumed struct {
		token
		*client
	}
	var readers []resumed
	resume := func(h *replay.Hub, tok token) resumed {
		req := request(tok.since)
		if rnd.IntN(2) == 0 {
			req = after(tok.cursor)
		}
		c := open(t, h, req)
		c.state = maps.Clone(tok.state)
		return resumed{tok, c}
	}
	for batch := range 60 {
		if rnd.IntN(8) == 0 {
			w.begin(t)
		}
		// What a snapshot shows of transactions that the one before did not:
		// txids from its xmin on, in order, some at or above its own xmin.
		previous := xmin
		xmax += rnd.Uint64N(10)
		xmin += rnd.Uint64N(xmax - xmin)
		txids := make([]uint64, rnd.IntN(8))
		for i := range txids {
			txids[i] = previous + rnd.Uint64N(xmax-previous)
		}
		slices.Sort(txids)
		for _, txid := range txids {
			id, data := rnd.IntN(6), fmt.Sprintf("batch %d txid %d", batch, txid)
			if err := w.Row(t.Context(), change(id, txid, xmin, data)); err != nil {
				t.Fatal(err)
			}
			k, v := rowState(id, data)
			want[k] = v
		}
		w.heartbeat(t, xmin)
		if rnd.IntN(3) > 0 {
			w.stored(t, xmin)
			if err := live.try(t, xmin); err != nil {
				t.Fatal(err)
			}
		}
		if len(tokens) > 0 && rnd.IntN(2) == 0 {
			readers = append(readers, resume(hubs[batch%2], tokens[rnd.IntN(len(tokens))]))
		}
	}
	xmin = xmax + 1
	w.heartbeat(t, xmin)
	live.until(t, xmin)
	live.mustState(t, want)
	hubs = append(hubs, newHub(t, url, replay.Options{}))
	for i, tok := range tokens {
		readers = append(readers, resume(hubs[i%3], tok))
		if len(readers) < 20 && i < len(tokens)-1 {
			continue
		}
		w.heartbeat(t, xmin) // for those that have all that was before
		for _, c := range readers {
			c.until(t, xmin)
			if !maps.Equal(c.client.state, want) {
				t.Errorf("resumed with since %d or cursor %s of %v:", c.token.since, c.token.cursor, c.token.state)
			}
			c.mustState(t, want)
			c.Close()
		}
		readers = readers[:0]
	}
	if len(tokens) < 100 {
		t.Errorf("only %d positions were shown", len(tokens))
	}
}

// TestReplay_SearchIsExact: for every since the first message sent is the
// first of the stream whose High is at least that, as a look at each shows.
func TestReplay_SearchIsExact(t *testing.T) {
	t.Parallel()
	w, url := beginWriter(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	txid := uint64(1)
	for i := range 200 {
		txid += rnd.Uint64N(3)
		w.row(t, rnd.IntN(40), txid, fmt.Sprint(i))
		if i%31 == 0 {
			w.begin(t)
		}
	}
	w.heartbeat(t, txid)
	w.stored(t, txid)
	w.stop()
	s, err := w.js.Stream(t.Context(), w.layout.Stream)
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		high uint64
		data string
	}
	var rows []row
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		high, err := stream.High(m.Header)
		if err != nil {
			t.Fatal(err)
		}
		if w.layout.KindOf(m.Subject) == stream.KindRow {
			rows = append(rows, row{high, string(m.Data)})
		}
	}
	h := newHub(t, url, replay.Options{CacheBytes: 1})
	for since := range txid + 1 {
		req := request(since)
		req.Follow = false
		c := open(t, h, req)
		var got, want []string
		c.onDoc = func(m lockstep.Message) {
			if m.Row != nil {
				got = append(got, string(m.Row.Data))
			}
		}
		c.all(t)
		c.Close()
		for _, r := range rows {
			if r.high >= since {
				_, data, _ := strings.Cut(r.data, `"data":`)
				want = append(want, strings.TrimSuffix(data, "}\n"))
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("since %d: got %d rows %v, want %d %v", since, len(got), got, len(want), want)
		}
	}
}

// TestReplay_LogForgets: a log answers since=0 from the oldest that it keeps,
// refuses a since that may be older, and serves a newer one.
func TestReplay_LogForgets(t *testing.T) {
	t.Parallel()
	w, url := beginShortLog(t)
	const n = 300
	for i := range n {
		w.row(t, i, uint64(i+1), strings.Repeat("z", 1000))
		w.heartbeat(t, uint64(i+2))
	}
	w.stored(t, n+1)
	w.stop() // what keeps a quiet batch open would push out more rows
	h := newHub(t, url, replay.Options{CacheBytes: 1})
	c := open(t, h, request(0))
	c.until(t, n+1)
	if len(c.state) < 20 || len(c.state) > 70 {
		t.Fatalf("since=0 got %d rows, want the newest few", len(c.state))
	}
	oldest := uint64(0) // the oldest txid sent
	for _, d := range c.docs {
		if d.Row != nil {
			oldest = d.Row.Txid
			break
		}
	}
	served := 0
	for since := uint64(1); since <= n+1; since++ {
		r, err := h.Open(t.Context(), request(since))
		var tooOld *replay.TooOldError
		switch {
		case errors.As(err, &tooOld):
			if since > oldest+1 || tooOld.Floor <= since || tooOld.Floor > oldest+2 {
				t.Errorf("since %d is refused with floor %d, the oldest row has txid %d", since, tooOld.Floor, oldest)
			}
			continue
		case err != nil:
			t.Fatal(err)
		}
		served++
		if since <= oldest-1 {
			t.Errorf("since %d is served, the oldest row has txid %d", since, oldest)
		}
		c := &client{Reader: r, state: map[string]string{}}
		if since%10 == 0 {
			c.until(t, n+1)
			if want := int(n - since + 1); len(c.state) < want {
				t.Errorf("since %d: %d rows, want at least %d", since, len(c.state), want)
			}
		}
		r.Close()
	}
	if served < 20 {
		t.Errorf("only %d positions were served", served)
	}
}

// TestReplay_LogForgetsWhatAReaderNeeds: a reader that is slower than a log
// forgets is cut, not led past what it missed.
func TestReplay_LogForgetsWhatAReaderNeeds(t *testing.T) {
	t.Parallel()
	w, url := beginShortLog(t)
	w.row(t, 0, 1, "first")
	w.heartbeat(t, 2)
	w.stored(t, 2)
	h := newHub(t, url, replay.Options{CacheBytes: 1})
	slow, live := open(t, h, request(0)), open(t, h, request(0))
	slow.until(t, 2)
	for i := range 600 {
		w.row(t, i, uint64(i+2), strings.Repeat("z", 1000))
		w.heartbeat(t, uint64(i+3))
		if i%20 == 0 {
			w.stored(t, uint64(i+3))
			live.until(t, uint64(i+3))
		}
	}
	w.stored(t, 602)
	live.until(t, 602)
	if len(live.state) != 600 {
		t.Errorf("a reader that kept up has %d rows, want 600", len(live.state))
	}
	if err := slow.try(t, 602); !errors.Is(err, follow.ErrReset) {
		t.Errorf("a reader that did not: %v with %d rows, want ErrReset", err, len(slow.state))
	}
}
