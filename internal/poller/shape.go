package poller

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"bridge/internal/relation"
)

// shapeEvery is how often the catalog is looked at again: neither plans nor
// rows tell that an attribute or a label has another name.
const shapeEvery = time.Minute

// checkShape ends the session when the catalog has another shape than it loaded.
func (s *session) checkShape(ctx context.Context) error {
	if time.Now().Before(s.nextShape) {
		return nil
	}
	s.nextShape = time.Now().Add(s.p.opt.ShapeInterval)
	rel, _, err := relation.Load(ctx, s.pool, s.p.opt.Spec)
	if relation.IsLocked(err) {
		return nil // what changes it has not ended
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
		return fmt.Errorf("%w: its columns or their types are not as they were loaded", errChanged)
	}
	return nil
}
