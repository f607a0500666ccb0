package edge_test

import (
	"bufio"
	"context"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/edge"
	"bridge/lockstep"

	"github.com/rs/zerolog"
)

// ask sends one request, by its target as in the request line, to a server
// whose source refuses everything with 503, so that what it was asked for is
// seen.
func ask(t *testing.T, method, target string) (status int, code string, asked []edge.Request, ok bool) {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
	if err != nil {
		return 0, "", nil, false
	}
	src := &fake{open: func(context.Context, edge.Request) (edge.Stream, error) {
		return nil, &edge.Refusal{Code: edge.NotReady, Message: "test"}
	}}
	s := edge.New(src, edge.Options{Metrics: http.NotFoundHandler()}, edge.NewMetrics(nil), zerolog.Nop())
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code >= 300 && w.Code < 400 || w.Header().Get("Location") != "" {
		t.Errorf("%s is redirected to %q", target, w.Header().Get("Location"))
	}
	var doc struct {
		Error struct{ Code, Message string }
	}
	if ct := w.Header().Get("Content-Type"); w.Code != 200 && ct == "application/json" {
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.Error.Code == "" || doc.Error.Message == "" {
			t.Errorf("%s: body %q: %v", target, w.Body, err)
		}
	}
	return w.Code, doc.Error.Code, src.requests(), true
}

// TestParse_Requests: what each form asks the source for.
func TestParse_Requests(t *testing.T) {
	t.Parallel()
	public := func(table string, since uint64) edge.Request {
		return edge.Request{Schema: "public", Table: table, Since: since, Follow: true}
	}
	with := func(r edge.Request, change func(*edge.Request)) edge.Request { change(&r); return r }
	for target, want := range map[string]edge.Request{
		"/users":                            public("users", 0),
		"/users?since=0":                    public("users", 0),
		"/users?since=42":                   public("users", 42),
		"/users/42":                         public("users", 42),
		"/users?since=18446744073709551615": public("users", math.MaxUint64),
		"/users?since=%34%32":               public("users", 42),
		"/users?since=7&x=y&x=z&follow_=0":  public("users", 7),
		"/users?opt=%zz&since=7&a;b=c&&=&%": public("users", 7),
		"/users?since=7&Since=8&SINCE=9":    public("users", 7),
		"/users/":                           public("users", 0),
		"/users/?since=42":                  public("users", 42),
		"/users/42/":                        public("users", 42),
		"/users%2F":                         public("users/", 0),
		"/users%2F/":                        public("users/", 0),
		"/public.users":                     public("users", 0),
		"/public.metrics":                   public("metrics", 0),
		"/public._flat/7":                   public("_flat", 7),
		"/public.public.users":              public("public.users", 0),
		"/.%22a.b%22.t":                     {Schema: "a.b", Table: "t", Follow: true},
		"/.\"a.b\".t/":                      {Schema: "a.b", Table: "t", Follow: true},
		"/app.users":                        {Schema: "app", Table: "users", Follow: true},
		"/a.b.c":                            {Schema: "a", Table: "b.c", Follow: true},
		"/users?follow=0":                   with(public("users", 0), func(r *edge.Request) { r.Follow = false }),
		"/users?follow=1":                   public("users", 0),
		"/users?format=flat":                with(public("users", 0), func(r *edge.Request) { r.Flat = true }),
		"/users?format=lockstep":            public("users", 0),
		"/users?cursor=":                    with(public("users", 0), func(r *edge.Request) { r.Positions = math.MaxInt }),
		"/users?cursor=1.i.e.7.6.5&since=3": with(public("users", 3), func(r *edge.Request) {
			r.Positions, r.Cursor = math.MaxInt, lockstep.Cursor{Incarnation: "i", Epoch: "e", Seq: 7, Holds: 6, Since: 5}
		}),
		"/users?cursor=i.e.7&positions=5": with(public("users", 0), func(r *edge.Request) {
			r.Positions, r.Cursor = 5, lockstep.Cursor{Incarnation: "i", Epoch: "e", Seq: 7, Old: true}
		}),
		"/users?positions=1":          with(public("users", 0), func(r *edge.Request) { r.Positions = 1 }),
		"/users?limit=10000&follow=0": with(public("users", 0), func(r *edge.Request) { r.Limit, r.Follow = 10000, false }),
		"/users?wait_for=9&follow=0":  with(public("users", 0), func(r *edge.Request) { r.Shown, r.ShownWithin, r.Follow = 9, 10*time.Second, false }),
		"/users/3?wait_for=9&timeout=300&follow=0": with(public("users", 3), func(r *edge.Request) {
			r.Shown, r.ShownWithin, r.Follow = 9, 5*time.Minute, false
		}),
		"http://elsewhere/users?since=5":       public("users", 5),
		"/%75sers":                             public("users", 0),
		"/a%2Fb":                               public("a/b", 0),
		"/a%2fb/9":                             public("a/b", 9),
		"/a%00b":                               public("a\x00b", 0),
		"/%22x%22":                             public(`"x"`, 0),
		"/a'b":                                 public("a'b", 0),
		"/a%3Bdrop%20table%20users--":          public("a;drop table users--", 0),
		"/*":                                   public("*", 0),
		"/%3E":                                 public(">", 0),
		"/a%2f..%2fb":                          {Schema: "a/", Table: "./b", Follow: true},
		"/lockstep.public.t":                   {Schema: "lockstep", Table: "public.t", Follow: true},
		"/healthz2":                            public("healthz2", 0),
		"/" + strings.Repeat("n", 8000) + "/1": public(strings.Repeat("n", 8000), 1),
	} {
		status, _, asked, ok := ask(t, "GET", target)
		if !ok || status != http.StatusServiceUnavailable || !slices.Equal(asked, []edge.Request{want}) {
			t.Errorf("%s: status %d, asked for %+v, want %+v", target, status, asked, want)
		}
	}
}

