package edge

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// parse reads a request for a relation: GET /{relation} or /{relation}/{since}.
// A name without a dot is a table of schema public; in one with dots the first
// ends the schema's name. What can't be a name is not refused here: no relation
// has it.
func parse(r *http.Request) (Request, *Refusal) {
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return Request{}, &Refusal{Code: InvalidRequest, Message: "a request for a stream has no body"}
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
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Request{}, &Refusal{Code: InvalidRequest, Message: "the query is malformed"}
	}
	values := query["since"]
	if hasPath {
		if strings.Contains(inPath, "/") {
			return Request{}, unknown()
		}
		values = append(values, inPath)
	}
	if req.Since, err = since(values); err != nil {
		return Request{}, &Refusal{Code: InvalidSince, Message: "since is one decimal integer from 0 to 18446744073709551615"}
	}
	return req, options(query, &req)
}

func unknown() *Refusal {
	return &Refusal{Code: UnknownRelation, Message: "there is no such relation; GET / lists them"}
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
		return &Refusal{Code: InvalidRequest, Message: "follow is 0 or 1"}
	}
	switch v := query["format"]; {
	case len(v) == 0 || len(v) == 1 && v[0] == "lockstep":
	case len(v) == 1 && v[0] == "flat":
		req.Flat = true
	default:
		return &Refusal{Code: InvalidRequest, Message: "format is lockstep or flat"}
	}
	return nil
}
