package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"bridge/cmd/internal/program"
	"bridge/internal/publish"
	"bridge/internal/relation"
	"bridge/internal/source"
	"bridge/internal/stream"
	"bridge/internal/wal"

	"github.com/mattn/go-isatty"
	"github.com/nats-io/nats.go/jetstream"
)

// removal is what bridge remove removes of a relation.
type removal struct {
	cfg    *Config
	rel    relation.Name
	js     jetstream.JetStream
	layout stream.Layout
	// info is the stream, nil if there is none.
	info *jetstream.StreamInfo
	// pool is nil if DATABASE_URL is empty: then left is not known.
	pool *source.Pool
	left wal.Leftover
}

// remove removes the stream of a relation that no bridge captures any more, and
// what Postgres keeps for it. It asks first, unless it is told not to.
func remove(ctx context.Context, cfg *Config, args []string, stdin *os.File, stdout io.Writer) error {
	args = slices.Clone(args)
	n := len(args)
	args = slices.DeleteFunc(args, func(a string) bool { return a == "--yes" })
	yes := len(args) < n
	spec, err := oneRelation(cfg, args)
	if err != nil {
		return err
	}
	if !yes && !isatty.IsTerminal(stdin.Fd()) {
		return fmt.Errorf("%w: nobody can be asked, since the input is no terminal: add --yes to remove %s without a question", program.ErrUsage, spec.Name.Quoted())
	}
	r := &removal{cfg: cfg, rel: spec.Name}
	defer r.close()
	if err := r.look(ctx); err != nil {
		return err
	}
	if err := r.refuse(ctx); err != nil {
		return err
	}
	if err := r.awaitReader(ctx); err != nil {
		return err
	}
	if err := r.describe(stdout); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if !yes {
		_, _ = io.WriteString(stdout, "Remove it? [y/N] ")
		answer, _ := bufio.NewReader(stdin).ReadString('\n')
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			return errors.New("nothing was removed")
		}
	}
	return r.do(ctx, stdout)
}

func (r *removal) close() {
	if r.pool != nil {
		r.pool.Close()
	}
	if r.js != nil {
		r.js.Conn().Close()
	}
}

// look finds what there is of the relation.
func (r *removal) look(ctx context.Context) error {
	var err error
	if r.js, err = connectOnce(ctx, r.cfg); err != nil {
		return err
	}
	r.layout = stream.NewLayout(r.cfg.StreamPrefix, r.rel.Schema, r.rel.Table, false)
	var src relation.Source
	if r.cfg.DatabaseURL != "" {
		if r.pool, err = source.Open(r.cfg.server(), 1); err != nil {
			return err
		}
		if src, err = relation.LoadSource(ctx, r.pool); err != nil {
			return fmt.Errorf("%w; to remove the stream alone, leave DATABASE_URL empty", err)
		}
		if r.left, err = wal.FindLeftover(ctx, r.pool, r.cfg.Name, r.rel); err != nil {
			return err
		}
	}
	s, err := r.js.Stream(ctx, r.layout.Stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look up stream %s: %w", r.layout.Stream, err)
	}
	r.info = s.CachedInfo()
	meta, err := stream.ReadMeta(r.info.Config)
	if err != nil {
		return err
	}
	if r.pool != nil && (meta.Source.System != src.SystemID || meta.Source.Database != src.Database) {
		return fmt.Errorf("stream %s holds rows of database %q of system %d, but DATABASE_URL leads to database %q of system %d; correct DATABASE_URL, or leave it empty to remove the stream alone",
			r.layout.Stream, meta.Source.Database, meta.Source.System, src.Database, src.SystemID)
	}
	return nil
}

// readerGone is how long Postgres may take to notice that a bridge has ended. The session
// that read the slot for it is there until then.
const readerGone = 5 * time.Second

// awaitReader waits a little until nobody reads the slot that is to be removed. No bridge
// has the relation any more.
func (r *removal) awaitReader(ctx context.Context) (err error) {
	for deadline := time.Now().Add(readerGone); r.left.Last() && r.left.Reader != 0 && time.Now().Before(deadline); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if r.left, err = wal.FindLeftover(ctx, r.pool, r.cfg.Name, r.rel); err != nil {
			return err
		}
	}
	return nil
}

