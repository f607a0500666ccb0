package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"bridge/internal/relation"
	"bridge/lockstep"

	"github.com/jackc/pglogrepl"
)

// shape is how the tuples that Postgres sends of a relation become rows. It
// holds one row at a time.
type shape struct {
	rel  *relation.Relation
	form *relation.Form
	// at is the place in rel.Columns of each column sent, -1 for none.
	at []int
	// server are the columns that only the server can turn into JSON.
	server []bool
	// unchecked is the session's.
	unchecked bool
	// old is set where rows of this shape can't be published.
	old bool

	// The row: its values, or the JSON that stands for them, and its key.
	values, raw, key [][]byte
	// missing are the columns whose values were not sent, unchanged says that
	// there are some, incomplete that the row can't be published without a look.
	missing               []bool
	unchanged, incomplete bool
	// keyless is set where clients can't tell the row by its key: it is left out.
	keyless bool
	data    []byte
}

func (s *session) newShape(rel *relation.Relation, form *relation.Form, m *pglogrepl.RelationMessage) *shape {
	n := len(rel.Columns)
	sh := &shape{
		rel: rel, form: form, server: form.ServerSide(), unchecked: s.unchecked,
		values: make([][]byte, n), raw: make([][]byte, n), key: make([][]byte, len(rel.Key)), missing: make([]bool, n),
	}
	for _, c := range m.Columns {
		sh.at = append(sh.at, slices.IndexFunc(rel.Columns, func(have relation.Column) bool { return have.Name == c.Name }))
	}
	return sh
}

// shapeOf returns the shape of the columns sent. Where they are not those that
// were found in the catalog, either the catalog has changed since, or these
// rows are from before it changed.
func (s *session) shapeOf(ctx context.Context, f *feed, m *pglogrepl.RelationMessage) (*shape, error) {
	if m == nil {
		return nil, errors.New("a row of a relation came without its columns")
	}
	if column := unidentified(f, m); column != "" {
		// An update that changed the key did not say so.
		return nil, mustCompare{"its replica identity lacked its key column " + column + " for a while"}
	}
	// The columns come again after each change of the relation; not all of what
	// changes shows in them.
	err := lostIdentity(f, s.checkShape(ctx, f))
	if fits(f.rel, m) && !gone(err) {
		return s.newShape(f.rel, f.form, m), nil
	}
	if err != nil {
		return nil, err
	}
	if !s.overtaken(f) {
		// It had them for a while, and they would be met again and again.
		return nil, mustCompare{"the WAL has rows of it with columns that it had for a while: " + sentColumns(m)}
	}
	rel := &relation.Relation{Name: f.rel.Name, OID: f.rel.OID, Kind: f.rel.Kind, Txid: -1, Deleted: -1}
	place := func(i int) int {
		if i < 0 {
			return -1
		}
		return slices.IndexFunc(m.Columns, func(c *pglogrepl.RelationMessageColumn) bool { return c.Name == f.rel.Columns[i].Name })
	}
	for _, c := range m.Columns {
		rel.Columns = append(rel.Columns, relation.Column{Name: c.Name, TypeOID: c.DataType, BaseOID: c.DataType})
	}
	rel.Txid, rel.Deleted = place(f.rel.Txid), place(f.rel.Deleted)
	for _, i := range f.rel.Key {
		at := place(i)
		if at < 0 {
			return f.unreadable(ctx, "without its key column "+f.rel.Columns[i].Name, m)
		}
		rel.Key = append(rel.Key, at)
	}
	types, err := relation.LoadTypes(ctx, s.c.pool, rel.Columns)
	if err != nil {
		return nil, err
	}
	form, err := relation.NewForm(rel, types)
	if errors.Is(err, relation.ErrStaleTypes) {
		return f.unreadable(ctx, "with a type that was dropped", m)
	}
	if err != nil {
		return nil, err
	}
	return s.newShape(rel, form, m), nil
}

// overtaken says whether the feed's load reads every row again after all that the
// transaction being read did, so that it matters little how its rows are
// published: it began at the first key, behind what the WAL held by then.
func (s *session) overtaken(f *feed) bool {
	return f.task == taskLoad && f.verdict.after == nil && s.tx.commit < f.ahead
}

