package simtest

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bridge/lockstep"

	"github.com/klauspost/compress/zstd"
)

// Stream is one response. It accepts only what the protocol allows, and is parsed without an HTTP library, but for HTTP/2.
type Stream struct {
	conn *limited
	in   *bufio.Reader
	// lines is the body, decoded, where documents are not chunks.
	lines *bufio.Reader
	quiet time.Duration
	// more says that another page follows this answer.
	more bool
}

// RefusedError is an answer that is not a stream.
type RefusedError struct {
	Status int
	Code   string
	Text   string
}

func (r *RefusedError) Error() string { return fmt.Sprintf("%d %s: %s", r.Status, r.Code, r.Text) }

// OddError says how a server broke the protocol.
type OddError struct{ What string }

func (o *OddError) Error() string { return o.What }

func odd(format string, args ...any) error { return &OddError{fmt.Sprintf(format, args...)} }

// ErrTorn is wrapped by the error for a stream that ended within a chunk, ErrCut by the error for one that ended
// between two chunks.
var (
	ErrTorn = errors.New("cut within a chunk")
	ErrCut  = errors.New("cut between two chunks")
)

// Options of a request.
type Options struct {
	Finite bool
	// HTTP2 asks by HTTP/2, Coding for gzip or zstd, "" for neither.
	HTTP2  bool
	Coding string
	// Exact asks for what comes after Cursor, which may be empty, and without Coding for many positions.
	Exact  bool
	Cursor string
	// Limit is the size of a page, 0 for all.
	Limit int
	// Bytes is how much the client reads before it cuts the connection; 0 for no limit.
	Bytes int64
	// Quiet is the longest silence before the client gives up; 0 for 20 s.
	Quiet time.Duration
}

