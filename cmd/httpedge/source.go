package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"bridge/internal/edge"
	"bridge/internal/replay"
	"bridge/lockstep"
)

var _ edge.Source = source{}

// source makes a hub an edge.Source.
type source struct{ hub *replay.Hub }

// Open implements edge.Source.
func (s source) Open(ctx context.Context, req edge.Request) (edge.Stream, error) {
	r, err := s.hub.Open(ctx, replay.Request{
		Schema: req.Schema, Table: req.Table, Since: req.Since, Cursor: req.Cursor, Follow: req.Follow,
		Shown: req.Shown, ShownWithin: req.ShownWithin,
	})
	if err != nil {
		return nil, refusal(err)
	}
	return reader{r}, nil
}

// refusal turns the hub's error into what the client is told.
func refusal(err error) error {
	var tooOld *replay.TooOldError
	switch {
	case errors.Is(err, replay.ErrUnknownRelation):
		return &edge.Refusal{Code: edge.UnknownRelation, Message: "there is no such relation; GET / lists the relations", Cause: err}
	case errors.Is(err, replay.ErrSinceAhead):
		return &edge.Refusal{Code: edge.SinceAhead, Message: "since is above every position that this source gave out; drop your rows and ask with since=0", Cause: err}
	case errors.As(err, &tooOld):
		return &edge.Refusal{Code: edge.SinceTooOld, Message: fmt.Sprintf("the oldest position to resume from is %d; drop your rows and ask with since=0", tooOld.Floor), Cause: err}
	case errors.Is(err, replay.ErrCursorGone):
		return &edge.Refusal{Code: edge.CursorGone, Message: "the stream no longer has the place of the cursor; drop your rows and ask with since=0", Cause: err}
	case errors.Is(err, replay.ErrNotShown):
		return &edge.Refusal{Code: edge.NotReady, Message: "the transaction of wait_for is not shown yet; ask again", Cause: err}
	case errors.Is(err, replay.ErrNotReady):
		return &edge.Refusal{Code: edge.NotReady, Message: "the relation can't be served now; try again later", Cause: err}
	}
	return err
}

type reader struct{ *replay.Reader }

// Next implements edge.Stream.
func (s reader) Next(ctx context.Context, wait time.Duration) (edge.Part, error) {
	p, err := s.Reader.Next(ctx, wait)
	if p.Empty() {
		return nil, err
	}
	return p, err
}

// Page implements edge.Stream.
func (s reader) Page(ctx context.Context, rows int) (edge.Page, error) {
	p, err := s.Reader.Page(ctx, rows)
	if err != nil {
		return edge.Page{}, refusal(err)
	}
	return edge.Page{Next: p.Next, Tag: p.Tag}, nil
}

// listed is one relation in the document of GET /.
type listed struct {
	// Relation is its name in requests.
	Relation string          `json:"relation"`
	History  string          `json:"history"`
	Schema   json.RawMessage `json:"schema,omitempty"`
	// Heartbeat is the last one.
	Heartbeat json.RawMessage `json:"heartbeat,omitempty"`
}

// List implements edge.Source.
func (s source) List(ctx context.Context) ([]byte, error) {
	relations, err := s.hub.List(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	out := []listed{}
	for _, r := range relations {
		l := listed{Relation: lockstep.RelationName(r.Schema, r.Table), History: "latest", Schema: r.Columns, Heartbeat: r.Heartbeat}
		if r.Log {
			l.History = "log"
		}
		out = append(out, l)
	}
	doc, err := json.MarshalIndent(map[string]any{"relations": out}, "", "  ")
	return append(doc, '\n'), err
}

// A relation is not live if its last heartbeat is older than staleIntervals of
// its bridge's heartbeat intervals, and older than leastStale: the timestamp of
// a heartbeat has whole seconds, so short intervals alone say too little.
const (
	staleIntervals = 3
	leastStale     = 5 * time.Second
)

// Ready implements edge.Source.
func (s source) Ready(ctx context.Context) error {
	if !s.hub.Connected() {
		return errors.New("no connection to the broker")
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	relations, err := s.hub.List(ctx)
	if err != nil {
		return err
	}
	var problems []error
	for _, r := range relations {
		if _, err := live(r); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", lockstep.RelationName(r.Schema, r.Table), err))
		}
	}
	return errors.Join(problems...)
}

// live returns how old a relation's last heartbeat is, and an error if the
// relation is not live.
func live(r replay.Listed) (age time.Duration, err error) {
	if r.Heartbeat == nil {
		return 0, errors.New("the first load is running")
	}
	m, err := lockstep.Decode(r.Heartbeat)
	if err != nil || m.Control == nil {
		return 0, errors.New("the last heartbeat can't be read")
	}
	age = time.Since(time.Unix(m.Control.Timestamp, 0)).Round(time.Second)
	if age > max(leastStale, staleIntervals*r.Interval) {
		return age, fmt.Errorf("the last heartbeat is %s old", age)
	}
	return age, nil
}
