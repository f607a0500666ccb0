package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bridge/internal/publish"
	"bridge/internal/relation"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

// Every running bridge listens for requests about each relation in its
// BRIDGE_TABLES, whether it captures the relation, stands by or fails (see desk).
// So the broker itself tells that nobody has a relation. A bridge that lives says
// which one it is.

// whoRequest is the payload that asks which bridge listens. A request to
// reconcile has none.
const whoRequest = "who"

// present is the answer to whoRequest.
type present struct {
	Bridge string `json:"bridge"`
	State  string `json:"state"`
}

const (
	// whoWithin is how long a bridge that listens may take to answer; whoMore is how
	// long others may take after the first.
	whoWithin = 3 * time.Second
	whoMore   = 300 * time.Millisecond
)

// nameless stands for a bridge that listens, and does not answer: one that is
// paused or overloaded, or that can't be reached at the moment.
const nameless = "a bridge that does not answer now"

// whoHas returns the running bridges that have the relation in BRIDGE_TABLES.
func whoHas(ctx context.Context, nc *nats.Conn, l stream.Layout) ([]string, error) {
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("subscribe for answers: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(l.Reconcile(), inbox, []byte(whoRequest)); err != nil {
		return nil, fmt.Errorf("ask the bridges: %w", err)
	}
	var list []string
	for deadline := time.Now().Add(whoWithin); ; deadline = time.Now().Add(whoMore) {
		step, cancel := context.WithDeadline(ctx, deadline)
		msg, err := sub.NextMsgWithContext(step)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, nats.ErrNoResponders):
			return nil, nil
		case errors.Is(err, context.DeadlineExceeded) && len(list) == 0:
			return []string{nameless}, nil
		case errors.Is(err, context.DeadlineExceeded):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("ask the bridges: %w", err)
		}
		var p present
		if err := json.Unmarshal(msg.Data, &p); err != nil || p.Bridge == "" {
			list = append(list, nameless) // another version, which knows no such question
			continue
		}
		list = append(list, fmt.Sprintf("%s (%s)", p.Bridge, p.State))
	}
}

// orphans returns the relations that have a stream of the prefix with rows of src,
// which no bridge of own has and no running bridge has in BRIDGE_TABLES.
func orphans(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, prefix string, src relation.Source, own []relation.Name) ([]relation.Name, error) {
	var found []relation.Name
	streams, err := stream.List(ctx, js, prefix)
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		name := relation.Name{Schema: s.Meta.Schema, Table: s.Meta.Table}
		if s.Meta.Source.System != src.SystemID || s.Meta.Source.Database != src.Database || slices.Contains(own, name) {
			continue
		}
		has, err := whoHas(ctx, nc, s.Layout)
		if err != nil {
			return nil, err
		}
		// A bridge that may not listen can't be seen there, but has its lease.
		holder, err := publish.LeaseHolder(ctx, js, prefix, s.Layout.Stream)
		if err != nil {
			return nil, err
		}
		if len(has) == 0 && holder == "" {
			found = append(found, name)
		}
	}
	slices.SortFunc(found, func(a, b relation.Name) int { return strings.Compare(a.Quoted(), b.Quoted()) })
	return found, nil
}

// tellOrphans logs, once, the streams that no running bridge has a relation for. It
// first waits for bridges that start at the same time.
func (c *captures) tellOrphans(ctx context.Context, specs []relation.Spec) {
	var own []relation.Name
	for _, s := range specs {
		own = append(own, s.Name)
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(orphansAfter):
	}
	var found []relation.Name
	err := retry(ctx, zerolog.Nop(), "", func() error {
		src, err := relation.LoadSource(ctx, c.pool)
		if err == nil {
			found, err = orphans(ctx, c.nc, c.js, c.cfg.StreamPrefix, src, own)
		}
		return err
	})
	if err != nil {
		return // ctx has ended
	}
	c.log.Debug().Str("component", "bridge").Int("relations", len(found)).Msg("looked for streams that are left over")
	for _, name := range found {
		c.log.Warn().Str("component", "bridge").Str("table", name.String()).
			Msg("a stream is left over: no running bridge has its relation in BRIDGE_TABLES, so edges are not ready; remove it with bridge remove, or run its bridge")
	}
}
