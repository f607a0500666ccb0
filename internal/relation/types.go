package relation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ErrStaleTypes is wrapped in an error if a value or a column no longer fits the
// types that LoadTypes found, because somebody has run ALTER TYPE since. The caller
// loads the relation again, and makes a new Encoder.
var ErrStaleTypes = errors.New("the catalog's types have changed")

// Types has the types of some columns, and all types that these are made of, by
// their OIDs.
type Types map[uint32]Type

// Equal reports whether both are the same, so that rows have the same JSON.
func (t Types) Equal(other Types) bool {
	if len(t) != len(other) {
		return false
	}
	for oid, a := range t {
		b, ok := other[oid]
		if !ok || !slices.Equal(a.Attributes, b.Attributes) || !slices.Equal(a.Labels, b.Labels) {
			return false
		}
		if a.Kind != b.Kind || a.Elem != b.Elem || a.Delim != b.Delim {
			return false
		}
	}
	return true
}

// Under returns the type below domains, arrays and ranges: the one whose attributes
// or labels show in the values.
func (t Types) Under(oid uint32) Type {
	u := t[oid]
	for u.Elem != 0 {
		u = t[u.Elem]
	}
	return u
}

// TypeKind says how the text form of a type's values becomes JSON.
type TypeKind byte

const (
	// TypeString is a JSON string of the text form: every type for which to_json
	// has no rule of its own.
	TypeString TypeKind = iota
	// TypeBool is true or false.
	TypeBool
	// TypeNumber is a JSON number, or a string if it is NaN or infinite.
	TypeNumber
	// TypeTimestamp and TypeTimestampTZ are strings as in ISO 8601.
	TypeTimestamp
	TypeTimestampTZ
	// TypeJSON is JSON already: json and jsonb.
	TypeJSON
	// TypeDomain is a domain over Elem.
	TypeDomain
	// TypeArray is an array of Elem.
	TypeArray
	// TypeVector is int2vector or oidvector: to_json makes an array of it, but its
	// text form is not that of an array.
	TypeVector
	// TypeComposite is an object of Attributes.
	TypeComposite
	// TypeHstore is the type of the extension hstore, which has a cast to json.
	TypeHstore
	// TypeServer is a type whose JSON only the server can make: it has its own cast
	// to json, or the text form does not say which type the value has.
	TypeServer
)

// Type is one type of the catalog.
type Type struct {
	Kind TypeKind
	// Elem is the element type of an array, or the type below a domain or a range.
	Elem uint32
	// Delim separates the elements of arrays of this type.
	Delim byte
	// Attributes are the attributes of a composite type, without dropped ones.
	Attributes []Attribute
	// Labels are the labels of an enum, in its order; nil for other types.
	Labels []string
}

// Attribute is one attribute of a composite type.
type Attribute struct {
	// Num is pg_attribute.attnum, as in Column.
	Num  int
	Name string
	// Type is the type as format_type prints it.
	Type    string
	TypeOID uint32
}

// More base types by pg_type.oid.
const (
	oidInt2       = 21
	oidInt2Vector = 22
	oidInt4       = 23
	oidOIDVector  = 30
	oidJSON       = 114
	oidFloat4     = 700
	oidFloat8     = 701
	oidNumeric    = 1700
	oidJSONB      = 3802
)

// builtinKind has the types that json_categorize_type (in json.c, since 16 in
// jsonfuncs.c) names by OID. It leaves date out: there JsonEncodeDateTime returns
// the text form.
func builtinKind(oid uint32) (TypeKind, bool) {
	switch oid {
	case oidBool:
		return TypeBool, true
	case oidInt2, oidInt4, oidInt8, oidFloat4, oidFloat8, oidNumeric:
		return TypeNumber, true
	case oidTimestamp:
		return TypeTimestamp, true
	case oidTimestamptz:
		return TypeTimestampTZ, true
	case oidJSON, oidJSONB:
		return TypeJSON, true
	case oidInt2Vector, oidOIDVector:
		return TypeVector, true
	}
	return TypeString, false
}

