package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bridge/internal/capture"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
)

// ensureStream creates the stream if it does not exist, and returns its metadata.
// It returns capture.ErrOtherSource where the stream's rows come from another
// system or database.
func (p *Publisher) ensureStream(ctx context.Context, src capture.Source) (stream.Meta, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		meta := p.newMeta("", src, voidBelow(src))
		set := p.opt.Settings
		err = withReplicas(p.js, set.Replicas, func(n int) error {
			set.Replicas = n
			s, err = p.js.CreateStream(ctx, stream.Config(p.layout, meta, set))
			return err
		})
		if err == nil {
			p.log.Info().Str("incarnation", meta.Incarnation).Int("replicas", set.Replicas).Msg("stream created")
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another bridge created it first
			s, err = p.js.Stream(ctx, p.layout.Stream)
		}
	}
	if err != nil {
		return stream.Meta{}, fmt.Errorf("create stream %s: %w", p.layout.Stream, err)
	}
	meta, err := stream.ReadMeta(s.CachedInfo().Config)
	if err != nil {
		return stream.Meta{}, err
	}
	if meta.Source.System != src.System || meta.Source.Database != src.Database {
		return stream.Meta{}, fmt.Errorf("%w: stream %s holds rows of database %q of system %d, but DATABASE_URL points to database %q of system %d; correct DATABASE_URL or NATS_URL, or, to replace the stream's rows, run: bridge adopt %s.%s",
			capture.ErrOtherSource, p.layout.Stream, meta.Source.Database, meta.Source.System, src.Database, src.System, p.opt.Schema, p.opt.Table)
	}
	return meta, nil
}

// checkDestination returns an error if the copies that the broker sends would get into a
// stream that a bridge fills.
func (p *Publisher) checkDestination(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	to := p.opt.Settings.Republish
	if err := p.layout.CheckTopic(to); err != nil {
		return fmt.Errorf("republish=%s: %w", to, err)
	}
	filled, _, err := p.layout.Overlap(ctx, p.js, to)
	if filled != "" {
		return fmt.Errorf("republish=%s would use the subjects of stream %s, which a bridge fills; choose another subject", to, filled)
	}
	return err
}

// voidBelow returns the floor of a stream that did not exist. On Postgres' first
// timeline that is 0: a stream that was lost showed no position that a crash could
// take back. After a failover it may have: the new primary may lack the end of the
// old one's WAL, and gives the IDs in it out again. So nobody goes on from any
// position of a time before this session.
func voidBelow(src capture.Source) uint64 {
	if src.Timeline > 1 {
		return src.Next
	}
	return 0
}

// newMeta returns the metadata of an incarnation that follows the one with the ID previous.
func (p *Publisher) newMeta(previous string, src capture.Source, floor uint64) stream.Meta {
	return stream.Meta{
		Schema: p.opt.Schema, Table: p.opt.Table, Incarnation: stream.NewID(previous, time.Now()),
		Floor: floor, Source: src, Log: p.opt.Log, Heartbeat: p.opt.HeartbeatInterval,
	}
}

// foreign returns the reason why the stream can't be continued with this source
// and history option, or "" if it can.
func foreign(meta stream.Meta, src capture.Source, log bool) string {
	switch {
	case meta.Source.Timeline != src.Timeline:
		return fmt.Sprintf("Postgres is on timeline %d, the stream on %d: transactions may have been undone", src.Timeline, meta.Source.Timeline)
	case meta.Source.OID != src.OID:
		return "the relation was dropped and created again: deletes may have been missed"
	case meta.Log != log:
		return "the relation's history option was changed"
	}
	return ""
}

// Restart implements capture.Sink.
func (p *Publisher) Restart(ctx context.Context, reason string, shown uint64) error {
	p.mu.Lock()
	e := p.epoch
	p.mu.Unlock()
	if e == nil {
		return errNoEpoch
	}
	src := e.src
	p.end(ctx)
	ctx, cancel := p.whileConnected(ctx)
	defer cancel()
	_, err := p.newIncarnation(ctx, src, reason, shown)
	return orLost(ctx, err)
}

// Adopt begins a new incarnation of the stream for another source. Only a person
// decides this. Adopt needs no lease: a writer that saw the other source has
// stopped.
func (p *Publisher) Adopt(ctx context.Context, src capture.Source) error {
	err := p.changeConfig(ctx, p.unchanged(), func(*stream.Meta, jetstream.StreamConfig, stream.Settings) bool { return false })
	if err != nil {
		return err
	}
	_, err = p.newIncarnation(ctx, src, "adopted from another source", 0)
	return err
}

