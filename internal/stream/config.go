package stream

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"bridge/internal/capture"
	"bridge/internal/topic"

	"github.com/nats-io/nats.go/jetstream"
)

// Keys of a stream's metadata, and the version of the layout: of what readers find in
// a stream. Earlier bridges published on the stream's own subjects; a new one changes
// that in place.
const (
	metaLayout      = "lockstep-layout"
	metaSchema      = "lockstep-schema"
	metaTable       = "lockstep-table"
	metaIncarnation = "lockstep-incarnation"
	metaFloor       = "lockstep-floor"
	metaSource      = "lockstep-source"
	metaHistory     = "lockstep-history"
	metaHeartbeat   = "lockstep-heartbeat"
	metaTidied      = "lockstep-tidied"

	layoutVersion = "1"
)

// Meta is what a stream's configuration says about the stream.
type Meta struct {
	Schema, Table string
	// Incarnation is the stream's current one. Positions of another incarnation are
	// void.
	Incarnation string
	// Floor is the oldest since from which a client of this incarnation can resume.
	Floor uint64
	// Source is where the rows of this incarnation come from.
	Source capture.Source
	// Log says that the stream keeps every version of a row.
	Log bool
	// Heartbeat is the writer's heartbeat interval; 0 if it is not known.
	Heartbeat time.Duration
	// Tidied says that old deleted rows are removed from this incarnation. A broker that
	// was killed may bring the versions before them back: it forgets what it removed
	// because a newer message came.
	Tidied bool
}

// Settings are what a bridge's own settings say of one stream.
type Settings struct {
	// Replicas is how many servers hold the stream; 0 leaves it to the writer.
	Replicas int
	// MaxAge and MaxBytes bound a stream that keeps every version; 0 means no bound.
	MaxAge   time.Duration
	MaxBytes int64
	// Republish says where the broker sends copies of what the stream has stored.
	Republish topic.Topic
}

// Config returns the configuration of a relation's stream.
func Config(l Layout, m Meta, set Settings) jetstream.StreamConfig {
	cfg := jetstream.StreamConfig{
		Name:              l.Stream,
		Description:       "lockstep: rows of " + strconv.Quote(m.Schema) + "." + strconv.Quote(m.Table),
		Subjects:          []string{l.Ingest()},
		SubjectTransform:  &jetstream.SubjectTransformConfig{Source: l.Ingest(), Destination: l.All()},
		RePublish:         l.republish(set.Republish),
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardOld,
		Replicas:          max(1, set.Replicas),
		MaxMsgsPerSubject: 1,
		AllowDirect:       true,
		AllowBatchPublish: true,
		Metadata: map[string]string{
			metaLayout:      layoutVersion,
			metaSchema:      m.Schema,
			metaTable:       m.Table,
			metaIncarnation: m.Incarnation,
			metaFloor:       strconv.FormatUint(m.Floor, 10),
			metaSource:      m.Source.String(),
			metaHistory:     "latest",
			metaHeartbeat:   m.Heartbeat.String(),
		},
	}
	if m.Tidied {
		cfg.Metadata[metaTidied] = "yes"
	}
	if m.Log {
		cfg.MaxMsgsPerSubject = -1
		cfg.MaxAge = set.MaxAge
		cfg.MaxBytes = set.MaxBytes
		cfg.Metadata[metaHistory] = "log"
	}
	return cfg
}

// SameSubjects reports whether two configurations of a stream store the same messages
// under the same subjects, and republish them in the same way.
func SameSubjects(a, b jetstream.StreamConfig) bool {
	return reflect.DeepEqual(a.Subjects, b.Subjects) && reflect.DeepEqual(a.SubjectTransform, b.SubjectTransform) && reflect.DeepEqual(a.RePublish, b.RePublish)
}

// ReadMeta reads a stream's metadata from its configuration. Its error wraps
// ErrLayout if the stream does not have this version's layout.
func ReadMeta(cfg jetstream.StreamConfig) (Meta, error) {
	md := cfg.Metadata
	if md[metaLayout] != layoutVersion {
		return Meta{}, fmt.Errorf("%w: stream %s has layout %q, this version needs %q; use the version that wrote it, or set another BRIDGE_STREAM_PREFIX", ErrLayout, cfg.Name, md[metaLayout], layoutVersion)
	}
	floor, err := strconv.ParseUint(md[metaFloor], 10, 64)
	if err != nil {
		return Meta{}, fmt.Errorf("%w: stream %s: floor: %w", ErrLayout, cfg.Name, err)
	}
	src, err := capture.ParseSource(md[metaSource])
	if err != nil {
		return Meta{}, fmt.Errorf("%w: stream %s: %w", ErrLayout, cfg.Name, err)
	}
	every, err := time.ParseDuration(md[metaHeartbeat])
	if err != nil {
		return Meta{}, fmt.Errorf("%w: stream %s: heartbeat: %w", ErrLayout, cfg.Name, err)
	}
	return Meta{
		Schema: md[metaSchema], Table: md[metaTable], Incarnation: md[metaIncarnation],
		Floor: floor, Source: src, Log: md[metaHistory] == "log", Heartbeat: every, Tidied: md[metaTidied] != "",
	}, nil
}

// Relation is a relation that the broker has a stream of.
type Relation struct {
	Layout Layout
	Meta   Meta
}

// List returns the streams of the relations that bridges with the prefix have
// captured. It leaves out streams that somebody made as copies of those, and streams
// of another layout.
func List(ctx context.Context, js jetstream.JetStream, prefix string) ([]Relation, error) {
	var found []Relation
	// Earlier bridges published on the subjects that the stream stores.
	for _, subjects := range []string{Ingest(prefix + ".>"), prefix + ".>"} {
		streams := js.ListStreams(ctx, jetstream.WithStreamListSubject(subjects))
		for info := range streams.Info() {
			meta, err := ReadMeta(info.Config)
			if err != nil {
				continue
			}
			if l := NewLayout(prefix, meta.Schema, meta.Table, meta.Log); l.Stream == info.Config.Name {
				found = append(found, Relation{l, meta})
			}
		}
		if err := streams.Err(); err != nil {
			return nil, fmt.Errorf("list streams: %w", err)
		}
	}
	return found, nil
}
