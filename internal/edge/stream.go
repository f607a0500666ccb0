package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"time"

	"bridge/lockstep"
)

// header is a response's headers but for those of the connection, in their order.
type header [][2]string

// headerOf returns the headers of a stream's response in the coding.
func headerOf(st Stream, cache string, c coding) header {
	h := header{
		{"Content-Type", "application/json"},
		{"Cache-Control", cache},
		{"X-Accel-Buffering", "no"},
		{"Lockstep-Incarnation", st.Incarnation()},
		{"Lockstep-Floor", strconv.FormatUint(st.Floor(), 10)},
	}
	if c != nil {
		h = append(h, [2]string{"Content-Encoding", c.name()})
	}
	return h
}

// noStore is the Cache-Control of an answer that is another one the next time.
const noStore = "no-store"

// head returns the response's status line and headers. Existing clients want the coding
// exactly so.
func (h header) head() []byte {
	b := []byte("HTTP/1.1 200 OK\r\n")
	for _, field := range h {
		b = fmt.Appendf(b, "%s: %s\r\n", field[0], field[1])
	}
	return append(b, "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"...)
}

// write makes the headers those of a response of net/http.
func (h header) write(w http.ResponseWriter) {
	for _, field := range h {
		w.Header().Set(field[0], field[1])
	}
}

// Reasons why streams end.
const (
	reasonEnd    = "end"    // a finite request got all
	reasonClient = "client" // the client closed the connection
	reasonSlow   = "slow"   // a write took too long
	reasonDrain  = "drain"  // the edge stops
	reasonSource = "source" // the stream it read was replaced, or failed
)

// stream answers a request for the relation with the name, as split returned it.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, name string, since []string) {
	if !r.ProtoAtLeast(1, 1) {
		s.refuse(w, r, &Refusal{Code: HTTPVersion, Message: "streams need HTTP/1.1"})
		return
	}
	req, refusal := parse(r, name, since)
	if refusal != nil {
		s.refuse(w, r, refusal)
		return
	}
	if refusal := s.places.take(r.RemoteAddr); refusal != nil {
		s.refuse(w, r, refusal)
		return
	}
	s.streams.Add(1)
	defer s.streams.Done()
	c := s.open(w, r, req)
	if c == nil {
		s.places.leave(r.RemoteAddr)
		return
	}
	// A goroutine that keeps nothing of net/http's serves the client.
	s.streams.Go(c.serve)
	if stream, ok := c.wire.(*http2); ok {
		stream.serve(r.Context())
	}
}

// open returns the client to which the stream is to be written. If it has answered the
// request otherwise, it returns nil.
func (s *Server) open(w http.ResponseWriter, r *http.Request, req Request) *client {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.drain, cancel)()
	st, err := s.src.Open(ctx, req)
	if err != nil {
		s.refuse(w, r, asRefusal(err))
		return nil
	}
	c, err := s.begin(ctx, w, r, req, st)
	if c == nil {
		st.Close()
	}
	if err != nil {
		s.refuse(w, r, asRefusal(err))
	}
	return c
}

// begin makes the response one that the stream is written to. It returns no client if the
// headers are the whole answer.
func (s *Server) begin(ctx context.Context, w http.ResponseWriter, r *http.Request, req Request, st Stream) (*client, error) {
	coding := accepted(r.Header.Values("Accept-Encoding"))
	if req.Positions > 0 && req.Positions < math.MaxInt {
		coding = nil // a position may be due in the middle of a piece
	}
	var page Page
	h := headerOf(st, noStore, coding)
	if req.Limit > 0 {
		var err error
		if page, err = st.Page(ctx, req.Limit); err != nil {
			return nil, err
		}
		h = page.header(st, req, coding)
	}
	if known := page.known(r, req); known || r.Method == http.MethodHead {
		h.write(w)
		if known {
			w.WriteHeader(http.StatusNotModified)
			return nil, nil
		}
		if r.ProtoMajor == 1 {
			w.Header().Set("Transfer-Encoding", "chunked")
		}
		w.WriteHeader(http.StatusOK)
		return nil, nil
	}
	c := &client{
		s: s, remote: r.RemoteAddr, table: lockstep.RelationName(req.Schema, req.Table), since: req.Since, stream: st, form: form{flat: req.Flat, chunked: r.ProtoMajor == 1, coding: coding}, pageEnd: page.Next, positions: positions{every: req.Positions},
		batch: &s.batches[s.served.Add(1)%drainBatches],
	}
	if coding != nil && coding.summed() && !req.Follow {
		c.sum = &sum{}
	}
	if r.ProtoMajor == 2 {
		h.write(w)
		c.wire, c.head = newHTTP2(w), c.form.begin(nil)
		return c, nil
	}
	conn, err := takeOver(w)
	if err != nil {
		return nil, err
	}
	c.wire, c.head = conn, c.form.begin(h.head())
	return c, nil
}

