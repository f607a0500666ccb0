package edge

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
)

// Code is the stable name of a refusal, for programs.
type Code string

// Codes of refusals; the protocol lists them (package lockstep).
const (
	InvalidSince     Code = "invalid_since"
	InvalidCursor    Code = "invalid_cursor"
	InvalidRequest   Code = "invalid_request"
	UnknownRelation  Code = "unknown_relation"
	MethodNotAllowed Code = "method_not_allowed"
	SinceAhead       Code = "since_ahead"
	SinceTooOld      Code = "since_too_old"
	CursorGone       Code = "cursor_gone"
	HTTPVersion      Code = "http_version"
	NotReady         Code = "not_ready"
	TooManyClients   Code = "too_many_clients"
	Internal         Code = "internal"
)

// statuses is the only table from code to status.
var statuses = map[Code]int{
	InvalidSince: http.StatusBadRequest, InvalidCursor: http.StatusBadRequest, InvalidRequest: http.StatusBadRequest,
	UnknownRelation: http.StatusNotFound, MethodNotAllowed: http.StatusMethodNotAllowed,
	SinceAhead: http.StatusConflict, SinceTooOld: http.StatusGone, CursorGone: http.StatusGone,
	HTTPVersion: http.StatusHTTPVersionNotSupported, NotReady: http.StatusServiceUnavailable,
	TooManyClients: http.StatusServiceUnavailable,
	Internal:       http.StatusInternalServerError,
}

// retryAfter is what a client that came too early is told, in seconds.
const retryAfter = 2

// Refusal is an answer instead of a stream. Message is for users; Cause, which
// may be nil, is for the log.
type Refusal struct {
	Code    Code
	Message string
	Cause   error
}

func (r *Refusal) Error() string {
	if r.Cause != nil {
		return string(r.Code) + ": " + r.Cause.Error()
	}
	return string(r.Code) + ": " + r.Message
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Cause }

// asRefusal makes any error one; an unknown one shows no detail.
func asRefusal(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return &Refusal{Code: Internal, Message: "internal error; try again later", Cause: err}
}

// write sends the refusal.
func (r *Refusal) write(w http.ResponseWriter) {
	status, ok := statuses[r.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	if status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD")
	}
	// A body that was not read must not be taken for the next request.
	h.Set("Connection", "close")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": string(r.Code), "message": r.Message}})
}
