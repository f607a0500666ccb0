package edge

import (
	"cmp"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridge/lockstep"
)

// split takes a request's path apart: /{name} or /{name}/{since}. A slash at the
// end changes nothing. since has the decimal as it stands there, or is empty. It
// splits before it unescapes, because a name may have slashes.
func split(r *http.Request) (name string, since []string, ok bool) {
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	if last := len(parts) - 1; last > 0 && parts[last] == "" {
		parts = parts[:last]
	}
	name, err := url.PathUnescape(parts[0])
	return name, parts[1:], err == nil && name != "" && len(parts) <= 2
}

// parse reads a request for the relation with the name, as split returned it. A
// name that can't be that of a relation is not refused here: no relation has it.
func parse(r *http.Request, name string, inPath []string) (Request, *Refusal) {
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return Request{}, &Refusal{Code: InvalidRequest, Message: "a request for a stream must not have a body"}
	}
	schema, table, err := lockstep.ParseRelation(name)
	if err != nil {
		return Request{}, &Refusal{Code: UnknownRelation, Message: "there is no such relation: " + err.Error() + "; GET / lists the relations"}
	}
	req := Request{Schema: schema, Table: table, Follow: true}
	query := parameters(r.URL.RawQuery)
	if req.Since, err = since(append(query["since"], inPath...)); err != nil {
		return Request{}, &Refusal{Code: InvalidSince, Message: "since must be one decimal integer from 0 to 18446744073709551615, given once: /relation?since=N or /relation/N"}
	}
	refusal := options(query, &req)
	return req, refusal
}

// known are the parameters that the edge knows.
var known = []string{"since", "cursor", "positions", "follow", "limit", "wait_for", "timeout", "format"}

// parameters reads the query's known parameters. Whatever else stands there is
// ignored, also where it is malformed: existing clients don't escape theirs.
func parameters(raw string) url.Values {
	query := url.Values{}
	for pair := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if unescaped, err := url.QueryUnescape(key); err == nil {
			key = unescaped
		}
		if !slices.Contains(known, key) {
			continue
		}
		if unescaped, err := url.QueryUnescape(value); err == nil {
			value = unescaped // else it is no valid value as it is
		}
		query.Add(key, value)
	}
	return query
}

func unknown() *Refusal {
	return &Refusal{Code: UnknownRelation, Message: "there is no such relation; GET / lists the relations"}
}

// since reads a decimal that may be given once; without one it is 0.
func since(values []string) (uint64, error) {
	if len(values) == 0 {
		return 0, nil
	}
	if len(values) > 1 || values[0] == "" || values[0][0] < '0' || values[0][0] > '9' {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(values[0], 10, 64)
}

// Bounds of parameters.
const (
	maxPage = 10_000
	maxWait = 5 * time.Minute
	// defaultWait is how long a request waits for its transaction if it does not say.
	defaultWait = 10 * time.Second
)

// options reads the parameters besides since; unknown ones are ignored.
func options(query url.Values, req *Request) *Refusal {
	switch v := query["follow"]; {
	case len(v) == 0 || len(v) == 1 && v[0] == "1":
	case len(v) == 1 && v[0] == "0":
		req.Follow = false
	default:
		return invalid("follow must be 0 or 1")
	}
	switch v := query["format"]; {
	case len(v) == 0 || len(v) == 1 && v[0] == "lockstep":
	case len(v) == 1 && v[0] == "flat":
		req.Flat = true
	default:
		return invalid("format must be lockstep or flat")
	}
	if refusal := cursor(query, req); refusal != nil {
		return refusal
	}
	limit, ok := number(query["limit"], 1, maxPage)
	if !ok || limit > 0 && req.Follow {
		return invalid("limit must be a number of rows from 1 to 10000, with follow=0")
	}
	req.Limit = int(limit)
	req.Shown, ok = number(query["wait_for"], 1, math.MaxUint64)
	if !ok || req.Shown > 0 && req.Follow {
		return invalid("wait_for must be a transaction ID, with follow=0")
	}
	seconds, ok := number(query["timeout"], 1, uint64(maxWait.Seconds()))
	if !ok || seconds > 0 && req.Shown == 0 {
		return invalid("timeout must be a number of seconds from 1 to 300, with wait_for")
	}
	if req.Shown > 0 {
		req.ShownWithin = cmp.Or(time.Duration(seconds)*time.Second, defaultWait)
	}
	return nil
}

// cursor reads what asks for positions.
func cursor(query url.Values, req *Request) *Refusal {
	if v := query["cursor"]; len(v) > 0 {
		req.Positions = math.MaxInt
		if len(v) > 1 {
			return &Refusal{Code: InvalidCursor, Message: "cursor must be given once"}
		}
		if v[0] != "" {
			c, err := lockstep.ParseCursor(v[0])
			if err != nil {
				return &Refusal{Code: InvalidCursor, Message: "cursor must be one that a position or a heartbeat had, or empty", Cause: err}
			}
			req.Cursor = c
		}
	}
	rows, ok := number(query["positions"], 1, math.MaxInt32)
	if !ok {
		return invalid("positions must be a number of rows, at least 1")
	}
	if rows > 0 {
		req.Positions = int(rows)
	}
	return nil
}

// number reads a parameter that may be missing, and then is 0.
func number(values []string, least, most uint64) (n uint64, ok bool) {
	if len(values) == 0 {
		return 0, true
	}
	n, err := since(values)
	return n, err == nil && least <= n && n <= most
}

func invalid(message string) *Refusal { return &Refusal{Code: InvalidRequest, Message: message} }
