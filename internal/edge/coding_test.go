package edge_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/internal/testenv"

	"github.com/klauspost/compress/zstd"
)

// askFor asks for a stream in a coding, and reads the response's head.
func askFor(t *testing.T, addr, target, coding string) (c *conn, head string) {
	t.Helper()
	c = dial(t, addr)
	c.send(t, "GET "+target+" HTTP/1.1\r\nHost: x\r\nAccept-Encoding: "+coding+"\r\n\r\n")
	return c, c.head(t)
}

// body reads what is in the chunks. It ends as they do.
type body struct {
	*conn
	rest []byte
}

func (b *body) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		chunk, err := b.chunk()
		switch {
		case errors.Is(err, io.EOF):
			return 0, errCut // some decoders take io.ErrUnexpectedEOF for the end
		case err != nil:
			return 0, err
		case len(chunk) == 0:
			return 0, io.EOF
		}
		b.rest = chunk
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

var errCut = errors.New("no final chunk came")

// decoded returns a reader of what was coded.
func decoded(t *testing.T, r io.Reader, coding string) *bufio.Reader {
	t.Helper()
	switch coding {
	case "gzip":
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false) // as browsers do
		return bufio.NewReader(z)
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(z.Close)
		return bufio.NewReader(z)
	}
	return bufio.NewReader(r)
}

// TestServer_Codings: decoded, a response is what it is without a coding, over HTTP/1.1 and HTTP/2, in both dialects, with its
// positions. Every chunk ends with a document.
func TestServer_Codings(t *testing.T) {
	t.Parallel()
	docs := strings.Split(strings.Repeat(strings.Repeat("text ", 40)+",", 500)+"last", ",")
	docs[7], docs[200] = "", ""
	for _, coding := range []string{"gzip", "zstd"} {
		for _, query := range []string{"?follow=0", "?follow=0&cursor=", "?follow=0&format=flat", "?follow=0&limit=9000&cursor="} {
			t.Run(coding+query, func(t *testing.T) {
				t.Parallel()
				r := serve(t, &fake{open: func(context.Context, edge.Request) (edge.Stream, error) {
					return &track{docs: docs}, nil
				}}, edge.Options{})
				want, err := io.ReadAll(&body{conn: get(t, r.addr, "/users"+query)})
				if err != nil {
					t.Fatal(err)
				}
				c, head := askFor(t, r.addr, "/users"+query, coding)
				if !strings.Contains(head, "\r\nContent-Encoding: "+coding+"\r\n") || !strings.Contains(head, "\r\nTransfer-Encoding: chunked\r\n") {
					t.Errorf("the head is %s", head)
				}
				coded := &body{conn: c}
				if got, err := io.ReadAll(decoded(t, coded, coding)); string(got) != string(want) || err != nil {
					t.Errorf("over HTTP/1.1: got %d bytes, %v, want %d", len(got), err, len(want))
				}
				c2 := over2(t, 1<<20)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr+"/users"+query, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Accept-Encoding", coding)
				resp, err := c2.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				if got, err := io.ReadAll(decoded(t, resp.Body, coding)); string(got) != string(want) || err != nil || resp.Header.Get("Content-Encoding") != coding {
					t.Errorf("over HTTP/2: got %d bytes, %v, want %d; headers %v", len(got), err, len(want), resp.Header)
				}
			})
		}
	}
}

// TestServer_CodedRowsAreNotHeldBack: a client can decode each row, and each sign of life, before the next one is there. Each is
// one chunk. A cut is an error.
func TestServer_CodedRowsAreNotHeldBack(t *testing.T) {
	t.Parallel()
	for _, coding := range []string{"gzip", "zstd"} {
		t.Run(coding, func(t *testing.T) {
			t.Parallel()
			f := newFeed()
			r := serve(t, open(f), edge.Options{KeepAlive: 200 * time.Millisecond})
			c, _ := askFor(t, r.addr, "/users", coding)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // a row that is held back fails sooner
			f.docs <- []byte("{\"a\":0}\n")
			in := decoded(t, &body{conn: c}, coding)
			for i := range 5 {
				if i > 0 {
					f.docs <- fmt.Appendf(nil, "{\"a\":%d}\n", i)
				}
				line, err := in.ReadString('\n')
				for line == "\r\n" && err == nil {
					line, err = in.ReadString('\n')
				}
				if want := fmt.Sprintf("{\"a\":%d}\n", i); line != want || err != nil {
					t.Fatalf("got %q, %v, want %q", line, err, want)
				}
			}
			if line, err := in.ReadString('\n'); line != "\r\n" || err != nil {
				t.Errorf("in silence: got %q, %v", line, err)
			}
			f.docs <- []byte("!")
			if rest, err := io.ReadAll(in); strings.Trim(string(rest), "\r\n") != "" || err == nil {
				t.Errorf("at a cut: got %q, %v, want an error", rest, err)
			}
		})
	}
}