// serve writes the stream to the client until one of them ends.
func (c *client) serve() {
	s := c.s
	defer s.places.leave(c.remote)
	defer c.stream.Close()
	defer func() { _ = c.wire.Close() }()
	// A write that is under way when the server stops ends soon, too.
	hurry := context.AfterFunc(c.batch.done, func() { _ = c.wire.SetWriteDeadline(time.Now().Add(drainWrite)) })
	defer hurry()
	s.metrics.clients.Inc()
	defer s.metrics.clients.Dec()
	begun := time.Now()
	reason, err := c.run()
	c.left(time.Since(begun), reason, err)
}

// left takes note of how the client's stream ended.
func (c *client) left(after time.Duration, reason string, err error) {
	c.s.metrics.ends.WithLabelValues(reason).Inc()
	e := c.s.log.Info().Str("remote", c.remote).Str("table", c.table).Uint64("since", c.since).
		Int64("rows", c.rows).Int64("bytes", c.bytes).Dur("dur", after.Round(time.Millisecond)).Str("reason", reason)
	if err != nil {
		e = e.Err(err)
	}
	e.Msg("client left")
}

// client is one connection that a stream is written to.
type client struct {
	// Static after construction: what it asked for, as the log names it, and where the next
	// page begins, nil if there is none.
	s       *Server
	remote  string
	table   string
	since   uint64
	wire    wire
	stream  Stream
	batch   *batch
	form    form
	pageEnd *lockstep.Cursor

	// head is what comes before all documents, nil once it is sent.
	head []byte
	// sum is that of what was sent, nil if nobody needs it.
	sum *sum

	positions   positions
	rows, bytes int64
}

func (c *client) run() (reason string, err error) {
	if err := c.write(c.head); err != nil {
		return c.why(err)
	}
	c.head = nil
	lastWrite := time.Now()
	doubtful := false // it sends nothing more, and was written to since that was seen
	for {
		wait := max(0, c.s.opt.KeepAlive-time.Since(lastWrite))
		if doubtful {
			wait = min(wait, goneWithin)
		}
		sent, err := c.next(c.batch.done, wait)
		if !sent && err == nil {
			seen := c.wire.look()
			if seen == peerGone {
				return reasonClient, nil
			}
			doubtful = false
			if time.Since(lastWrite) >= c.s.opt.KeepAlive {
				sent, err = true, c.write(c.frame(nil, keepAlive))
				doubtful = seen == peerSilent
			}
		}
		if errors.Is(err, io.EOF) {
			var last []byte
			if c.pageEnd != nil && c.positions.wanted() {
				last = c.frame(nil, lockstep.AppendPosition(nil, *c.pageEnd))
			}
			var s sum
			if c.sum != nil {
				s = *c.sum
			}
			if err := c.finish(c.form.end(last, s)); err != nil {
				return c.why(err)
			}
			return reasonEnd, nil
		}
		if err != nil {
			return c.why(err)
		}
		if sent {
			lastWrite = time.Now()
		}
	}
}

// next sends what the stream has next, if anything comes within wait. It returns io.EOF
// if the stream has ended.
func (c *client) next(ctx context.Context, wait time.Duration) (sent bool, err error) {
	if err := ctx.Err(); err != nil { // also where the stream always has more
		return false, err
	}
	p, end := c.stream.Next(ctx, wait)
	if p == nil {
		return false, end
	}
	rest, all, err := c.send(p)
	p = nil // while the client takes nothing, nothing is kept for it but this
	if err == nil {
		err = c.write(rest)
	}
	if err == nil && all {
		err = end
	}
	return true, err
}