// updateSettings applies the settings to the stream. Only the holder of
// the lease calls it, because a standby may have other settings. If
// the broker has too few servers for the replicas at the moment, the stream
// keeps those it has, and the next epoch asks again.
func (p *Publisher) updateSettings(ctx context.Context) error {
	change := func(meta *stream.Meta, have jetstream.StreamConfig, want stream.Settings) bool {
		sameBytes := want.MaxBytes == have.MaxBytes || want.MaxBytes <= 0 && have.MaxBytes <= 0
		every := meta.Heartbeat
		meta.Heartbeat = p.opt.HeartbeatInterval
		return meta.Log && (want.MaxAge != have.MaxAge || !sameBytes) || want.Replicas != have.Replicas || meta.Heartbeat != every
	}
	err := p.changeConfig(ctx, p.opt.Settings, change)
	if tooFewServers(err) {
		p.log.Info().Err(err).Msg("stream keeps its number of replicas: the broker has too few servers for more")
		err = p.changeConfig(ctx, p.unchanged(), change)
	}
	return err
}

// unchanged returns the settings, with the number of replicas left as it is.
func (p *Publisher) unchanged() stream.Settings {
	set := p.opt.Settings
	set.Replicas = keepReplicas
	return set
}

// keepReplicas as Settings.Replicas means that the stream keeps the number it has.
const keepReplicas = -1

// changeConfig reads the stream's configuration and passes its metadata to
// change. If change returns true, changeConfig writes the configuration back. It also
// does so if the stream's subjects are those of an earlier version, or of another
// setting. It never lowers the number of replicas unless one is configured.
func (p *Publisher) changeConfig(ctx context.Context, set stream.Settings, change func(*stream.Meta, jetstream.StreamConfig, stream.Settings) bool) error {
	p.config.Lock()
	defer p.config.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	have := s.CachedInfo().Config
	meta, err := stream.ReadMeta(have)
	if err != nil {
		return err
	}
	switch set.Replicas {
	case keepReplicas:
		set.Replicas = have.Replicas
	case 0:
		set.Replicas = max(wantedReplicas(p.js, 0), have.Replicas)
	}
	changed := change(&meta, have, set)
	want := stream.Config(p.layout, meta, set)
	if !changed && stream.SameSubjects(have, want) {
		return nil
	}
	if _, err := p.js.UpdateStream(ctx, want); err != nil {
		return fmt.Errorf("update stream %s: %w", p.layout.Stream, err)
	}
	return nil
}

// newIncarnation begins a new incarnation of the stream, in three steps. In this
// order a crash between two of them loses nothing:
//
//  1. A fence of the old incarnation stops any bridge that still writes it. So
//     no position is shown above the High that is known here.
//  2. The new incarnation is written to the stream's configuration. Its floor is
//     above every position that the old one may have shown.
//  3. The next epoch sees that the last fence names another incarnation, and
//     purges the stream.
func (p *Publisher) newIncarnation(ctx context.Context, src capture.Source, reason string, shown uint64) (stream.Meta, error) {
	t, err := p.readTail(ctx)
	if err != nil {
		return stream.Meta{}, err
	}
	old := t.incarnation
	if old == "" {
		old = "none"
	}
	have, err := stream.ReadMeta(t.config)
	if err != nil {
		return stream.Meta{}, err
	}
	if err := p.fence(ctx, old, t.epochs.Append(stream.Epoch{ID: nextEpoch(t.epochs), First: t.last + 1}), t.high, have.Floor); err != nil {
		return stream.Meta{}, err
	}
	meta := p.newMeta(have.Incarnation, src, max(t.high, shown)+1)
	err = p.changeConfig(ctx, p.unchanged(), func(have *stream.Meta, _ jetstream.StreamConfig, _ stream.Settings) bool {
		meta.Floor = max(meta.Floor, have.Floor)
		*have = meta
		return true
	})
	if err != nil {
		return stream.Meta{}, err
	}
	if t.high == 0 { // nobody has a position of this stream
		p.log.Info().Str("incarnation", meta.Incarnation).Str("reason", reason).Uint64("floor", meta.Floor).Msg("the stream, which is empty, has a floor now")
	} else {
		p.log.Warn().Str("incarnation", meta.Incarnation).Str("reason", reason).Uint64("floor", meta.Floor).
			Msg("new incarnation: positions below the floor are void, clients must read everything again")
	}
	return meta, nil
}

// purge removes an earlier incarnation's messages, up to the sequence last.
func (p *Publisher) purge(ctx context.Context, last uint64) (tail, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(limited, p.layout.Stream)
	if err != nil {
		return tail{}, fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	// Later messages stay: they may be of another writer that began first.
	if err := s.Purge(limited, jetstream.WithPurgeSequence(last+1)); err != nil {
		return tail{}, fmt.Errorf("purge stream %s: %w", p.layout.Stream, err)
	}
	return p.readTail(ctx)
}