// TestForm_PiecesStandAlone_I3: a client that begins later can decode a piece without those before, also where these are alike.
func TestForm_PiecesStandAlone_I3(t *testing.T) {
	docs := [][]byte{[]byte(strings.Repeat("{\"a\":\"one and the same\"}\n", 100))}
	gzipHead := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	for coding, head := range map[string][]byte{"gzip": gzipHead, "zstd": nil} {
		form := edge.NewCoded(coding)
		for range 20 {
			piece, err := form.Append(head[:len(head):len(head)], slices.Values(docs))
			if err != nil || len(piece) > len(docs[0])/10 {
				t.Fatalf("%s: %d bytes, %v", coding, len(piece), err)
			}
			got := make([]byte, len(docs[0]))
			if _, err := io.ReadFull(decoded(t, bytes.NewReader(piece), coding), got); err != nil || !bytes.Equal(got, docs[0]) {
				t.Fatalf("%s: got %d bytes, %v", coding, len(got), err)
			}
		}
	}
}

// TestServer_CodedForAStalledClient: a client that stalls amid a response gets every document once, and an end that is right.
func TestServer_CodedForAStalledClient(t *testing.T) {
	t.Parallel()
	noise := make([]string, 40)
	for i := range noise { // it can't be made smaller by much
		bytes := make([]byte, 150<<10)
		rand.NewChaCha8([32]byte{byte(i)}).Read(bytes)
		noise[i] = hex.EncodeToString(bytes)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st := &track{docs: noise}
	r := serveOn(t, shallow{l}, open(st), edge.Options{})
	c, _ := askFor(t, r.addr, "/users?follow=0", "gzip")
	r.awaitStall(t)
	before := st.returned.Load()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if st.returned.Load() == before {
			return errors.New("the edge gave nothing back")
		}
		return nil
	})
	var want strings.Builder
	for i, doc := range noise {
		want.Write(stretch{}.doc(i, doc))
	}
	got, err := io.ReadAll(decoded(t, &body{conn: c}, "gzip"))
	if string(got) != want.String() || err != nil {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, want.Len())
	}
}

// TestServer_ManyPositionsAreNotCoded: who asks for its position after every few rows gets it then, so in no coding.
func TestServer_ManyPositionsAreNotCoded(t *testing.T) {
	t.Parallel()
	r := serve(t, open(&track{docs: strings.Split("aaaa", "")}), edge.Options{})
	c, head := askFor(t, r.addr, "/users?follow=0&positions=2", "gzip, zstd")
	if strings.Contains(head, "Content-Encoding") {
		t.Errorf("the head is %s", head)
	}
	if got := shape(t, c); got != "01<2>23<4>" {
		t.Errorf("got %s", got)
	}
}

// TestAccepted: a coding is one that the client asks for by name, the one that it likes best; gzip among equals.
func TestAccepted(t *testing.T) {
	for _, tt := range []struct {
		values []string
		want   string
	}{
		{nil, ""},
		{[]string{""}, ""},
		{[]string{"*"}, ""},
		{[]string{"identity"}, ""},
		{[]string{"br, deflate"}, ""},
		{[]string{"gzip"}, "gzip"},
		{[]string{"GZIP"}, "gzip"},
		{[]string{"gzip, deflate, br, zstd"}, "gzip"},
		{[]string{"zstd,gzip"}, "gzip"},
		{[]string{"zstd"}, "zstd"},
		{[]string{"br", "zstd"}, "zstd"},
		{[]string{"gzip;q=0.5, zstd;q=0.8"}, "zstd"},
		{[]string{"gzip;q=0, zstd;q=0.1"}, "zstd"},
		{[]string{"gzip; Q=0"}, ""},
		{[]string{"gzip;q=x"}, ""},
		{[]string{"x-gzip"}, ""},
		{[]string{"gzip;q=0.001"}, "gzip"},
	} {
		if got := edge.Accepted(tt.values...); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.values, got, tt.want)
		}
	}
}