// TestParse_Refusals: nothing is asked of the source for what can't be right.
func TestParse_Refusals(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"/users?since=-1":                         "400 invalid_since",
		"/users?since=+1":                         "400 invalid_since",
		"/users?since=abc":                        "400 invalid_since",
		"/users?since=":                           "400 invalid_since",
		"/users?since":                            "400 invalid_since",
		"/users?since=1.0":                        "400 invalid_since",
		"/users?since=1e3":                        "400 invalid_since",
		"/users?since=0x10":                       "400 invalid_since",
		"/users?since=1_000":                      "400 invalid_since",
		"/users?since=%201":                       "400 invalid_since",
		"/users?since=1%00":                       "400 invalid_since",
		"/users?since=%zz":                        "400 invalid_since",
		"/users?since=1;follow=0":                 "400 invalid_since",
		"/users?since=18446744073709551616":       "400 invalid_since",
		"/users?since=99999999999999999999999999": "400 invalid_since",
		"/users?since=1&since=1":                  "400 invalid_since",
		"/users?since=1&%73ince=2":                "400 invalid_since",
		"/users/1?since=1":                        "400 invalid_since",
		"/users//":                                "400 invalid_since",
		"/users/1//":                              "404 unknown_relation",
		"/users/abc":                              "400 invalid_since",
		"/users/-1":                               "400 invalid_since",
		"/users?follow=2":                         "400 invalid_request",
		"/users?follow=":                          "400 invalid_request",
		"/users?follow=0&follow=0":                "400 invalid_request",
		"/users?format=xml":                       "400 invalid_request",
		"/users?format=flat&format=flat":          "400 invalid_request",
		"/users?cursor=x":                         "400 invalid_cursor",
		"/users?cursor=2.i.e.7.6.5":               "400 invalid_cursor",
		"/users?cursor=&cursor=":                  "400 invalid_cursor",
		"/users?cursor=%zz":                       "400 invalid_cursor",
		"/users?positions=0":                      "400 invalid_request",
		"/users?positions=":                       "400 invalid_request",
		"/users?positions=1&positions=1":          "400 invalid_request",
		"/users?limit=10":                         "400 invalid_request",
		"/users?limit=0&follow=0":                 "400 invalid_request",
		"/users?limit=10001&follow=0":             "400 invalid_request",
		"/users?limit=x&follow=0":                 "400 invalid_request",
		"/users?wait_for=9":                       "400 invalid_request",
		"/users?wait_for=0&follow=0":              "400 invalid_request",
		"/users?wait_for=-9&follow=0":             "400 invalid_request",
		"/users?wait_for=9&timeout=0&follow=0":    "400 invalid_request",
		"/users?wait_for=9&timeout=301&follow=0":  "400 invalid_request",
		"/users?wait_for=9&timeout=5s&follow=0":   "400 invalid_request",
		"/users?timeout=5&follow=0":               "400 invalid_request",
		"//x":                                     "404 unknown_relation",
		"//":                                      "404 unknown_relation",
		"/a/../b":                                 "404 unknown_relation",
		"/a/1/2":                                  "404 unknown_relation",
		"/./x/y":                                  "404 unknown_relation",
		"///":                                     "404 unknown_relation",
		"/..":                                     "404 unknown_relation",
		"/../..":                                  "404 unknown_relation",
		"/%2e%2e%2fetc%2fpasswd":                  "404 unknown_relation",
		"/.users":                                 "404 unknown_relation",
		"/.%22users%22.t":                         "404 unknown_relation",
		"/.%22a.b%22":                             "404 unknown_relation",
		"/_flat":                                  "404 unknown_relation",
		"/_clients/5":                             "404 unknown_relation",
		"/_ticket?since=5":                        "404 unknown_relation",
		"/healthz/5":                              "404 unknown_relation",
		"/users.":                                 "404 unknown_relation",
	} {
		status, code, asked, ok := ask(t, "GET", target)
		if got := http.StatusText(status); !ok || strings.TrimSpace(want) != strings.TrimSpace(join(status, code)) || len(asked) != 0 {
			t.Errorf("%s: %d %s %q, asked for %+v, want %s", target, status, code, got, asked, want)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"} {
		if status, code, asked, _ := ask(t, method, "/users"); status != 405 || code != "method_not_allowed" || len(asked) != 0 {
			t.Errorf("%s: %d %s, asked for %+v", method, status, code, asked)
		}
	}
	if status, _, asked, _ := ask(t, "HEAD", "/users?since=x"); status != 400 || len(asked) != 0 {
		t.Errorf("HEAD: %d", status)
	}
}

