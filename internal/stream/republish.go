package stream

import (
	"context"
	"fmt"
	"strings"

	"bridge/internal/topic"

	"github.com/nats-io/nats.go/jetstream"
)

// republish returns what the stream's configuration says of copies.
func (l Layout) republish(to topic.Topic) *jetstream.RePublish {
	switch {
	case to == topic.Off:
		return nil
	case to == "":
		return &jetstream.RePublish{Source: l.All(), Destination: l.All()}
	case l.log || to.EndsWithKey():
		return &jetstream.RePublish{Source: l.Rows(), Destination: l.destination(to)}
	default: // the subject of a row with a key of one column has one token for it
		return &jetstream.RePublish{Source: strings.TrimSuffix(l.Rows(), ">") + "*", Destination: l.destination(to)}
	}
}

// wildcard stands, in the broker's configuration, for what the * in the source was.
const wildcard = "{{wildcard(1)}}"

// destination returns the template as the broker wants it.
func (l Layout) destination(to topic.Topic) string {
	key := wildcard
	if to.EndsWithKey() {
		key = ">"
	}
	return to.Expand(subjectToken(l.Schema), subjectToken(l.Table), key)
}

// CheckTopic returns an error if copies would have the subjects of a bridge with the
// same prefix, or of the broker.
func (l Layout) CheckTopic(to topic.Topic) error {
	if !to.IsTemplate() {
		return nil
	}
	first, _, _ := strings.Cut(l.destination(to), ".")
	if first == l.prefix || first[0] == IngestMark { // a bridge's own, or where answers go
		return fmt.Errorf("subjects that begin with %s. are not for copies of rows; choose another beginning", first)
	}
	return nil
}

// Overlap returns the name of a stream that listens where the copies go, "" if there is
// none: filled is a relation's stream, which must not get them, and other is any other
// one, which can't store them (they have ExpectedLastSeqHeader). CheckTopic knows only
// the streams of one prefix.
func (l Layout) Overlap(ctx context.Context, js jetstream.JetStream, to topic.Topic) (filled, other string, err error) {
	if !to.IsTemplate() {
		return "", "", nil
	}
	subject := strings.ReplaceAll(l.destination(to), wildcard, "*")
	// Other bridges' streams listen on the one, and their subscribers on the other.
	for _, listens := range []string{subject, Ingest(subject)} {
		streams := js.ListStreams(ctx, jetstream.WithStreamListSubject(listens))
		for info := range streams.Info() {
			switch _, ok := info.Config.Metadata[metaLayout]; {
			case ok:
				filled = info.Config.Name
			case listens == subject:
				other = info.Config.Name
			}
		}
		if err := streams.Err(); err != nil {
			return "", "", fmt.Errorf("list streams: %w", err)
		}
	}
	return filled, other, nil
}
