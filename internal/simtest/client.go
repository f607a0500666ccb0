package simtest

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"bridge/lockstep"
)

// Client follows one relation and logs what it sees.
type Client struct {
	// Static after construction.
	Log     *Log
	edges   func() []string // addresses
	elapsed func() time.Duration
	rnd     *rand.Rand // of Run's goroutine
	// tokens, if not nil, returns a token to resume from, or nil.
	tokens func(*rand.Rand) *Token

	// exact is set for a client that resumes by cursor, reads finite answers page by page, and asks by HTTP/2 every other
	// time, and for each coding in turn. dials counts its requests, and is owned by Run.
	exact bool
	dials int

	// since is that of the last document, cursor that of the last heartbeat or position. Owned by Run.
	since  uint64
	cursor string
	// calm is set while the client does not cut its own connection.
	calm atomic.Bool
	// beat is the timestamp of the last heartbeat that the state includes, and 0 after a jump into the past. newest is
	// the highest timestamp ever seen.
	beat, newest atomic.Int64
	// Resumed counts the tokens from which the client resumed.
	Resumed atomic.Int64
}

// NewClient returns a client that holds nothing.
func NewClient(name, relation string, edges func() []string, elapsed func() time.Duration, seed uint64) *Client {
	return &Client{Log: NewLog(name, relation), edges: edges, elapsed: elapsed, rnd: rand.New(rand.NewPCG(seed, hash([]byte(name))))}
}

// ByCursor makes the client resume by cursor.
func (c *Client) ByCursor() { c.exact = true }

// ResumeFrom makes the client resume from tokens now and then.
func (c *Client) ResumeFrom(tokens func(*rand.Rand) *Token) { c.tokens = tokens }

// Calm says whether the client shall follow without cutting its own connections.
func (c *Client) Calm(yes bool) { c.calm.Store(yes) }

// Beat returns the timestamp of the last heartbeat that the client's state includes, or 0.
func (c *Client) Beat() int64 { return c.beat.Load() }

// Newest returns the highest timestamp of a heartbeat that the client ever saw.
func (c *Client) Newest() int64 { return c.newest.Load() }

// Run follows the relation until ctx ends.
func (c *Client) Run(ctx context.Context) {
	for ctx.Err() == nil {
		c.jump()
		c.connection(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(5+c.rnd.IntN(150)) * time.Millisecond):
		}
	}
}

// jump decides where the client goes on, mostly where it was.
func (c *Client) jump() {
	if c.calm.Load() {
		return
	}
	if c.tokens != nil && c.rnd.IntN(2) == 0 {
		if t := c.tokens(c.rnd); t != nil {
			c.Adopt(*t)
			return
		}
	}
	if c.rnd.IntN(20) == 0 {
		c.empty()
	}
}

func (c *Client) empty() {
	c.beat.Store(0)
	c.since, c.cursor = 0, ""
	c.Log.Add(Event{At: c.elapsed(), Kind: Emptied})
}

// Adopt gives the client the position and the state of the token.
func (c *Client) Adopt(t Token) {
	c.beat.Store(0)
	c.since, c.cursor = t.Since, t.Cursor
	c.Resumed.Add(1)
	c.Log.Add(Event{At: c.elapsed(), Kind: Adopted, State: t.State, Since: t.Since, Text: "of " + t.Of + " at " + t.At.Round(time.Millisecond).String()})
}

// connection follows the relation in one connection, until that ends.
func (c *Client) connection(ctx context.Context) {
	edges := c.edges()
	var opt Options
	alive := 5*time.Second + time.Duration(c.rnd.Int64N(int64(15*time.Second)))
	if !c.calm.Load() && c.rnd.IntN(10) < 7 {
		// Cut somewhere between the response's head and some seconds of traffic.
		opt.Bytes = int64(1) << (5 + c.rnd.IntN(15))
		opt.Bytes += c.rnd.Int64N(opt.Bytes)
	}
	s, err := c.dial(edges[c.rnd.IntN(len(edges))], opt)
	if err != nil {
		c.noStream(err)
		return
	}
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	c.Log.Add(Event{At: c.elapsed(), Kind: Connected, Since: c.since})
	until := time.Now().Add(alive)
	for c.calm.Load() || time.Now().Before(until) {
		if !c.calm.Load() && c.rnd.IntN(3000) == 0 { // a slow client: the edge has to wait
			sleep(ctx, time.Duration(500+c.rnd.IntN(2000))*time.Millisecond)
		}
		if err := c.next(s); err != nil {
			c.ended(ctx, s, err)
			return
		}
	}
	c.Log.Add(Event{At: c.elapsed(), Kind: CutSeen, Own: true, Text: "enough"})
}

// dial asks for the relation. A since of 0 is no position: what the client holds may be of an earlier incarnation.
func (c *Client) dial(addr string, opt Options) (*Stream, error) {
	if opt.Exact = c.exact; opt.Exact {
		opt.Cursor, opt.HTTP2 = c.cursor, c.dials%2 == 1
		opt.Coding = []string{"", "gzip", "zstd"}[c.dials/2%3]
		c.dials++
	}
	if c.since == 0 && opt.Cursor == "" {
		c.empty()
	}
	return Dial(addr, c.Log.Relation, c.since, opt)
}

