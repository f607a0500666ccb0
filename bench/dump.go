package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// message is what the reference sends again: a message of the bridge, without the
// headers that only control messages have.
type message struct {
	subject, high string
	payload       []byte
}

// writeDump writes the stream's messages from sequence first on to a file. If more
// is set, it appends them to the file. The format is a count, and for each message
// three strings with their lengths.
func writeDump(t testing.TB, nc *nats.Conn, file, table string, first uint64, more bool) {
	t.Helper()
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	if more {
		flags = os.O_APPEND | os.O_WRONLY
	}
	f, err := os.OpenFile(file, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var all []message
	readStream(t, nc, table, first, func(msg jetstream.Msg) {
		all = append(all, message{stream.Ingest(msg.Subject()), msg.Headers().Get(stream.HighHeader), msg.Data()})
	})
	b := binary.AppendUvarint(nil, uint64(len(all)))
	w := bufio.NewWriterSize(f, 1<<20)
	for _, m := range all {
		for _, part := range [][]byte{[]byte(m.subject), []byte(m.high), m.payload} {
			b = binary.AppendUvarint(b, uint64(len(part)))
			b = append(b, part...)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		b = b[:0]
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

// readStream reads what a stream holds from sequence first on, through a bare pull
// consumer, as fast as possible.
func readStream(t testing.TB, nc *nats.Conn, table string, first uint64, each func(jetstream.Msg)) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	cfg := jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, InactiveThreshold: time.Minute}
	if first > 1 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, first
	}
	c, err := js.CreateConsumer(t.Context(), layoutOf(table).Stream, cfg)
	if err != nil {
		t.Fatal(err)
	}
	left := c.CachedInfo().NumPending
	done := make(chan struct{}) // closed by Consume's one callback goroutine
	cc, err := c.Consume(func(msg jetstream.Msg) {
		if left == 0 {
			return
		}
		each(msg)
		if left--; left == 0 {
			close(done)
		}
	}, jetstream.PullMaxMessages(5000))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Stop()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("read stream of %s: not at its end after %s", table, patience)
	}
}

// readParts reads all parts of a dump into memory. writeDump writes one part.
func readParts(file string) ([][]message, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReaderSize(f, 1<<20)
	var parts [][]message
	for {
		if _, err := r.Peek(1); errors.Is(err, io.EOF) {
			return parts, nil
		}
		part, err := readDump(r)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
}

// readDump reads the next part of a dump.
func readDump(r *bufio.Reader) ([]message, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, fmt.Errorf("read messages: %w", err)
	}
	all := make([]message, n)
	part := func() ([]byte, error) {
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, err
		}
		b := make([]byte, size)
		_, err = io.ReadFull(r, b)
		return b, err
	}
	for i := range all {
		subject, err1 := part()
		high, err2 := part()
		payload, err3 := part()
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("read messages: %w", err)
		}
		all[i] = message{string(subject), string(high), payload}
	}
	return all, nil
}