func join(status int, code string) string {
	return string([]byte{byte('0' + status/100), byte('0' + status/10%10), byte('0' + status%10)}) + " " + code
}

// FuzzParse: whatever the request line, the answer is one of the protocol's,
// nothing is redirected, and the source is asked at most once, for what the
// path says.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"/a?since=1", "/a/1", "//", "/a/../b", "/%00", "/a.b?follow=0&format=flat", "*", "http://h/x", "/a?since=%zz", "/?x", "/0??follow=0&", "/metrics", "/a?cursor=1.i.e.7.6.5&positions=2", "/a?follow=0&limit=3&wait_for=5&timeout=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n") {
			return
		}
		status, code, asked, ok := ask(t, "GET", target)
		if !ok {
			return
		}
		switch join(status, code) {
		case "200 ", "404 ", "400 invalid_since", "400 invalid_cursor", "400 invalid_request", "404 unknown_relation":
			if len(asked) != 0 {
				t.Errorf("%q: %d %s, but the source was asked for %+v", target, status, code, asked)
			}
		case "503 not_ready":
			if len(asked) != 1 {
				t.Fatalf("%q: the source was asked for %+v", target, asked)
			}
			_, query, _ := strings.Cut(target, "?")
			noFollow := slices.Contains(strings.Split(query, "&"), "follow=0")
			if r := asked[0]; r.Schema == "" || r.Table == "" || r.Follow && noFollow {
				t.Errorf("%q: the source was asked for %+v", target, r)
			}
		default:
			t.Errorf("%q: %d %s", target, status, code)
		}
	})
}

// TestParse_SlashAtTheEnd: it changes nothing, also for what is no relation (issue 14, number 10). A slash in a name is
// none at the end.
func TestParse_SlashAtTheEnd(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"/healthz": "200 ", "/healthz/": "200 ", "/readyz/": "200 ", "/metrics/": "404 ", "/metrics/?a=b": "404 ", "/": "200 ",
		"/healthz%2F": "503 not_ready", "/%2F": "503 not_ready", "/healthz//": "404 unknown_relation", "//": "404 unknown_relation",
	} {
		if status, code, _, ok := ask(t, "GET", target); !ok || join(status, code) != want {
			t.Errorf("%s: %s, want %s", target, join(status, code), want)
		}
	}
}