// refuse returns why the relation can't be removed.
func (r *removal) refuse(ctx context.Context) error {
	if r.info == nil && !r.left.Published {
		where := ""
		if r.pool != nil {
			where = fmt.Sprintf(", and publication %s does not have it", r.cfg.Name)
		}
		return fmt.Errorf("there is nothing of %s to remove: no stream %s%s; see GET / of an edge for the names of relations", r.rel.Quoted(), r.layout.Stream, where)
	}
	// A relation that the shell still has in BRIDGE_TABLES would come back with the next start of a bridge from there.
	if configured, err := relation.ParseSpecs(r.cfg.Tables); err == nil {
		if slices.ContainsFunc(configured.List, func(s relation.Spec) bool { return s.Name == r.rel }) {
			return fmt.Errorf("%s is in BRIDGE_TABLES here, so the next start of a bridge would make its stream again; take it out of BRIDGE_TABLES, restart every bridge that has it, then run this again", r.rel.Quoted())
		}
	}
	has, err := whoHas(ctx, r.js.Conn(), r.layout)
	if err != nil {
		return err
	}
	if len(has) > 0 {
		return fmt.Errorf("%s is in BRIDGE_TABLES of a running bridge: %s; take it out there (from * by -%[1]s), restart that bridge, then run this again", r.rel.Quoted(), strings.Join(has, ", "))
	}
	holder, err := publish.LeaseHolder(ctx, r.js, r.cfg.StreamPrefix, r.layout.Stream)
	if err != nil {
		return err
	}
	if holder != "" {
		return r.held(holder)
	}
	return nil
}

func (r *removal) held(holder string) error {
	return fmt.Errorf("bridge %s writes stream %s; take %s out of its BRIDGE_TABLES, restart it, then run this again (the lease of a bridge that was killed ends within seconds)", holder, r.layout.Stream, r.rel.Quoted())
}

// describe prints what do would do.
func (r *removal) describe(w io.Writer) error {
	var b strings.Builder
	if r.info != nil {
		fmt.Fprintf(&b, "stream %s, with %d messages: clients that read it are cut, and get 404 when they come back\n", r.layout.Stream, r.info.State.Msgs)
	} else {
		fmt.Fprintf(&b, "there is no stream %s\n", r.layout.Stream)
	}
	switch {
	case r.pool == nil:
		b.WriteString("DATABASE_URL is empty, so publication and slot stay as they are\n")
	case !r.left.Published:
	case r.left.Foreign() != "":
		fmt.Fprintf(&b, "publication %s has the table, and keeps it: %s\n", r.left.Name, r.left.Foreign())
	default:
		for _, sql := range r.left.Statements() {
			fmt.Fprintf(&b, "in Postgres: %s\n", sql)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// do removes it. What Postgres keeps comes last: without it, a bridge that is
// started by mistake can't write the stream.
func (r *removal) do(ctx context.Context, stdout io.Writer) error {
	if r.info != nil {
		err := publish.Remove(ctx, r.js, r.cfg.StreamPrefix, r.layout.Stream, holder())
		var held *publish.HeldError
		if errors.As(err, &held) {
			return r.held(held.Holder)
		}
		if err != nil {
			return err
		}
	}
	statements := r.left.Statements()
	var failed error
	if why := r.left.Foreign(); why != "" {
		failed = errors.New(why)
	}
	for failed == nil && len(statements) > 0 {
		rows, err := r.pool.Query(ctx, statements[0])
		if err == nil {
			rows.Close()
			err = rows.Err()
		}
		if failed = err; err == nil {
			statements = statements[1:]
		}
	}
	if failed != nil {
		return fmt.Errorf("the stream is removed, but not what Postgres keeps: %w; to do, as its owner or a superuser: %s", failed, strings.Join(statements, "; "))
	}
	_, err := fmt.Fprintf(stdout, "%s is removed; what bridge sql added to the table stays, see docs/operations.md (Remove a relation)\n", r.rel.Quoted())
	return err
}