// Fetch reads what there is from the client's position on: a finite stream, or pages.
func (c *Client) Fetch(ctx context.Context, addr string) error {
	for {
		if more, err := c.fetch(ctx, addr); err != nil || !more {
			return err
		}
	}
}

// fetch reads one answer, and says whether another page follows.
func (c *Client) fetch(ctx context.Context, addr string) (more bool, err error) {
	opt := Options{Finite: true}
	if c.exact {
		opt.Limit = 100
	}
	s, err := c.dial(addr, opt)
	if err != nil {
		c.noStream(err)
		return false, err
	}
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	c.Log.Add(Event{At: c.elapsed(), Kind: Connected, Since: c.since})
	for {
		if err := c.next(s); err != nil {
			if errors.Is(err, io.EOF) && !errors.Is(err, ErrCut) && !errors.Is(err, ErrTorn) {
				c.Log.Add(Event{At: c.elapsed(), Kind: Ended})
				return s.More(), nil
			}
			c.ended(ctx, s, err)
			return false, err
		}
	}
}

func (c *Client) noStream(err error) {
	e := Event{At: c.elapsed(), Kind: Refused, Since: c.since, Text: err.Error()}
	var refused *RefusedError
	var o *OddError
	switch {
	case errors.As(err, &refused):
		e.Status = refused.Status
		c.Log.Add(e)
		if e.Status == 409 || e.Status == 410 {
			c.empty()
		}
	case errors.As(err, &o):
		e.Kind = Odd
		c.Log.Add(e)
	}
	// All other errors are an edge that is away, or a cut within the head. They are not logged.
}

func (c *Client) ended(ctx context.Context, s *Stream, err error) {
	e := Event{At: c.elapsed(), Kind: CutSeen, Own: s.Spent() || ctx.Err() != nil, Torn: errors.Is(err, ErrTorn), Text: err.Error()}
	var o *OddError
	switch {
	case errors.As(err, &o):
		e.Kind = Odd
	case errors.Is(err, io.EOF) && !errors.Is(err, ErrCut) && !errors.Is(err, ErrTorn):
		e.Kind, e.Text = Odd, "a final chunk in a stream that must not end"
	}
	c.Log.Add(e)
}

// next reads one document and logs it.
func (c *Client) next(s *Stream) error {
	m, err := s.Next()
	if err != nil {
		return err
	}
	e := Event{At: c.elapsed()}
	switch {
	case m.Row != nil:
		err = e.ofRow(m.Row)
	case m.Control.Type == lockstep.HeartbeatType:
		e.Kind, e.Since, e.Timestamp = HeartbeatSeen, m.Control.Since, m.Control.Timestamp
		e.Cursor, err = lockstep.ParseCursor(m.Control.Cursor)
	case m.Control.Type == lockstep.PositionType:
		e.Kind, e.Since = PositionSeen, m.Control.Since
		e.Cursor, err = lockstep.ParseCursor(m.Control.Cursor)
	case m.Control.Type == lockstep.SnapshotCompleted:
		e.Kind = CompletedSeen
	default:
		return nil
	}
	if err != nil {
		return odd("%v", err)
	}
	c.Log.Add(e)
	if e.Since != 0 {
		c.since = e.Since
	}
	if e.Kind == HeartbeatSeen || e.Kind == PositionSeen {
		c.cursor = e.Cursor.String()
	}
	if e.Kind == HeartbeatSeen {
		c.beat.Store(e.Timestamp)
		c.newest.Store(max(c.newest.Load(), e.Timestamp))
	}
	return nil
}

// ofRow reads a row's columns. A column that the relation does not have is nil.
func (e *Event) ofRow(r *lockstep.Row) error {
	var data struct {
		ID, No  *int64
		Shop    *string
		Balance int64
		Ver, Op int64
		Blob    *string
	}
	if err := json.Unmarshal(r.Data, &data); err != nil {
		return err
	}
	switch {
	case data.ID != nil:
		e.Key = strconv.FormatInt(*data.ID, 10)
	case data.Shop != nil && data.No != nil:
		e.Key = orderKey(*data.Shop, *data.No)
	default:
		return errors.New("a row without its key")
	}
	e.Kind, e.Xmin, e.Since = RowSeen, r.CurrentXmin, r.Since
	e.Version = Version{Ver: data.Ver, Op: data.Op, Txid: r.Txid, Deleted: r.Deleted, Balance: data.Balance, Hash: hash(r.Data)}
	e.Blob = blobSum(data.Blob)
	return nil
}

// blobSum returns the MD5 of a large value, as Postgres gives it, or "" for NULL.
func blobSum(blob *string) string {
	if blob == nil {
		return ""
	}
	sum := md5.Sum([]byte(*blob))
	return hex.EncodeToString(sum[:])
}

func orderKey(shop string, no int64) string { return shop + "/" + strconv.FormatInt(no, 10) }
