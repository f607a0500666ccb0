package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// readNATS records when each row of the table live was stored and when it arrived,
// until ctx ends.
func readNATS(ctx context.Context, t testing.TB, nc *nats.Conn, stored, arrived []time.Time) {
	js, err := jetstream.New(nc)
	if err != nil {
		t.Errorf("read from NATS: %v", err)
		return
	}
	l := layoutOf("live")
	c, err := js.OrderedConsumer(ctx, l.Stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err != nil {
		t.Errorf("read from NATS: %v", err)
		return
	}
	it, err := c.Messages()
	if err != nil {
		t.Errorf("read from NATS: %v", err)
		return
	}
	defer it.Stop()
	prefix := strings.TrimSuffix(l.Rows(), ">")
	for {
		msg, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("read from NATS: %v", err)
			}
			return
		}
		if text, ok := strings.CutPrefix(msg.Subject(), prefix); ok {
			arrive(arrived, text, time.Now())
			if md, err := msg.Metadata(); err == nil {
				arrive(stored, text, md.Timestamp)
			}
		}
	}
}

// subscribe records when the copy of each row of the table live arrived at a core subscriber, until the connection is
// closed.
func subscribe(t testing.TB, nc *nats.Conn, arrived []time.Time) {
	t.Helper()
	rows := layoutOf("live").Rows()
	prefix := strings.TrimSuffix(rows, ">")
	if _, err := nc.Subscribe(rows, func(msg *nats.Msg) { arrive(arrived, strings.TrimPrefix(msg.Subject, prefix), time.Now()) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

func arrive(arrived []time.Time, id string, at time.Time) {
	if n, err := strconv.Atoi(id); err == nil && 0 <= n && n < len(arrived) && arrived[n].IsZero() {
		arrived[n] = at
	}
}

// chunks reads the chunks of a chunked HTTP response. It is as fast as possible,
// because a slow client would be the bottleneck of the measurement.
type chunks struct {
	conn net.Conn
	r    *bufio.Reader
}

// get asks for a URL. It tries again for some time if that fails.
func get(ctx context.Context, address string) (*chunks, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := getOnce(ctx, u)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return c, err
		}
		<-time.After(50 * time.Millisecond)
	}
}

func getOnce(ctx context.Context, u *url.URL) (*chunks, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	c := &chunks{conn: conn, r: bufio.NewReaderSize(conn, 256<<10)}
	err = c.begin(u)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return c, nil
}

func (c *chunks) begin(u *url.URL) error {
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	// The body stays open: next reads it from the connection itself, and closing it
	// would read to its end.
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		_ = resp.Body.Close()
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	if len(resp.TransferEncoding) != 1 || resp.TransferEncoding[0] != "chunked" {
		_ = resp.Body.Close()
		return errors.New("the response is not chunked")
	}
	return nil
}

// next returns the content of the next chunk, or io.EOF after the last one. The
// content is valid until the next call.
func (c *chunks) next() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	size := 0
	for _, digit := range bytes.TrimRight(line, "\r\n") {
		switch {
		case '0' <= digit && digit <= '9':
			size = size<<4 | int(digit-'0')
		case 'a' <= digit && digit <= 'f':
			size = size<<4 | int(digit-'a'+10)
		case 'A' <= digit && digit <= 'F':
			size = size<<4 | int(digit-'A'+10)
		default:
			return nil, fmt.Errorf("%q is not the size of a chunk", line)
		}
	}
	if size == 0 {
		return nil, io.EOF
	}
	chunk, err := c.r.Peek(size + 2)
	if err != nil {
		return nil, err
	}
	_, err = c.r.Discard(size + 2)
	return chunk[:size], err
}

// isRow says whether a chunk is a row, not a control row.
func isRow(chunk []byte) bool { return bytes.HasPrefix(chunk, []byte(`{"txid":`)) }

// readHTTP records when each new row of the table live arrives, until ctx ends. It
// closes ready when the edge has sent the rows that were there before.
func readHTTP(ctx context.Context, t testing.TB, address string, arrived []time.Time, ready chan<- struct{}) {
	completed := false
	defer func() {
		if !completed {
			close(ready)
		}
	}()
	c, err := get(ctx, address)
	if err != nil {
		t.Errorf("read by HTTP: %v", err)
		return
	}
	for {
		chunk, err := c.next()
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("read by HTTP: %v", err)
			}
			return
		}
		if !completed && bytes.Contains(chunk, []byte(`"snapshot_completed"`)) {
			completed = true
			close(ready)
		}
		if !completed || !isRow(chunk) {
			continue
		}
		if _, rest, ok := bytes.Cut(chunk, []byte(`"id":`)); ok {
			id, _, _ := bytes.Cut(rest, []byte(","))
			arrive(arrived, string(id), time.Now())
		}
	}
}