// Dial asks an edge for a relation. It returns once it has read the head of the answer.
func Dial(addr, relation string, since uint64, opt Options) (*Stream, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	s := NewStream(conn, opt)
	_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if opt.HTTP2 {
		err = s.ask(addr, "/"+relation+opt.query(since), opt.Coding)
	} else {
		err = s.ask1(addr, "/"+relation+opt.query(since), opt.Coding)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// query returns the request's parameters, with a question mark if there are any.
func (o Options) query(since uint64) string {
	q := url.Values{}
	if since > 0 {
		q.Set("since", strconv.FormatUint(since, 10))
	}
	if o.Finite {
		q.Set("follow", "0")
	}
	if o.Exact {
		q.Set("cursor", o.Cursor)
		if o.Coding == "" {
			q.Set("positions", "7")
		}
	}
	if o.Limit > 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// More says whether the answer is a page that another one follows.
func (s *Stream) More() bool { return s.more }

// NewStream reads an answer from a connection.
func NewStream(conn net.Conn, opt Options) *Stream {
	s := &Stream{conn: &limited{Conn: conn}, quiet: opt.Quiet}
	s.conn.left.Store(cmp.Or(opt.Bytes, 1<<62))
	if s.quiet == 0 {
		s.quiet = 20 * time.Second
	}
	s.in = bufio.NewReader(s.conn)
	return s
}

// Close ends the connection.
func (s *Stream) Close() { _ = s.conn.Close() }

// Spent says whether Options.Bytes was reached.
func (s *Stream) Spent() bool { return s.conn.left.Load() <= 0 }

func (s *Stream) line() (string, error) {
	b, err := s.in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(b) < 2 || b[len(b)-2] != '\r' {
		return "", odd("a line ends without CR: %q", b)
	}
	return string(b[:len(b)-2]), nil
}

// ask1 asks by HTTP/1.1, and reads the head of the answer.
func (s *Stream) ask1(addr, target, coding string) error {
	request := "GET " + target + " HTTP/1.1\r\nHost: " + addr + "\r\n"
	if coding != "" {
		request += "Accept-Encoding: " + coding + "\r\n"
	}
	if _, err := io.WriteString(s.conn, request+"\r\n"); err != nil {
		return err
	}
	got, err := s.head()
	if err != nil || got == "" && coding == "" {
		return err
	}
	return s.decode(&chunks{of: s}, got, coding)
}

// decode makes the stream one of the lines in a body in the coding got, which must be the one that was asked for.
func (s *Stream) decode(body io.Reader, got, want string) error {
	if got != want {
		return odd("Content-Encoding is %q, want %q", got, want)
	}
	body = known{body}
	switch want {
	case "gzip":
		r, err := gzip.NewReader(body)
		if err != nil {
			return err
		}
		r.Multistream(false) // as browsers do
		body = r
	case "zstd":
		r, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		body = r
	}
	s.lines = bufio.NewReader(body)
	return nil
}

// chunks is the body of a chunked answer.
type chunks struct {
	of   *Stream
	rest []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		chunk, err := c.of.chunk()
		if err != nil {
			return 0, err
		}
		c.rest = chunk
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// known is a body whose errors nobody takes for its end: the decoder of zstd takes io.ErrUnexpectedEOF for that.
type known struct{ io.Reader }

func (k known) Read(p []byte) (int, error) {
	n, err := k.Reader.Read(p)
	switch {
	case errors.Is(err, ErrTorn):
		err = fmt.Errorf("%w: %v", ErrTorn, err)
	case err != nil && err != io.EOF:
		err = fmt.Errorf("%w: %v", ErrCut, err)
	}
	return n, err
}

// head reads the status line and the headers, and returns the coding.
func (s *Stream) head() (coding string, err error) {
	_ = s.conn.SetReadDeadline(time.Now().Add(s.quiet))
	status, err := s.line()
	if err != nil {
		return "", err
	}
	header := map[string]string{}
	for {
		l, err := s.line()
		if err != nil {
			return "", err
		}
		if l == "" {
			break
		}
		name, value, ok := strings.Cut(l, ": ")
		if !ok {
			return "", odd("not a header: %q", l)
		}
		header[strings.ToLower(name)] = value
	}
	if status != "HTTP/1.1 200 OK" {
		return "", s.refusal(status, header)
	}
	s.more = strings.HasSuffix(header["link"], `rel="next"`)
	if header["transfer-encoding"] != "chunked" {
		return "", odd("Transfer-Encoding is %q, want chunked", header["transfer-encoding"])
	}
	return header["content-encoding"], nil
}

// ask asks by HTTP/2, and reads the head of the answer.
func (s *Stream) ask(addr, target, coding string) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(s.quiet))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := http.Transport{Protocols: &protocols, DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return s.conn, nil
	}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+addr+target, nil)
	if err != nil {
		return err
	}
	if coding != "" {
		req.Header.Set("Accept-Encoding", coding)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		s.in = bufio.NewReader(resp.Body)
		return s.refused(resp.StatusCode, resp.Header.Get("Content-Length"))
	}
	if te := resp.Header.Get("Transfer-Encoding"); te != "" {
		return odd("Transfer-Encoding is %q, want none", te)
	}
	s.more = strings.HasSuffix(resp.Header.Get("Link"), `rel="next"`)
	return s.decode(resp.Body, resp.Header.Get("Content-Encoding"), coding)
}

// limited is a connection of which only so many bytes are read: left more.
type limited struct {
	net.Conn
	left atomic.Int64
}

func (l *limited) Read(b []byte) (int, error) {
	left := l.left.Load()
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := l.Conn.Read(b[:min(int64(len(b)), left)])
	l.left.Add(-int64(n))
	return n, err
}

func (s *Stream) refusal(status string, header map[string]string) error {
	parts := strings.SplitN(status, " ", 3)
	if len(parts) != 3 || parts[0] != "HTTP/1.1" {
		return odd("not a status line: %q", status)
	}
	code, err := strconv.Atoi(parts[1])
	if err != nil {
		return odd("not a status line: %q", status)
	}
	return s.refused(code, header["content-length"])
}

// refused reads the body of an answer that is not a stream.
func (s *Stream) refused(code int, length string) error {
	n, err := strconv.Atoi(length)
	if err != nil || n > 64<<10 {
		return odd("status %d with Content-Length %q", code, length)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.in, body); err != nil {
		return err
	}
	var doc struct {
		Error *struct{ Code, Message string }
	}
	if err := json.Unmarshal(body, &doc); err != nil || doc.Error == nil || doc.Error.Code == "" {
		return odd("status %d with body %q", code, body)
	}
	return &RefusedError{Status: code, Code: doc.Error.Code, Text: doc.Error.Message}
}

// maxChunk is larger than any document of the tests.
const maxChunk = 16 << 20

// Next returns the next document, and skips keep-alives. At the final chunk it returns io.EOF. If the stream ends
// without one, the error wraps ErrCut or ErrTorn. If the server breaks the protocol, the error is an *OddError.
func (s *Stream) Next() (lockstep.Message, error) {
	read := s.chunk
	if s.lines != nil {
		read = s.bareLine
	}
	for {
		chunk, err := read()
		if err != nil {
			return lockstep.Message{}, err
		}
		if string(chunk) != "\r\n" {
			return document(chunk)
		}
	}
}

// document parses the document in a chunk.
func document(chunk []byte) (lockstep.Message, error) {
	if bytes.IndexByte(chunk, '\n') != len(chunk)-1 {
		return lockstep.Message{}, odd("a chunk is not one line: %.200q", chunk)
	}
	if !json.Valid(chunk) {
		return lockstep.Message{}, odd("a chunk is not one JSON document: %.200q", chunk)
	}
	m, err := lockstep.Decode(chunk)
	if err != nil {
		return lockstep.Message{}, odd("%v: %.200q", err, chunk)
	}
	return m, nil
}

// chunk reads one chunk.
func (s *Stream) chunk() ([]byte, error) {
	_ = s.conn.SetReadDeadline(time.Now().Add(s.quiet))
	if _, err := s.in.Peek(1); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCut, err)
	}
	size, err := s.line()
	if err != nil {
		return nil, torn(err)
	}
	n, err := strconv.ParseUint(size, 16, 32)
	if err != nil || n > maxChunk || strings.ToLower(size) != size {
		return nil, odd("not the size of a chunk: %q", size)
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(s.in, b); err != nil {
		return nil, torn(err)
	}
	if b[n] != '\r' || b[n+1] != '\n' {
		return nil, odd("a chunk of %d bytes ends with %q", n, b[n:])
	}
	if n == 0 {
		return nil, io.EOF
	}
	return b[:n], nil
}

// bareLine reads one line of a body that has no chunks.
func (s *Stream) bareLine() ([]byte, error) {
	_ = s.conn.SetReadDeadline(time.Now().Add(s.quiet))
	line, err := s.lines.ReadBytes('\n')
	switch {
	case err == nil:
		return line, nil
	case len(line) > 0:
		return nil, torn(err)
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	}
	return nil, fmt.Errorf("%w: %w", ErrCut, err)
}

func torn(err error) error {
	var o *OddError
	if errors.As(err, &o) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrTorn, err)
}