// send writes a part, up to where the client is to be told its position. It gives back to
// the stream what it did not write. If the client stalls, that is all that was not begun.
// send returns what is still to be written: the rest of the chunk that the client is in,
// and the position. all says whether that is the end of the part.
func (c *client) send(p Part) (rest []byte, all bool, err error) {
	data, begin, ends, err := p.Render(c.form)
	if err != nil {
		return nil, false, err
	}
	next := c.positions
	n, due := next.scan(p, ends)
	if p.Completed() {
		if err := c.write(c.frame(nil, lockstep.AppendSnapshotCompleted(nil, time.Now().Unix()))); err != nil {
			return nil, false, err
		}
	}
	data = data[begin:ends[n-1]]
	for sent := 0; sent < len(data); {
		taken, err := c.writeSome(data[sent:min(len(data), sent+maxWrite)], min(stallAfter, c.s.opt.WriteTimeout), drainWrite)
		if sent += taken; err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, false, err
		}
		within := sort.Search(n, func(i int) bool { return int(ends[i])-begin > sent })
		between := within == 0 && sent == 0 || within > 0 && int(ends[within-1])-begin == sent
		if !between || !c.batch.ends() {
			piece := ends[within]
			within = sort.Search(n, func(i int) bool { return ends[i] > piece })
			rest = bytes.Clone(data[sent : int(piece)-begin])
		}
		if within < n {
			next = c.positions
			n, due = next.scan(p, ends[:within])
		}
		break
	}
	c.positions = next
	if err := c.add(p, n); err != nil {
		return nil, false, err
	}
	if due {
		rest = c.frame(rest, lockstep.AppendPosition(nil, p.Position(n)))
	}
	if all = n == p.Len(); all && rest == nil {
		c.count(p.Rows())
		return nil, true, nil
	}
	rows, err := c.stream.Return(n)
	c.count(rows)
	return rest, all, err
}

// frame appends what is no document of a part.
func (c *client) frame(dst, b []byte) []byte {
	if c.sum != nil {
		c.sum.add(b)
	}
	return c.form.frame(dst, b)
}

// add takes note of the first n documents of a part for the sum.
func (c *client) add(p Part, n int) error {
	if c.sum == nil || n == 0 {
		return nil
	}
	data, begin, ends, err := p.Render(form{flat: c.form.flat})
	if err == nil {
		c.sum.add(data[begin:ends[n-1]])
	}
	return err
}

func (c *client) count(rows int) {
	c.rows += int64(rows)
	c.s.metrics.rows.Add(float64(rows))
}

// why names the reason for an end.
func (c *client) why(err error) (string, error) {
	var network *net.OpError
	switch {
	case c.batch.ends():
		return reasonDrain, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return reasonSlow, nil
	case errors.As(err, &network):
		return reasonClient, nil
	}
	return reasonSource, err
}

const (
	// goneWithin is how long a client that is gone takes at most to answer that.
	goneWithin = time.Second
	// maxWrite is the most that one write deadline covers.
	maxWrite = 256 << 10
	// stallAfter is when a client that takes nothing is no longer kept what it was to get.
	stallAfter = time.Second
	// drainWrite is how long, once the server stops, is written to a client.
	drainWrite = 1500 * time.Millisecond
	// drainChunk is how long, once the server stops, a client has to take the
	// rest of the chunk that it is in.
	drainChunk = 3 * time.Second
)

// write sends b, which ends a chunk, however slowly the client takes it: an existing
// client that is cut within a chunk stays deaf. It returns an error that wraps
// os.ErrDeadlineExceeded if the client takes nothing for Options.WriteTimeout.
func (c *client) write(b []byte) error {
	for len(b) > 0 {
		n, err := c.writeSome(b[:min(len(b), maxWrite)], c.s.opt.WriteTimeout, drainChunk)
		b = b[n:]
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case c.batch.ends() && time.Since(c.batch.begun) < drainChunk:
		case n == 0 || c.batch.ends():
			return err
		}
	}
	return nil
}

// finish writes b, and ends the response as one that is whole.
func (c *client) finish(b []byte) error {
	if err := c.write(b); err != nil {
		return err
	}
	if err := c.wire.SetWriteDeadline(time.Now().Add(c.s.opt.WriteTimeout)); err != nil {
		return err
	}
	return c.wire.finish()
}

// writeSome writes b with one deadline, which is at most whileDraining after
// the server began to stop.
func (c *client) writeSome(b []byte, patience, whileDraining time.Duration) (int, error) {
	deadline := time.Now().Add(patience)
	if err := c.wire.SetWriteDeadline(deadline); err != nil {
		return 0, err
	}
	// Looked at after the deadline was set: where the server stops only now,
	// serve's own, shorter one comes later.
	if c.batch.ends() {
		if by := c.batch.begun.Add(whileDraining); by.Before(deadline) {
			if err := c.wire.SetWriteDeadline(by); err != nil {
				return 0, err
			}
		}
	}
	n, err := c.wire.Write(b)
	c.bytes += int64(n)
	c.s.metrics.bytes.Add(float64(n))
	return n, err
}
