package edge

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// parse reads a request for a relation: GET /{relation} or /{relation}/{since}.
// A name without a dot is a table of schema public; in one with dots the first
// ends the schema's name. What else can't be a name is not refused here: no
// relation has it.
func parse(r *http.Request) (Request, *Refusal) {
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return Request{}, &Refusal{Code: InvalidRequest, Message: "a request for a stream must not have a body"}
	}
	name, inPath, hasPath := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	name, err := url.PathUnescape(name)
	if err != nil || name == "" {
		return Request{}, unknown()
	}
	req := Request{Schema: "public", Table: name, Follow: true}
	if schema, table, ok := strings.Cut(name, "."); ok {
		req.Schema, req.Table = schema, table
	}
	if req.Schema == "" || req.Table == "" {
		return Request{}, unknown()
	}
	query := parameters(r.URL.RawQuery)
	values := query["since"]
	if hasPath {
		if strings.Contains(inPath, "/") {
			return Request{}, unknown()
		}
		values = append(values, inPath)
	}
	if req.Since, err = since(values); err != nil {
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
