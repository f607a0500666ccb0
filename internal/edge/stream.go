package edge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"bridge/lockstep"
)

// head is the response's status line and headers. Existing clients want the
// coding exactly so.
const head = "HTTP/1.1 200 OK\r\n" +
	"Content-Type: application/json\r\n" +
	"Cache-Control: no-store\r\n" +
	"X-Accel-Buffering: no\r\n" +
	"Connection: close\r\n" +
	"Transfer-Encoding: chunked\r\n\r\n"

const (
	// keepAlive is the chunk of CR LF that existing clients skip.
	keepAlive  = "2\r\n\r\n\r\n"
	finalChunk = "0\r\n\r\n"
)

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
	s.streams.Add(1)
	defer s.streams.Done()
	ctx, cancel := s.untilDrain(r.Context())
	defer cancel()
	st, err := s.src.Open(ctx, req)
	if err != nil {
		s.refuse(w, r, asRefusal(err))
		return
	}
	defer st.Close()
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Transfer-Encoding", "chunked")
		w.WriteHeader(http.StatusOK)
		return
	}
	// What the client sent behind its request is not heard.
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, r, asRefusal(err))
		return
	}
	// Those of the request end here: from now on each write has its own.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return
	}
	s.pump(conn, st, req, r.RemoteAddr)
}

// untilDrain returns a context that also ends when the server stops.
func (s *Server) untilDrain(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-s.drain:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func (s *Server) draining() bool {
	select {
	case <-s.drain:
		return true
	default:
		return false
	}
}

// pump writes the stream to the connection until one of them ends.
func (s *Server) pump(conn net.Conn, st Stream, req Request, remote string) {
	ctx, cancel := s.untilDrain(context.Background())
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		awaitClose(conn)
		cancel()
	}()
	defer func() { _ = conn.Close(); <-closed }()
	// A write that is under way when the server stops ends soon, too.
	hurry := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now().Add(drainWrite)) })
	defer hurry()
	s.metrics.clients.Inc()
	defer s.metrics.clients.Dec()
	c := &client{s: s, conn: conn, begun: time.Now()}
	reason, err := c.run(ctx, st)
	s.metrics.ends.WithLabelValues(reason).Inc()
	e := s.log.Info().Str("remote", remote).Str("table", lockstep.RelationName(req.Schema, req.Table)).Uint64("since", req.Since).
		Int64("rows", c.rows).Int64("bytes", c.bytes).Dur("dur", time.Since(c.begun).Round(time.Millisecond)).Str("reason", reason)
	if err != nil {
		e = e.Err(err)
	}
	e.Msg("client left")
}

// awaitClose reads until the client closes its side; what it sends is thrown
// away.
func awaitClose(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, conn)
}

// client is one connection that a stream is written to.
type client struct {
	s           *Server
	conn        net.Conn
	begun       time.Time
	rows, bytes int64
}

func (c *client) run(ctx context.Context, st Stream) (reason string, err error) {
	if err := c.write([]byte(head)); err != nil {
		return c.why(ctx, err)
	}
	lastWrite := time.Now()
	for {
		wait := max(0, c.s.opt.KeepAlive-time.Since(lastWrite))
		chunks, rows, err := st.Next(ctx, wait)
		if len(chunks) > 0 {
			if err := c.write(chunks); err != nil {
				return c.why(ctx, err)
			}
			lastWrite = time.Now()
			c.rows += int64(rows)
			c.s.metrics.rows.Add(float64(rows))
		}
		switch {
		case errors.Is(err, io.EOF):
			if err := c.write([]byte(finalChunk)); err != nil {
				return c.why(ctx, err)
			}
			return reasonEnd, nil
		case err != nil:
			return c.why(ctx, err)
		case len(chunks) == 0 && time.Since(lastWrite) >= c.s.opt.KeepAlive:
			if err := c.write([]byte(keepAlive)); err != nil {
				return c.why(ctx, err)
			}
			lastWrite = time.Now()
		}
	}
}

// why names the reason for an end.
func (c *client) why(ctx context.Context, err error) (string, error) {
	var network *net.OpError
	switch {
	case c.s.draining():
		return reasonDrain, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return reasonSlow, nil
	case ctx.Err() != nil, errors.As(err, &network):
		return reasonClient, nil
	}
	return reasonSource, err
}

const (
	// maxWrite is the most that one write deadline covers.
	maxWrite = 256 << 10
	// drainWrite is how long, once the server stops, is written to a client.
	drainWrite = 1500 * time.Millisecond
	// drainChunk is how long, once the server stops, a client has to take the
	// rest of the chunk that it is in.
	drainChunk = 3 * time.Second
)

// write sends whole chunks. Where the client does not take them in time, the
// chunk that it is in is finished if it takes that, so that the cut falls
// between two chunks: an existing client that is cut within one stays deaf.
func (c *client) write(b []byte) error {
	sent := 0
	for sent < len(b) {
		n, err := c.writeSome(b[sent:min(len(b), sent+maxWrite)], drainWrite)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_, finishErr := c.writeSome(b[sent:chunkEnd(b, sent)], drainChunk)
			return errors.Join(err, finishErr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSome writes b with one deadline, which is at most whileDraining after
// the server began to stop.
func (c *client) writeSome(b []byte, whileDraining time.Duration) (int, error) {
	deadline := time.Now().Add(c.s.opt.WriteTimeout)
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return 0, err
	}
	// Looked at after the deadline was set: where the server stops only now,
	// pump's own, shorter one comes later.
	if c.s.draining() {
		if by := c.s.drainBegun.Add(whileDraining); by.Before(deadline) {
			if err := c.conn.SetWriteDeadline(by); err != nil {
				return 0, err
			}
		}
	}
	n, err := c.conn.Write(b)
	c.bytes += int64(n)
	c.s.metrics.bytes.Add(float64(n))
	return n, err
}

// chunkEnd returns the first end of a chunk at or behind n in b, which holds
// whole chunks from its beginning; for anything else it returns n.
func chunkEnd(b []byte, n int) int {
	end := 0
	for end < n {
		i := bytes.IndexByte(b[end:], '\n')
		if i < 1 {
			return n
		}
		size, err := strconv.ParseUint(string(b[end:end+i-1]), 16, 31)
		if err != nil {
			return n
		}
		end += i + 1 + int(size) + 2
	}
	return min(end, len(b))
}
