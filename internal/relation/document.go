package relation

import (
	"bytes"
	"encoding/json"
	"slices"
)

// document says what the rows of a stream are made of. Consumers read it, and so
// does the next session of the capture, to see whether the shape has changed.
type document struct {
	Relation string           `json:"relation"`
	Columns  []documentColumn `json:"columns"`
	Key      []string         `json:"key"`
	Txid     string           `json:"txid,omitempty"`
	Deleted  string           `json:"deleted,omitempty"`
	// Protocol names the columns that are no data; see Column.Protocol.
	Protocol []string `json:"protocol,omitempty"`
	// Definition is Relation.Definition.
	Definition string `json:"definition,omitempty"`
}

type documentColumn struct {
	// ID is Column.Num: a column has another than one of its name that was dropped.
	ID       int    `json:"id"`
	Name     string `json:"name"`
	Type     string `json:"type"`
	Dims     int    `json:"dims,omitempty"`
	Nullable bool   `json:"nullable"`
	parts
}

// parts is what ALTER TYPE can change in the values of a type, below domains,
// arrays and ranges. A composite type may have no attributes, and an enum no
// labels; nil stands for other types.
type parts struct {
	Attributes []attribute `json:"attributes,omitzero"`
	Labels     []string    `json:"labels,omitzero"`
}

type attribute struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
	Type string `json:"type"`
	parts
}

// Document returns the JSON document that says what the rows of a stream are made
// of. It is for consumers of the stream, and for the capture, which compares it
// with that of its last session.
func Document(rel *Relation, types Types) ([]byte, error) {
	doc := document{Relation: rel.Name.Qualified(), Definition: rel.Definition}
	for _, c := range rel.Columns {
		doc.Columns = append(doc.Columns, documentColumn{c.Num, c.Name, c.Type, c.Dims, c.Nullable, partsOf(types, c.TypeOID)})
		if c.Protocol {
			doc.Protocol = append(doc.Protocol, c.Name)
		}
	}
	for _, i := range rel.Key {
		doc.Key = append(doc.Key, rel.Columns[i].Name)
	}
	if rel.Txid >= 0 {
		doc.Txid = rel.Columns[rel.Txid].Name
	}
	if rel.Deleted >= 0 {
		doc.Deleted = rel.Columns[rel.Deleted].Name
	}
	return json.Marshal(doc)
}

// SameKeys reports whether the rows of the stored document have the same keys
// under the new one. If not, the stream also has each row under its old key.
func SameKeys(stored, now []byte) bool {
	keys := func(text []byte) (key []documentColumn) {
		var d document
		if json.Unmarshal(text, &d) != nil {
			return nil
		}
		for _, name := range d.Key {
			for _, c := range d.Columns {
				if c.Name == name {
					key = append(key, c)
				}
			}
		}
		return key
	}
	was, is := keys(stored), keys(now)
	for i := range min(len(was), len(is)) {
		was[i].grow(is[i].parts) // no key has an added label yet, but a renamed one changes keys
	}
	return slices.EqualFunc(was, is, func(a, b documentColumn) bool {
		return a.Name == b.Name && a.Type == b.Type && slices.Equal(a.Labels, b.Labels)
	})
}

func partsOf(types Types, oid uint32) parts {
	t := types.Under(oid)
	if t.Kind != TypeComposite {
		return parts{Labels: t.Labels}
	}
	p := parts{Attributes: make([]attribute, len(t.Attributes))}
	for i, a := range t.Attributes {
		p.Attributes[i] = attribute{a.Num, a.Name, a.Type, partsOf(types, a.TypeOID)}
	}
	return p
}

// SameRows reports whether the rows of the stored document are still right under
// the new one: at most constraints changed, or labels were added. It is false if
// the stored document has fields that this version does not know and so can't
// compare.
func SameRows(stored, now []byte) bool {
	var was, is document
	d := json.NewDecoder(bytes.NewReader(stored))
	d.DisallowUnknownFields()
	if d.Decode(&was) != nil || json.Unmarshal(now, &is) != nil {
		return false
	}
	for i := range min(len(was.Columns), len(is.Columns)) {
		was.Columns[i].Nullable = is.Columns[i].Nullable // a constraint changes no row
		was.Columns[i].grow(is.Columns[i].parts)
	}
	grown, err := json.Marshal(was)
	return err == nil && bytes.Equal(grown, now)
}

// grow takes over the labels of now, if these are the labels of p and more. ALTER
// TYPE can't move a label: if the order is another, labels were renamed.
func (p *parts) grow(now parts) {
	if p.Labels != nil && now.Labels != nil && among(p.Labels, now.Labels) {
		p.Labels = now.Labels
	}
	for i := range min(len(p.Attributes), len(now.Attributes)) {
		p.Attributes[i].grow(now.Attributes[i].parts)
	}
}

// among reports whether all has each of some, in the same order.
func among(some, all []string) bool {
	for _, s := range all {
		if len(some) > 0 && some[0] == s {
			some = some[1:]
		}
	}
	return len(some) == 0
}
