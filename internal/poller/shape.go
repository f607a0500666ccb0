package poller

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"bridge/internal/relation"
)

// shapeEvery is how often the catalog is checked. The check is needed because
// neither plans nor rows show that an attribute or a label was renamed.
const shapeEvery = time.Minute

// checkShape returns errChanged, which ends the session, if the relation's shape
// is no longer the one that was loaded.
func (s *session) checkShape(ctx context.Context) error {
	if time.Now().Before(s.nextShape) {
		return nil
	}
	begun := time.Now()
	s.nextShape = begun.Add(s.p.opt.ShapeInterval)
	rel, _, err := relation.Load(ctx, s.pool, s.p.opt.Spec)
	if relation.IsLocked(err) {
		return nil // the transaction that changes it has not ended
	}
	if err != nil {
		return err
	}
	types, err := relation.LoadTypes(ctx, s.pool, rel.Columns)
	if err != nil {
		return err
	}
	was, err := relation.Document(s.rel, s.types)
	if err != nil {
		return err
	}
	is, err := relation.Document(rel, types)
	if err != nil {
		return err
	}
	if !bytes.Equal(was, is) {
		return fmt.Errorf("%w: its columns or their types are not those that were loaded", errChanged)
	}
	s.shaped = begun
	return nil
}
