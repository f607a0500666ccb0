package simtest_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"bridge/internal/simtest"

	"github.com/klauspost/compress/zstd"
)

func chunked(docs ...string) string {
	var b strings.Builder
	for _, d := range docs {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(d), d)
	}
	return b.String()
}

// readAll returns how many documents a stream with these bytes has, and how it ends.
func readAll(t *testing.T, bytes string) (int, error) {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		_, _ = io.WriteString(server, bytes)
		_ = server.Close()
	}()
	s := simtest.NewStream(client, simtest.Options{})
	defer s.Close()
	for n := 0; ; n++ {
		if _, err := s.Next(); err != nil {
			return n, err
		}
	}
}

const (
	aRow  = `{"txid":1,"current_xmin":2,"since":1,"deleted":false,"data":{"id":1}}` + "\n"
	aBeat = `{"control":true,"type":"heartbeat","timestamp":1,"since":2,"cursor":"a.b.1"}` + "\n"
)

// After a cut at any byte only whole documents were returned, and the error says where the cut was (I11).
func TestStream_CutAtEveryByte_I11(t *testing.T) {
	docs := []string{aRow, "\r\n", aBeat}
	all := chunked(docs...)
	ends := map[int]int{0: 0, len(chunked(docs[0])): 1, len(chunked(docs[:2]...)): 1, len(all): 2}
	whole := 0
	for i := range len(all) + 1 {
		n, between := ends[i]
		if between {
			whole = n
		}
		got, err := readAll(t, all[:i])
		if got != whole || between != errors.Is(err, simtest.ErrCut) || between == errors.Is(err, simtest.ErrTorn) {
			t.Errorf("cut at byte %d: got %d documents and %v, want %d", i, got, err, whole)
		}
	}
}

func TestStream_HoldsTheServerToTheLetter_I11(t *testing.T) {
	for name, bytes := range map[string]string{
		"two documents in a chunk":   chunked(aRow + aRow),
		"half a document in a chunk": chunked(aRow[:20]),
		"half of it with a newline":  chunked(aRow[:20] + "\n"),
		"no newline":                 chunked(strings.TrimSuffix(aRow, "\n")),
		"blank line":                 chunked("\n"),
		"a newline more":             chunked(aRow + "\n"),
		"not a row":                  chunked("{}\n"),
		"text of an error":           "404 page not found\n",
		"size too small":             "3\r\n" + aRow + "\r\n",
		"size in capitals":           "4A\r\n" + aRow + "\r\n",
	} {
		_, err := readAll(t, bytes)
		var odd *simtest.OddError
		if !errors.As(err, &odd) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n, err := readAll(t, chunked(aRow)+"0\r\n\r\n"); n != 1 || !errors.Is(err, io.EOF) || errors.Is(err, simtest.ErrCut) {
		t.Errorf("final chunk: got %d documents and %v", n, err)
	}
}

// By HTTP/2, too, a client gets whole documents, and knows an end from a cut (I11).
func TestStream_HTTP2_I11(t *testing.T) {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("a request by %s", r.Proto)
		}
		cut := r.URL.Query().Get("cursor")
		_, _ = io.WriteString(w, aRow+"\r\n"+aBeat)
		if cut == "within" {
			_, _ = io.WriteString(w, aRow[:20])
		}
		_ = http.NewResponseController(w).Flush()
		if cut != "" {
			panic(http.ErrAbortHandler)
		}
	}))
	srv.Config.Protocols = &p
	srv.Start()
	defer srv.Close()
	for cut, want := range map[string]error{"": io.EOF, "between": simtest.ErrCut, "within": simtest.ErrTorn} {
		s, err := simtest.Dial(srv.Listener.Addr().String(), "t", 0, simtest.Options{HTTP2: true, Exact: true, Cursor: cut})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; err == nil; n++ {
			_, err = s.Next()
		}
		s.Close()
		if n != 3 || !errors.Is(err, want) || cut == "" && errors.Is(err, simtest.ErrCut) {
			t.Errorf("cut %q: %d documents and %v, want 2 and %v", cut, n-1, err, want)
		}
	}
}

// In a coding, too, a client gets whole documents, and knows an end from a cut (I11).
func TestStream_Coded_I11(t *testing.T) {
	code := map[string]func(string) []byte{
		"gzip": func(text string) []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = io.WriteString(w, text)
			_ = w.Flush()
			return b.Bytes()
		},
		"zstd": func(text string) []byte {
			w, _ := zstd.NewWriter(nil)
			return w.EncodeAll([]byte(text), nil)
		},
	}
	for coding, code := range code {
		for within, want := range map[string]error{"": simtest.ErrCut, aRow[:20]: simtest.ErrTorn} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Accept-Encoding"); got != coding || r.URL.Query().Has("positions") {
					t.Errorf("a request for %s with the coding %q", r.URL, got)
				}
				w.Header().Set("Content-Encoding", coding)
				_, _ = w.Write(code(aRow + "\r\n" + aBeat + within))
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}))
			s, err := simtest.Dial(srv.Listener.Addr().String(), "t", 0, simtest.Options{Coding: coding, Exact: true})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; err == nil; n++ {
				_, err = s.Next()
			}
			s.Close()
			srv.Close()
			if n != 3 || !errors.Is(err, want) {
				t.Errorf("%s, cut after %q: %d documents and %v, want 2 and %v", coding, within, n-1, err, want)
			}
		}
	}
}
