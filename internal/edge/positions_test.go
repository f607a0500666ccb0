package edge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/internal/testenv"
	"bridge/lockstep"
)

// track is a stream of some documents, in parts of four, and then the end. A document without text is a heartbeat.
type track struct {
	docs []string
	// last is where the last part begins, next where the next one does.
	last, next int
	page       edge.Page
	// returned counts parts that were given back.
	returned atomic.Int64
}

func (*track) Incarnation() string { return "i1" }
func (*track) Floor() uint64       { return 7 }
func (*track) Close()              {}

func (s *track) Page(context.Context, int) (edge.Page, error) { return s.page, nil }

func (s *track) Next(context.Context, time.Duration) (edge.Part, error) {
	from := s.next
	s.last = from
	if s.next = min(len(s.docs), from+4); s.next == len(s.docs) {
		return stretch{s.docs[from:], from}, io.EOF
	}
	return stretch{s.docs[from:s.next], from}, nil
}

func (s *track) Return(n int) (int, error) {
	s.next = s.last + n
	s.returned.Add(1)
	return stretch{s.docs[s.last:s.next], 0}.Rows(), nil
}

// stretch is a part of a track, from a document on.
type stretch struct {
	docs []string
	from int
}

func (p stretch) Render(f edge.Form) (data []byte, begin int, ends []uint32, err error) {
	var docs [][]byte
	for i, doc := range p.docs {
		docs = append(docs, p.doc(i, doc))
	}
	return render(nil, docs, f)
}

func (p stretch) Len() int       { return len(p.docs) }
func (p stretch) Size(n int) int { return len(p.doc(n, p.docs[n])) }

func (p stretch) doc(i int, text string) []byte {
	return fmt.Appendf(nil, `{"n":%d,"x":%q}`+"\n", p.from+i, text)
}

func (p stretch) Row(n int) bool { return p.docs[n] != "" }

func (p stretch) Rows() (n int) {
	for i := range p.docs {
		if p.Row(i) {
			n++
		}
	}
	return n
}

func (stretch) Completed() bool { return false }

func (p stretch) Position(n int) lockstep.Cursor {
	return lockstep.Cursor{Incarnation: "i1", Epoch: "e1", Seq: uint64(p.from + n), Holds: 3, Since: 5}
}

// shape reads an answer to its end, and returns what came: a digit for each row (its number's last), h for a heartbeat, and
// <n> for a position.
func shape(t *testing.T, c *conn) string {
	t.Helper()
	var b strings.Builder
	for next := 0; ; {
		doc, err := c.chunk()
		if err != nil {
			t.Fatalf("after %s: %v", b.String(), err)
		}
		if len(doc) == 0 {
			return b.String()
		}
		if m, err := lockstep.Decode(doc); err == nil && m.Control != nil && m.Control.Type == lockstep.PositionType {
			cursor, err := lockstep.ParseCursor(m.Control.Cursor)
			if err != nil || cursor.Seq != uint64(next) || m.Control.Since != 5 {
				t.Errorf("after %d documents came the position %s", next, doc)
			}
			fmt.Fprintf(&b, "<%d>", next)
			continue
		}
		if want := fmt.Sprintf(`{"n":%d,`, next); !strings.HasPrefix(string(doc), want) {
			t.Fatalf("got %.40q, want %s", doc, want)
		}
		if strings.HasSuffix(string(doc), `"x":""}`+"\n") {
			b.WriteByte('h')
		} else {
			fmt.Fprint(&b, next%10)
		}
		next++
	}
}

// TestServer_Positions: who asked is told its position after so many rows, or so many bytes; nobody else is. A heartbeat counts
// as a position.
func TestServer_Positions(t *testing.T) {
	t.Parallel()
	small := strings.Split("aaaaaaaaaaaa", "")
	beats := []string{"a", "a", "", "a", "a", "", "", "a", "a", "a", "a"}
	large := strings.Split(strings.Repeat(strings.Repeat("b", 200<<10)+",", 9)+"b", ",")
	huge := []string{strings.Repeat("c", 2<<20), "a", strings.Repeat("c", 2<<20)}
	for _, tt := range []struct {
		query string
		docs  []string
		want  string
	}{
		{"", small, "012345678901"},
		{"", large, "0123456789"},
		{"?cursor=", small, "012345678901"},
		{"?cursor=1.i.e.1.2.3", small, "012345678901"},
		{"?positions=5", small, "01234<5>56789<10>01"},
		{"?positions=4", small, "0123<4>4567<8>8901<12>"},
		{"?positions=1&cursor=", small[:3], "0<1>1<2>2<3>"},
		{"?positions=3", beats, "01h34hh789<10>0"},
		{"?positions=2", beats, "01<2>h34<5>hh78<9>90<11>"},
		{"?cursor=", large, "012<3>345<6>678<9>9"},
		{"?cursor=&positions=2", large, "01<2>23<4>45<6>67<8>89<10>"},
		{"?cursor=", huge, "0<1>12<3>"},
	} {
		r := serve(t, open(&track{docs: tt.docs}), edge.Options{})
		if got := shape(t, get(t, r.addr, "/users"+tt.query)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.query, got, tt.want)
		}
	}
}

