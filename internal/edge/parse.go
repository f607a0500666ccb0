package edge

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

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

// parameters reads the query's known parameters. Whatever else stands there is
// ignored, also where it is malformed: existing clients don't escape theirs.
func parameters(raw string) url.Values {
	query := url.Values{}
	for pair := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if unescaped, err := url.QueryUnescape(key); err == nil {
			key = unescaped
		}
		if key != "since" && key != "follow" && key != "format" {
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

func since(values []string) (uint64, error) {
	if len(values) == 0 {
		return 0, nil
	}
	if len(values) > 1 || values[0] == "" || values[0][0] < '0' || values[0][0] > '9' {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(values[0], 10, 64)
}

// options reads the parameters besides since; unknown ones are ignored.
func options(query url.Values, req *Request) *Refusal {
	switch v := query["follow"]; {
	case len(v) == 0 || len(v) == 1 && v[0] == "1":
	case len(v) == 1 && v[0] == "0":
		req.Follow = false
	default:
		return &Refusal{Code: InvalidRequest, Message: "follow must be 0 or 1"}
	}
	switch v := query["format"]; {
	case len(v) == 0 || len(v) == 1 && v[0] == "lockstep":
	case len(v) == 1 && v[0] == "flat":
		req.Flat = true
	default:
		return &Refusal{Code: InvalidRequest, Message: "format must be lockstep or flat"}
	}
	return nil
}
