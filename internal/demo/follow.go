package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"bridge/internal/stream"
	"bridge/lockstep"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// follower is what one client knows about one relation.
type follower struct {
	// Static after construction.
	path     string // HTTP or NATS
	relation string

	mu sync.Mutex
	// Guarded by mu.
	rows map[string]held // by id
	// first has the first documents that arrived, to show them.
	first []string
	// heartbeats counts the heartbeats that arrived; heartbeat is the last.
	heartbeats int
	heartbeat  string
	// since is the position to resume from.
	since uint64
	// err is the last error of the connection.
	err error
}

// held is a row, its document, and how many heartbeats arrived before it.
type held struct {
	lockstep.Row
	doc        string
	heartbeats int
}

// showFirst is how many rows are shown.
const showFirst = 3

func newFollower(path, relation string) *follower {
	return &follower{path: path, relation: relation, rows: make(map[string]held)}
}

// find returns the follower of the relation that reads over the path.
func find(all []*follower, path, relation string) *follower {
	for _, f := range all {
		if f.path == path && f.relation == relation {
			return f
		}
	}
	panic("demo: nobody follows " + relation + " over " + path)
}

// take applies one document.
func (f *follower) take(doc []byte) error {
	m, err := lockstep.Decode(doc)
	if err != nil {
		return err
	}
	text := strings.TrimRight(string(doc), "\n")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = nil
	if m.Row == nil {
		if m.Control.Type == lockstep.HeartbeatType {
			f.heartbeats++
			f.heartbeat, f.since = text, m.Control.Since
		}
		return nil
	}
	var key struct{ ID json.Number }
	if err := json.Unmarshal(m.Row.Data, &key); err != nil {
		return fmt.Errorf("a row's key: %w", err)
	}
	f.rows[key.ID.String()] = held{Row: *m.Row, doc: text, heartbeats: f.heartbeats}
	f.since = m.Row.Since
	if len(f.first) < showFirst {
		f.first = append(f.first, text)
	}
	return nil
}

func (f *follower) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// shown returns the document of the row, and that of the last heartbeat.
func (f *follower) shown(id string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []string{f.rows[id].doc, f.heartbeat}
}

func (f *follower) position() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.since
}

// follow runs read until the demo ends, and again after each error. Rows that arrive twice then do no harm.
func (f *follower) follow(t testing.TB, read func(ctx context.Context, f *follower) error) *follower {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}) // closed by the goroutine when it ends
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for {
			err := read(ctx, f)
			if ctx.Err() != nil {
				return
			}
			f.fail(err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return f
}

// followHTTP is a client of the edge, written by hand. It reads chunk by chunk. After a cut it asks again with the last
// since that it saw.
func followHTTP(t testing.TB, address, relation string) *follower {
	return newFollower("HTTP", relation).follow(t, func(ctx context.Context, f *follower) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		if _, err := fmt.Fprintf(conn, "GET /%s?since=%d HTTP/1.1\r\nHost: %s\r\n\r\n", relation, f.position(), address); err != nil {
			return err
		}
		r := bufio.NewReader(conn)
		if err := readHead(r); err != nil {
			return err
		}
		for {
			doc, err := readChunk(r)
			if err != nil {
				return err
			}
			if string(doc) == "\r\n" { // a keep-alive
				continue
			}
			if !bytes.HasSuffix(doc, []byte("\n")) || bytes.Count(doc, []byte("\n")) != 1 {
				return fmt.Errorf("a chunk is not one document: %q", doc)
			}
			if err := f.take(doc); err != nil {
				return err
			}
		}
	})
}

func readHead(r *bufio.Reader) error {
	tp := textproto.NewReader(r)
	status, err := tp.ReadLine()
	if err != nil {
		return err
	}
	header, err := tp.ReadMIMEHeader()
	if err != nil {
		return err
	}
	if status != "HTTP/1.1 200 OK" || header.Get("Transfer-Encoding") != "chunked" {
		body, _ := io.ReadAll(io.LimitReader(r, 1024))
		return fmt.Errorf("the edge answered %s, transfer coding %q: %s", status, header.Get("Transfer-Encoding"), body)
	}
	return nil
}

// maxChunk is more than any document can have.
const maxChunk = 64 << 20

// readChunk returns the data of one chunk.
func readChunk(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	size, err := strconv.ParseUint(strings.TrimSuffix(line, "\r\n"), 16, 32)
	if err != nil || size > maxChunk {
		return nil, fmt.Errorf("not a chunk's size: %q", line)
	}
	if size == 0 {
		return nil, errors.New("the edge ended a stream that has no end")
	}
	data := make([]byte, size+2)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	if !bytes.HasSuffix(data, []byte("\r\n")) {
		return nil, errors.New("a chunk without its end")
	}
	return data[:size], nil
}

// followNATS is a subscriber: it reads the relation's stream with an ordered consumer.
func followNATS(t testing.TB, address, relation string) *follower {
	return newFollower("NATS", relation).follow(t, func(ctx context.Context, f *follower) error {
		nc, err := nats.Connect("nats://" + address)
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		l := stream.NewLayout(stream.DefaultPrefix, "public", relation, false)
		c, err := js.OrderedConsumer(ctx, l.Stream, jetstream.OrderedConsumerConfig{})
		if err != nil {
			return err
		}
		it, err := c.Messages()
		if err != nil {
			return err
		}
		defer it.Stop()
		for {
			msg, err := it.Next(jetstream.NextContext(ctx))
			if err != nil {
				return err
			}
			switch l.KindOf(msg.Subject()) {
			case stream.KindRow, stream.KindHeartbeat:
				if err := f.take(msg.Data()); err != nil {
					return err
				}
			}
		}
	})
}