// TestServer_PositionsOfAStalledClient: a client that stalls gets every document and every position once, in order.
func TestServer_PositionsOfAStalledClient(t *testing.T) {
	t.Parallel()
	docs := strings.Split(strings.TrimSuffix(strings.Repeat(strings.Repeat("d", 300<<10)+",", 40), ","), ",")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st := &track{docs: docs}
	r := serveOn(t, shallow{l}, open(st), edge.Options{})
	c := get(t, r.addr, "/users?positions=3")
	r.awaitStall(t)
	before := st.returned.Load()
	testenv.Eventually(t, testenv.Patience(), func() error {
		if st.returned.Load() == before {
			return errors.New("the edge gave nothing back")
		}
		return nil
	})
	var want strings.Builder
	for i := range docs {
		fmt.Fprint(&want, i%10)
		if (i+1)%2 == 0 { // two are more than 512 KiB
			fmt.Fprintf(&want, "<%d>", i+1)
		}
	}
	if got := shape(t, c); got != want.String() {
		t.Errorf("got %s, want %s", got, want.String())
	}
}

// TestServer_Pages: a page says where the next begins, may be kept for a minute, and has a tag. One that ends with the whole
// state is none of that.
func TestServer_Pages(t *testing.T) {
	t.Parallel()
	next := &lockstep.Cursor{Incarnation: "i1", Epoch: "e1", Seq: 3, Holds: 3, Since: 5}
	const etag = `W/"tag-lockstep"`
	for _, tt := range []struct {
		query, match string
		next         *lockstep.Cursor
		status       string
		headers      []string
		absent       []string
		shape        string
	}{
		{
			"?follow=0&limit=3", "", next, "200", []string{
				"Cache-Control: public, max-age=60", "ETag: " + etag, "Vary: Accept, Accept-Encoding, Origin",
				`Link: <?cursor=1.i1.e1.3.3.5&follow=0&limit=3>; rel="next"`, "Lockstep-Incarnation: i1", "Lockstep-Floor: 7",
			}, nil, "012",
		},
		{
			"?follow=0&limit=3&cursor=&positions=2&format=lockstep", "", next, "200",
			[]string{`Link: <?cursor=1.i1.e1.3.3.5&follow=0&limit=3&positions=2>; rel="next"`},
			nil, "01<2>2<3>",
		},
		{"?follow=0&limit=3&positions=3", "", next, "200", nil, nil, "012<3>"},
		{"?follow=0&limit=3", `"x", ` + etag, next, "304", []string{"ETag: " + etag, "Cache-Control: public, max-age=60"}, nil, ""},
		{"?follow=0&limit=3", `"x"`, next, "200", nil, nil, "012"},
		{"?follow=0&limit=3", etag, nil, "200", []string{"Cache-Control: no-store", "Vary: Accept, Accept-Encoding, Origin"}, []string{"Link:", "ETag:"}, "012"},
		{"?follow=0", "", next, "200", []string{"Cache-Control: no-store"}, []string{"Link:", "ETag:", "Vary:"}, "012"},
	} {
		st := &track{docs: []string{"a", "a", "a"}, page: edge.Page{Next: tt.next, Tag: "tag"}}
		r := serve(t, open(st), edge.Options{})
		for _, method := range []string{"HEAD", "GET"} {
			c := dial(t, r.addr)
			c.send(t, fmt.Sprintf("%s /users%s HTTP/1.1\r\nHost: x\r\nIf-None-Match: %s\r\nConnection: close\r\n\r\n", method, tt.query, tt.match))
			head := c.head(t)
			if !strings.HasPrefix(head, "HTTP/1.1 "+tt.status+" ") {
				t.Errorf("%s %s: %s, want %s", method, tt.query, head, tt.status)
			}
			for _, h := range tt.headers {
				if !strings.Contains(strings.ToLower(head), strings.ToLower("\r\n"+h+"\r\n")) {
					t.Errorf("%s %s has no %s:\n%s", method, tt.query, h, head)
				}
			}
			for _, h := range tt.absent {
				if strings.Contains(strings.ToLower(head), strings.ToLower("\r\n"+h)) {
					t.Errorf("%s %s has %s:\n%s", method, tt.query, h, head)
				}
			}
			if method == "HEAD" || tt.status == "304" {
				if rest, err := io.ReadAll(c.r); len(rest) > 0 || err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("%s %s: a body of %d bytes, %v", method, tt.query, len(rest), err)
				}
				continue
			}
			if got := shape(t, c); got != tt.shape {
				t.Errorf("%s: got %s, want %s", tt.query, got, tt.shape)
			}
		}
	}
}
