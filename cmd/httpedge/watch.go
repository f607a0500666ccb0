package main

import (
	"context"
	"fmt"
	"time"

	"bridge/internal/broker"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
)

const (
	// streamsWithin is how long the edge waits for the first stream before it
	// says that there is none: the bridge may start at the same time.
	streamsWithin = 10 * time.Second
	// streamsAgain is how often it says so again, and how often it looks whether
	// there are any still.
	streamsAgain = time.Minute
)

// watchStreams logs that the broker has no stream for the edge to serve, or does
// not say which, until ctx ends. While there is no connection it says nothing:
// broker.Watch does.
func watchStreams(ctx context.Context, js jetstream.JetStream, prefix string, log zerolog.Logger) {
	log = log.With().Str("component", "edge").Logger()
	missing, told, found := time.Now(), time.Time{}, false
	wait := time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = time.Second
		if !js.Conn().IsConnected() {
			missing = time.Now()
			continue
		}
		n, err := countStreams(ctx, js, prefix)
		if err == nil && n > 0 {
			if !found {
				log.Info().Int("relations", n).Msg("serving the relations of the broker")
			}
			missing, told, found, wait = time.Now(), time.Time{}, true, streamsAgain
			continue
		}
		found = false
		if time.Since(missing) < streamsWithin || time.Since(told) < streamsAgain || ctx.Err() != nil {
			continue
		}
		told = time.Now()
		what, do := noStream(prefix), startTheBridge
		if err != nil {
			if _, what, do = broker.JetStream(ctx, js); what == "" {
				what, do = err.Error(), "look at the broker's log"
			}
		}
		log.Warn().Str("remote", js.Conn().ConnectedAddr()).Err(fmt.Errorf("%s; to do: %s, or run httpedge check", what, do)).Msg("there is no relation to serve")
	}
}

func noStream(prefix string) string {
	return "the broker has no stream whose name begins with " + stream.StreamPrefix(prefix)
}

const startTheBridge = "start the bridge, and give both programs the same broker and prefix (HTTPEDGE_STREAM_PREFIX, BRIDGE_STREAM_PREFIX)"

// countStreams counts the streams that the broker has of the prefix.
func countStreams(ctx context.Context, js jetstream.JetStream, prefix string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	streams, err := stream.List(ctx, js, prefix)
	return len(streams), err
}
