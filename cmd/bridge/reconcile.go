package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"bridge/internal/health"
	"bridge/internal/reconcile"
	"bridge/internal/relation"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// This file has both ends of one exchange. The command bridge reconcile sends a
// request over NATS. The running bridge that captures the relation answers with
// several messages.

// reconcileState is one of these answers.
type reconcileState struct {
	// State is running about once a second, and in the last answer done or failed.
	State string `json:"state"`
	// Rows to Approximate are set if State is done.
	Rows        int64 `json:"rows"`
	Missing     int64 `json:"missing"`
	Stale       int64 `json:"stale"`
	Zombie      int64 `json:"zombie"`
	Approximate bool  `json:"approximate,omitempty"`
	// Error is set if State is failed.
	Error string `json:"error,omitempty"`
}

const (
	stateRunning = "running"
	stateDone    = "done"
	stateFailed  = "failed"
	// runningEvery is how often the bridge answers while it works.
	runningEvery = time.Second
	// silence is how long the command waits for the next answer.
	silence = 4 * time.Second
	// toldEvery is how often the command prints that it still waits.
	toldEvery = 10 * time.Second
)

func reconcileSubject(cfg *Config, rel relation.Name) string {
	return stream.NewLayout(cfg.StreamPrefix, rel.Schema, rel.Table, false).Reconcile()
}

// reconciler is a relation's capture.
type reconciler interface {
	// Reconcile compares the stream with the relation and repairs the stream.
	Reconcile(ctx context.Context) (reconcile.Counts, error)
	// Captures reports whether this process captures the relation now.
	Captures() bool
	Status() health.Status
}

// desk answers the requests to reconcile one relation, and who has it (see
// whoHas).
type desk struct {
	nc      *nats.Conn
	subject string
	holder  string
	by      reconciler
	log     zerolog.Logger
}

// Run answers until ctx ends.
func (d *desk) Run(ctx context.Context) error {
	sub, err := d.nc.SubscribeSync(d.subject)
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", d.subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		switch {
		case errors.Is(err, nats.ErrSlowConsumer):
			continue // requests were dropped; those that follow are answered
		case err != nil:
			return err
		}
		if string(msg.Data) == whoRequest {
			d.reply(msg, present{Bridge: d.holder, State: string(d.by.Status().State)})
			continue
		}
		wg.Go(func() { d.answer(ctx, msg) })
	}
}

// answer serves one request. If this process is a standby, it stays silent: the
// process that captures the relation answers.
func (d *desk) answer(ctx context.Context, msg *nats.Msg) {
	done := make(chan reconcileState, 1)
	go func() {
		c, err := d.by.Reconcile(ctx)
		switch {
		case errors.Is(err, reconcile.ErrStandby):
			done <- reconcileState{}
		case ctx.Err() != nil:
			done <- reconcileState{State: stateFailed, Error: "the bridge is stopping"}
		case err != nil:
			done <- reconcileState{State: stateFailed, Error: err.Error()}
		default:
			done <- reconcileState{
				State: stateDone, Rows: c.Rows, Missing: c.Missing, Stale: c.Stale, Zombie: c.Zombie, Approximate: c.Approximate,
			}
		}
	}()
	t := time.NewTicker(runningEvery)
	defer t.Stop()
	for {
		if d.by.Captures() {
			d.reply(msg, reconcileState{State: stateRunning})
		}
		select {
		case s := <-done:
			if s.State != "" {
				d.reply(msg, s)
			}
			return
		case <-t.C:
		}
	}
}

func (d *desk) reply(msg *nats.Msg, answer any) {
	data, err := json.Marshal(answer)
	if err == nil {
		err = msg.Respond(data)
	}
	if err != nil {
		d.log.Debug().Str("component", "bridge").Err(err).Msg("request not answered")
	}
}

// askReconcile asks the running bridge to reconcile a relation, and prints the
// result.
func askReconcile(ctx context.Context, cfg *Config, args []string, stdout, stderr io.Writer) error {
	f, spec, err := findArgument(ctx, cfg, args)
	if err != nil {
		return err
	}
	defer f.js.Conn().Close()
	inbox := f.js.Conn().NewInbox()
	sub, err := f.js.Conn().SubscribeSync(inbox)
	if err != nil {
		return fmt.Errorf("subscribe for answers: %w", err)
	}
	if err := f.js.Conn().PublishRequest(f.Layout.Reconcile(), inbox, nil); err != nil {
		return fmt.Errorf("ask the bridge: %w", err)
	}
	s, err := awaitReconciled(ctx, sub, spec.Name.Quoted(), stderr)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, s.sentence(spec.Name.Quoted()))
	return err
}

// awaitReconciled reads the answers up to the last one. A bridge that fails to
// capture the relation answers failed immediately. Another bridge may capture
// it, so that answer counts only if no other comes.
func awaitReconciled(ctx context.Context, sub *nats.Subscription, rel string, stderr io.Writer) (reconcileState, error) {
	nobody := fmt.Errorf("no bridge captures %s now: is the relation in BRIDGE_TABLES, and is the bridge running?", rel)
	var told time.Time
	running := false
	deadline := time.Now().Add(silence)
	for {
		s, err := nextState(ctx, sub, deadline)
		switch {
		case ctx.Err() != nil:
			return s, ctx.Err()
		case errors.Is(err, nats.ErrNoResponders), err != nil && !running && errors.Is(err, context.DeadlineExceeded):
			return s, nobody
		case errors.Is(err, context.DeadlineExceeded):
			return s, fmt.Errorf("the bridge that reconciled %s stopped answering for %s; look at its log, and try again", rel, silence)
		case err != nil:
			return s, fmt.Errorf("wait for the bridge: %w", err)
		case s.State == stateDone:
			return s, nil
		case s.State == stateFailed && running:
			return s, fmt.Errorf("%s: %s", rel, s.Error)
		case s.State == stateFailed:
			nobody = fmt.Errorf("%s: %s", rel, s.Error)
		case s.State == stateRunning:
			running, deadline = true, time.Now().Add(silence)
			if time.Since(told) > toldEvery {
				told = time.Now()
				_, _ = fmt.Fprintf(stderr, "%s: comparing the stream with the relation...\n", rel)
			}
		}
	}
}

func nextState(ctx context.Context, sub *nats.Subscription, deadline time.Time) (s reconcileState, err error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	msg, err := sub.NextMsgWithContext(ctx)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(msg.Data, &s); err != nil {
		return s, fmt.Errorf("read the bridge's answer: %w", err)
	}
	return s, nil
}

// sentence returns the result as the command prints it.
func (s reconcileState) sentence(rel string) string {
	about, zombies, repaired := "", "zombies", ", repaired"
	if s.Approximate {
		about = "at most "
	}
	if s.Zombie == 1 {
		zombies = "zombie"
	}
	if s.Missing+s.Stale+s.Zombie == 0 {
		repaired = ""
	}
	return fmt.Sprintf("%s: %d rows compared: %s%d missing, %d stale, %d %s%s", rel, s.Rows, about, s.Missing, s.Stale, s.Zombie, zombies, repaired)
}
