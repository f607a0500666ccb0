package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"bridge/internal/follow"
	"bridge/internal/stream"
)

// tail prints what a relation's stream holds and what is added, until ctx ends. After
// a loss it goes on where it was. If the stream was replaced meanwhile, it begins
// again. It says both on stderr.
func tail(ctx context.Context, cfg *Config, args []string, stdout, stderr io.Writer) error {
	f, _, err := findArgument(ctx, cfg, args)
	if err != nil {
		return err
	}
	defer f.js.Conn().Close()
	place, said := f.start(), ""
	for {
		before := place.Seq
		err := f.print(ctx, &place, stdout)
		if place.Seq != before {
			said = ""
		}
		var refused *printError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &refused), errors.Is(err, stream.ErrLayout):
			return err
		case errors.Is(err, follow.ErrReset) && f.lookup(ctx, f.Layout.Stream) == nil:
			_, _ = fmt.Fprintf(stderr, "bridge tail: %v; what follows is read from its start\n", err)
			place = f.start()
		case errors.Is(err, follow.ErrDropped), err.Error() == said:
		default:
			said = err.Error()
			_, _ = fmt.Fprintf(stderr, "bridge tail: %v; trying again\n", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tailPause):
		}
	}
}

// tailPause is the pause before the stream is read again.
const tailPause = 100 * time.Millisecond

// start returns the place before the stream's first message.
func (f *found) start() follow.Place {
	return follow.NewPlace(f.Relation, max(1, f.First)-1, nil)
}

// printError says that the output takes no more.
type printError struct{ err error }

func (e *printError) Error() string { return "print: " + e.err.Error() }
func (e *printError) Unwrap() error { return e.err }

// print prints what comes after the place, until it fails.
func (f *found) print(ctx context.Context, place *follow.Place, stdout io.Writer) error {
	now, err := follow.Lookup(ctx, f.js, f.prefix, f.Layout.Stream)
	if err != nil {
		return err
	}
	epochs, err := follow.ReadEpochs(ctx, f.js, f.Layout)
	if err != nil {
		return err
	}
	if err := place.Held(now.Meta.Incarnation, epochs, now.Last); err != nil {
		return err
	}
	r, err := follow.Open(ctx, f.js, f.Layout, place.Seq+1)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		m, err := r.Next(ctx)
		if err != nil {
			return err
		}
		if err := place.Follow(m); err != nil {
			return err
		}
		switch m.Kind {
		case stream.KindRow, stream.KindHeartbeat:
			if _, err := stdout.Write(append(bytes.TrimRight(m.Data, "\n"), '\n')); err != nil {
				return &printError{err}
			}
		}
	}
}