// unreadable is what comes of rows from before a load that can't be published. A
// load does not find which rows they deleted; a log, which can't be compared,
// goes on without them.
func (f *feed) unreadable(ctx context.Context, why string, m *pglogrepl.RelationMessage) (*shape, error) {
	if f.r.mirrors() {
		return nil, mustCompare{"the WAL has rows of it " + why + ": " + sentColumns(m)}
	}
	f.r.log.Error().Msgf("the WAL has rows of the relation %s; they are missing from its log: %s", why, sentColumns(m))
	return &shape{old: true}, f.gap(ctx, "the WAL has rows "+why+", which can't be read any more", 0)
}

// unidentified returns a key column that the rows to come don't have of the row
// before them, empty for none.
// Of a partitioned table Postgres sends the root's identity, which no partition
// has; see lostIdentity.
func unidentified(f *feed, m *pglogrepl.RelationMessage) string {
	if f.rel.Kind == 'p' || f.task == taskCompare || !f.r.does(lockstep.ActionUpdate) && !f.r.does(lockstep.ActionDelete) {
		return ""
	}
	for _, i := range f.rel.Key {
		name := f.rel.Columns[i].Name
		for _, c := range m.Columns {
			if c.Name == name && c.Flags&1 == 0 {
				return name
			}
		}
	}
	return ""
}

// lostIdentity returns mustCompare where a partitioned table can't be captured any
// more: a partition's identity may lack the key, and an UPDATE that changes it
// then does not say so.
func lostIdentity(f *feed, err error) error {
	var p *relation.Problem
	if f.rel.Kind == 'p' && f.r.mirrors() && errors.As(err, &p) {
		return mustCompare{err.Error()}
	}
	return err
}

// fits says whether the columns sent are the relation's.
func fits(rel *relation.Relation, m *pglogrepl.RelationMessage) bool {
	if len(m.Columns) != len(rel.Columns) {
		return false
	}
	for _, c := range m.Columns {
		if !slices.ContainsFunc(rel.Columns, func(have relation.Column) bool { return have.Name == c.Name && have.TypeOID == c.DataType }) {
			return false
		}
	}
	return true
}

func sentColumns(m *pglogrepl.RelationMessage) string {
	names := make([]string, len(m.Columns))
	for i, c := range m.Columns {
		names[i] = c.Name + " of type " + strconv.Itoa(int(c.DataType))
	}
	return strings.Join(names, ", ")
}

