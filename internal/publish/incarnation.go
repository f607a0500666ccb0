package publish

import (
	"context"
	"errors"
	"fmt"

	"bridge/internal/capture"
	"bridge/internal/stream"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// ensureStream makes the stream where there is none, brings its limits up to
// date, and returns what it says of itself. It returns capture.ErrOtherSource
// where its rows are of another system or database.
func (p *Publisher) ensureStream(ctx context.Context, src capture.Source) (stream.Meta, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		meta := p.newMeta(src, 0)
		s, err = p.js.CreateStream(ctx, stream.Config(p.layout, meta, p.opt.Limits))
		if err == nil {
			p.log.Info().Str("incarnation", meta.Incarnation).Msg("stream created")
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another bridge was faster
			s, err = p.js.Stream(ctx, p.layout.Stream)
		}
	}
	if err != nil {
		return stream.Meta{}, fmt.Errorf("create stream %s: %w", p.layout.Stream, err)
	}
	have := s.CachedInfo().Config
	meta, err := stream.ReadMeta(have)
	if err != nil {
		return stream.Meta{}, err
	}
	if meta.Source.System != src.System || meta.Source.Database != src.Database {
		return stream.Meta{}, fmt.Errorf("%w: stream %s holds rows of database %q of system %d, DATABASE_URL leads to database %q of system %d; if that is meant, run: bridge adopt %s.%s",
			capture.ErrOtherSource, p.layout.Stream, meta.Source.Database, meta.Source.System, src.Database, src.System, p.opt.Schema, p.opt.Table)
	}
	if want := stream.Config(p.layout, meta, p.opt.Limits); want.MaxAge != have.MaxAge || want.MaxBytes != have.MaxBytes && max(want.MaxBytes, have.MaxBytes) > 0 || want.Replicas > have.Replicas {
		want.Replicas = max(want.Replicas, have.Replicas) // never lowered by itself
		if _, err := p.js.UpdateStream(ctx, want); err != nil {
			return stream.Meta{}, fmt.Errorf("update stream %s: %w", p.layout.Stream, err)
		}
		p.log.Info().Msg("stream's limits updated")
	}
	return meta, nil
}

func (p *Publisher) meta(ctx context.Context) (stream.Meta, error) {
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return stream.Meta{}, fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	return stream.ReadMeta(s.CachedInfo().Config)
}

func (p *Publisher) newMeta(src capture.Source, floor uint64) stream.Meta {
	return stream.Meta{
		Schema: p.opt.Schema, Table: p.opt.Table, Incarnation: nuid.Next(),
		Floor: floor, Source: src, Log: p.opt.Log,
	}
}

// foreign says why the stream of a source can't be continued, if so.
func foreign(meta stream.Meta, src capture.Source, log bool) string {
	switch {
	case meta.Source.Timeline != src.Timeline:
		return fmt.Sprintf("Postgres is on timeline %d, the stream on %d: transactions may have been undone", src.Timeline, meta.Source.Timeline)
	case meta.Source.OID != src.OID:
		return "the relation was dropped and made again: deletes may have been lost"
	case meta.Log != log:
		return "the relation's history option was changed"
	}
	return ""
}

// Restart implements capture.Sink.
func (p *Publisher) Restart(ctx context.Context, reason string) error {
	p.mu.Lock()
	e := p.epoch
	p.mu.Unlock()
	if e == nil {
		return errNoEpoch
	}
	src := e.src
	p.end(ctx)
	_, err := p.newIncarnation(ctx, src, reason)
	return err
}

// Adopt begins a new incarnation of the stream for another source, as a person
// decided. It needs no lease: the writer, if there is one, stopped when it saw
// the other source.
func (p *Publisher) Adopt(ctx context.Context, src capture.Source) error {
	_, err := p.newIncarnation(ctx, src, "adopted from another source")
	return err
}

// newIncarnation ends the stream's life: a new incarnation, whose floor is
// above every position that the old one may have shown, is written to the
// stream's configuration; what the stream holds is purged by the next epoch,
// which sees that the last fence names another incarnation. In this order a
// crash between the two loses neither.
func (p *Publisher) newIncarnation(ctx context.Context, src capture.Source, reason string) (stream.Meta, error) {
	p.config.Lock()
	defer p.config.Unlock()
	t, err := p.readTail(ctx)
	if err != nil {
		return stream.Meta{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	meta := p.newMeta(src, t.high+1)
	if old, err := p.meta(ctx); err == nil {
		meta.Floor = max(meta.Floor, old.Floor)
	}
	if _, err := p.js.UpdateStream(ctx, stream.Config(p.layout, meta, p.opt.Limits)); err != nil {
		return stream.Meta{}, fmt.Errorf("update stream %s: %w", p.layout.Stream, err)
	}
	p.log.Warn().Str("incarnation", meta.Incarnation).Str("reason", reason).Uint64("floor", meta.Floor).
		Msg("new incarnation: positions below the floor are void, clients begin anew")
	return meta, nil
}

// purge removes what an earlier incarnation left.
func (p *Publisher) purge(ctx context.Context) (tail, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := p.js.Stream(ctx, p.layout.Stream)
	if err != nil {
		return tail{}, fmt.Errorf("look up stream %s: %w", p.layout.Stream, err)
	}
	if err := s.Purge(ctx); err != nil {
		return tail{}, fmt.Errorf("purge stream %s: %w", p.layout.Stream, err)
	}
	return p.readTail(ctx)
}