// typesSQL finds the types with the OIDs in $1, a comma-separated list, and all
// types that they are made of. is_array follows get_element_type: a type of fixed
// size, such as point, has a typelem and is no array. has_cast follows
// find_coercion_pathway for an explicit cast: casts of any context, but only those
// by function; and json_categorize_type: no type below FirstNormalObjectId.
const typesSQL = `
WITH RECURSIVE need(oid) AS (
	SELECT pg_catalog.unnest(pg_catalog.string_to_array($1::text, ',')::oid[])
	UNION
	SELECT part.oid FROM need
	JOIN pg_catalog.pg_type t ON t.oid = need.oid
	CROSS JOIN LATERAL (
		SELECT t.typbasetype WHERE t.typtype = 'd'
		UNION ALL
		SELECT t.typelem WHERE t.typelem <> 0 AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc
		UNION ALL
		SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
		UNION ALL
		SELECT a.atttypid FROM pg_catalog.pg_attribute a
		WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
	) part(oid)
)
SELECT t.oid::int8, t.typtype::text, t.typdelim::text,
	coalesce(r.rngsubtype, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END)::int8,
	t.typelem <> 0 AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc AS is_array,
	t.typoutput = 'pg_catalog.array_out'::regproc AS has_array_text,
	t.oid >= 16384 AND c.castfunc IS NOT NULL AS has_cast,
	coalesce(p.prosrc = 'hstore_to_json' AND o.prosrc = 'hstore_out', false) AS is_hstore,
	coalesce(a.nums, '{}'), coalesce(a.names, '{}'), coalesce(a.type_names, '{}'), coalesce(a.types, '{}'),
	ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
FROM need
JOIN pg_catalog.pg_type t ON t.oid = need.oid
LEFT JOIN pg_catalog.pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
LEFT JOIN pg_catalog.pg_cast c
	ON c.castsource = t.oid AND c.casttarget = 'pg_catalog.json'::regtype AND c.castmethod = 'f'
LEFT JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc AND p.probin LIKE '%/hstore'
LEFT JOIN pg_catalog.pg_proc o ON o.oid = t.typoutput AND o.probin LIKE '%/hstore'
LEFT JOIN LATERAL (
	SELECT pg_catalog.array_agg(a.attnum::int8 ORDER BY a.attnum) AS nums,
		pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) AS names,
		pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS type_names,
		pg_catalog.array_agg(a.atttypid::int8 ORDER BY a.attnum) AS types
	FROM pg_catalog.pg_attribute a
	WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
) a ON true`

// LoadTypes finds the types of these columns, and all types that they are made of,
// with one query. It is written for Postgres 15 or later. It leaves out an OID for
// which the catalog has no type.
func LoadTypes(ctx context.Context, q Querier, columns []Column) (Types, error) {
	list := make([]string, len(columns))
	for i, c := range columns {
		list[i] = strconv.FormatUint(uint64(c.TypeOID), 10)
	}
	rows, err := q.Query(ctx, typesSQL, strings.Join(list, ","))
	if err != nil {
		return nil, fmt.Errorf("read types: %w", err)
	}
	types := Types{}
	var r typeRow
	_, err = pgx.ForEachRow(rows, []any{
		&r.oid, &r.typtype, &r.delim, &r.elem, &r.isArray, &r.hasArrayText, &r.hasCast, &r.isHstore,
		&r.nums, &r.names, &r.typeNames, &r.types, &r.labels,
	}, func() error {
		types[uint32(r.oid)] = r.parse()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read types: %w", err)
	}
	return types, nil
}

// typeRow is a row of typesSQL.
type typeRow struct {
	oid, elem                                int64
	typtype, delim                           string
	isArray, hasArrayText, hasCast, isHstore bool
	nums, types                              []int64
	names, typeNames, labels                 []string
}

// parse decides as json_categorize_type does. The order of the cases matters:
// to_json never uses a cast from an array, a composite type or a domain.
func (r *typeRow) parse() Type {
	t := Type{Delim: ','}
	if r.delim != "" {
		t.Delim = r.delim[0]
	}
	if kind, ok := builtinKind(uint32(r.oid)); ok {
		t.Kind, t.Elem = kind, uint32(r.elem)
		return t
	}
	switch r.typtype {
	case "e":
		t.Labels = r.labels
	case "r", "m":
		t.Elem = uint32(r.elem)
	}
	switch {
	case r.typtype == "d":
		t.Kind, t.Elem = TypeDomain, uint32(r.elem)
	case r.isArray && r.hasArrayText:
		t.Kind, t.Elem = TypeArray, uint32(r.elem)
	case r.isArray:
		t.Kind = TypeServer // an array with its own output function
	case r.typtype == "c":
		t.Kind = TypeComposite
		for i, name := range r.names {
			t.Attributes = append(t.Attributes, Attribute{Num: int(r.nums[i]), Name: name, Type: r.typeNames[i], TypeOID: uint32(r.types[i])})
		}
	case r.isHstore:
		t.Kind = TypeHstore
	case r.hasCast, r.typtype == "p":
		t.Kind = TypeServer // the only pseudo-type that a column can have is anyarray
	}
	return t
}