// checkShape returns errChanged where the catalog has another shape than the
// feed was begun with.
func (s *session) checkShape(ctx context.Context, f *feed) error {
	now, err := s.load(ctx, f.r)
	if err != nil {
		return err
	}
	if now.rel.OID != f.rel.OID { // and the new one is in no publication yet
		return fmt.Errorf("%w: it was dropped, or another table has its name now", errChanged)
	}
	p, err := s.loadPublication(ctx, f.r)
	if err != nil {
		return err
	}
	if err := p.check(now); relation.IsLocked(err) {
		return err
	} else if err != nil { // the WAL says nothing of it any more
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	if err := now.shape(ctx, s.c.pool); err != nil {
		return err
	}
	if now.published != f.published {
		return mustCompare{republished}
	}
	if f.r.keepsAll() && now.rel.OldRows != f.rel.OldRows {
		return fmt.Errorf("%w: its replica identity, or that of a partition, was changed", errChanged)
	}
	if f.r.mirrors() && now.rel.Deferrable != f.rel.Deferrable {
		return mustCompare{"two of its rows may have one key for a moment now, or no longer"}
	}
	if now.rel.Policies != f.rel.Policies || now.filter != f.filter || !bytes.Equal(now.schema, f.schema) {
		return fmt.Errorf("%w: its columns, their types or its publication changed since they were loaded", errChanged)
	}
	return nil
}

// gone says of checkShape's error whether the relation can't be captured as it
// was loaded; else Postgres is away, or what changes it has not ended.
func gone(err error) bool {
	return errors.Is(err, errChanged) || isProblem(err) && !relation.IsLocked(err)
}

// watchShapes looks at the catalog from time to time: a change that no row
// follows is not in the WAL.
func (s *session) watchShapes(ctx context.Context) {
	t := time.NewTicker(s.c.opt.ShapeInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		var feeds []*feed
		if !s.call(ctx, func(context.Context) error { feeds = s.feedsByName(); return nil }) {
			return
		}
		for _, f := range feeds {
			err := s.checkShape(ctx, f)
			if !gone(err) {
				continue
			}
			s.call(ctx, func(context.Context) error { s.leave(f, err); return nil })
		}
	}
}

// take reads a new row. Values that were not sent are taken from the old row,
// if that is at hand.
func (sh *shape) take(tuple, old *pglogrepl.TupleData) error {
	sh.unchanged, sh.incomplete = false, false
	if len(tuple.Columns) != len(sh.at) {
		return fmt.Errorf("a row has %d columns, but %d were announced", len(tuple.Columns), len(sh.at))
	}
	if err := sh.checkText(tuple); err != nil {
		return err
	}
	for n, c := range tuple.Columns {
		i := sh.at[n]
		if i < 0 {
			continue
		}
		sh.values[i], sh.raw[i], sh.missing[i] = nil, nil, false
		if c.DataType == pglogrepl.TupleDataTypeToast && old != nil && old.Columns[n].DataType == pglogrepl.TupleDataTypeText {
			c = old.Columns[n]
		}
		switch c.DataType {
		case pglogrepl.TupleDataTypeText:
			sh.values[i] = c.Data
			sh.incomplete = sh.incomplete || sh.server[i]
		case pglogrepl.TupleDataTypeToast:
			sh.missing[i], sh.unchanged = true, true
		}
	}
	for _, i := range sh.rel.Key {
		if sh.missing[i] {
			return sh.lacks(i)
		}
	}
	sh.takeKey()
	return nil
}

// leaveOut leaves the columns out of the row's data that were not sent, or that only the
// server can turn into JSON. It returns the JSON array of their names, nil for none.
func (sh *shape) leaveOut() []byte {
	if !sh.unchanged && !sh.incomplete {
		return nil
	}
	sh.unchanged, sh.incomplete = false, false
	for i := range sh.rel.Columns {
		if (sh.missing[i] || sh.server[i] && sh.values[i] != nil) && i != sh.rel.Txid && i != sh.rel.Deleted {
			sh.raw[i] = relation.Absent
		}
	}
	return sh.form.AppendAbsent(nil, sh.raw)
}

// takeOld reads what was sent of an old row: all of it, or its replica identity.
func (sh *shape) takeOld(kind uint8, tuple *pglogrepl.TupleData) error {
	if len(tuple.Columns) != len(sh.at) {
		return fmt.Errorf("an old row has %d columns, but %d were announced", len(tuple.Columns), len(sh.at))
	}
	if err := sh.checkText(tuple); err != nil {
		return err
	}
	for n, c := range tuple.Columns {
		if i := sh.at[n]; i >= 0 {
			sh.values[i] = nil
			if c.DataType == pglogrepl.TupleDataTypeText {
				sh.values[i] = c.Data
			}
		}
	}
	for _, i := range sh.rel.Key {
		if kind == pglogrepl.UpdateMessageTupleTypeKey && sh.values[i] == nil { // no identity has NULL
			return sh.lacks(i)
		}
	}
	sh.takeKey()
	return nil
}

// checkText refuses text that is no UTF-8.
func (sh *shape) checkText(tuple *pglogrepl.TupleData) error {
	if !sh.unchecked {
		return nil
	}
	for n, c := range tuple.Columns {
		if i := sh.at[n]; i >= 0 && !utf8.Valid(c.Data) {
			return fmt.Errorf("a value of column %s is not UTF-8; correct the row", sh.rel.Columns[i].Name)
		}
	}
	return nil
}

func (sh *shape) takeKey() {
	for n, i := range sh.rel.Key {
		sh.key[n] = sh.values[i]
	}
	sh.keyless = sh.form.Keyless(sh.values)
}

func (sh *shape) lacks(i int) error {
	return fmt.Errorf("%w: key column %s is not in the WAL; the replica identity must contain the key", errChanged, sh.rel.Columns[i].Name)
}

func sameKey(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
